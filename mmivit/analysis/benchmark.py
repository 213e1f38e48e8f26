"""Timing of attentions and backbones against what a user would pick instead.

Everything compared is run in turn in one process, so that a busy machine slows all of it alike;
medians and quartiles are reported, and ratios of medians.
"""

from __future__ import annotations

import copy
import csv
import json
import platform
import random
import statistics
import time
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from mmivit.analysis.cost import build_pass
from mmivit.models.attention import build_attention
from mmivit.models.ivit import IViT

ATTENTIONS = ('mhsa', 'decomposed', 'interactive', 'imhsa')
TOKEN_GRIDS = ((14, 14), (25, 42), (50, 84), (100, 168), (200, 336))  # 196 to 67,200 tokens
QUADRATIC_LIMIT = {'mhsa': 16800, 'interactive': 4200}  # tokens; beyond, minutes per call
BACKWARD_LIMIT = 16800
IMAGE_SIZES = ((224, 224), (512, 512), (512, 2048), (800, 1344))
BF16_SIZE = (800, 1344)
WHOLE = {  # config, its size in pixels
    'Mask R-CNN': ('mask_rcnn_ivit.py', (800, 1344)),
    'UperNet': ('upernet_ivit.py', (512, 512)),
}
ROUNDS, SECONDS = 100, 20.0  # of a comparison: at most, and about as long; three rounds at least


def machine(device: str) -> dict[str, str]:
    """What the figures depend on, and a probe of a trap: see docs/benchmarks.md."""
    cpu = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.exists():
        names = [line for line in info.read_text().splitlines() if line.startswith('model name')]
        cpu = names[0].split(':', 1)[1].strip() if names else cpu
    x = torch.randn(1, 10, 4200, 49)
    probe = statistics.median(_time(lambda: x.softmax(-1), 'cpu') for _ in range(5))
    return dict(
        date=datetime.now(timezone.utc).strftime('%Y-%m-%d'),
        cpu=cpu,
        threads=str(torch.get_num_threads()),
        gpu=torch.cuda.get_device_name() if device == 'cuda' else 'none',
        torch=torch.__version__,
        python=platform.python_version(),
        softmax_probe_ms=f'{1e3 * probe:.1f}',
    )


def compare(
    functions: dict[str, Callable[[], object]], device: str, limit: float = SECONDS
) -> dict[str, dict]:
    """Seconds of each function: median, first and third quartile, rounds.

    One warm call each, then rounds in turn, in another order each time: what comes after a call
    that frees gigabytes is slower. After ``limit`` seconds no round begins but the first three.
    """
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    order = random.Random(0)
    start = time.perf_counter()
    for i in range(ROUNDS):
        for name in order.sample(list(functions), len(functions)):
            times[name].append(_time(functions[name], device))
        if i >= 2 and time.perf_counter() - start > limit:
            break
    result = {}
    for name, values in times.items():
        low, median, high = statistics.quantiles(values, n=4, method='inclusive')
        result[name] = dict(seconds=median, low=low, high=high, rounds=len(values))
    return result


def _time(function: Callable[[], object], device: str) -> float:
    if device == 'cuda':
        torch.cuda.synchronize()
    start = time.perf_counter()
    function()
    if device == 'cuda':
        torch.cuda.synchronize()
    return time.perf_counter() - start


def saved_bytes(function: Callable[[], Tensor], besides: Sequence[Tensor] = ()) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once.

    Args:
        function: the forward pass.
        besides: tensors that exist anyway, such as parameters.
    """
    anyway = {tensor.untyped_storage().data_ptr() for tensor in besides}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in anyway:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = function()  # held: freed storages could be counted twice
    del output
    return sum(kept.values())


def peak_bytes(function: Callable[[], object], device: str) -> int:
    """Most bytes that are allocated at once while the function runs, beyond those before."""
    if device == 'cuda':
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    current = peak = 0
    for event in sorted(
        (e for e in events if e.name() == '[memory]'), key=lambda event: event.start_ns()
    ):
        current += event.nbytes()
        peak = max(peak, current)
    return peak


# Attention


class Floor(nn.Module):
    """The two projections alone: what no attention can be faster than."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.qkv, self.proj = attention.qkv, attention.proj

    def forward(self, x: Tensor) -> Tensor:
        return self.proj(self.qkv(x)[..., : x.shape[-1]])


def benchmark_attention(
    dim: int,
    heads: int,
    grids: Sequence[tuple[int, int]] = TOKEN_GRIDS,
    batches: Sequence[int] = (1, 4),
    device: str = 'cpu',
    dtype: torch.dtype = torch.float32,
) -> list[dict]:
    """One block with projections, every attention in turn.

    MHSA is ``scaled_dot_product_attention``, ``decomposed`` two calls of it; ``floor`` the two
    projections alone. Quadratic attentions stop where a call would take minutes.

    Returns:
        A row for each attention, token count, batch and mode ('forward', 'training'), with
        seconds, quartiles, peak bytes, and bytes saved for the backward pass.
    """
    torch.manual_seed(0)
    modules = {kind: build_attention(kind, dim, heads) for kind in ATTENTIONS}
    modules['floor'] = Floor(modules['mhsa'])
    modules = {name: module.to(device, dtype) for name, module in modules.items()}
    rows = []
    runs = [(g, b, m) for m in ('forward', 'training') for b in batches for g in grids]
    for grid, batch, mode in tqdm(runs, desc=f'attention, {dim} channels', unit='run'):
        tokens = grid[0] * grid[1]
        if mode == 'training' and tokens * batch > BACKWARD_LIMIT:
            continue
        x = torch.randn(batch, *grid, dim, device=device, dtype=dtype)
        training = mode == 'training'
        chosen = {
            name: _step(module, x, training)
            for name, module in modules.items()
            if tokens * batch**0.5 <= QUADRATIC_LIMIT.get(name, float('inf'))
        }
        for name, result in compare(chosen, device).items():
            saved = None
            if training:
                saved = saved_bytes(partial(modules[name], x), modules[name].parameters())
            rows.append(
                dict(
                    attention=name,
                    dim=dim,
                    heads=heads,
                    tokens=tokens,
                    batch=batch,
                    mode=mode,
                    dtype=str(dtype).removeprefix('torch.'),
                    device=device,
                    peak_bytes=peak_bytes(chosen[name], device),
                    saved_bytes=saved,
                    **result,
                )
            )
    return rows


def _step(module: nn.Module, x: Tensor, training: bool) -> Callable[[], object]:
    """A forward pass, or with ``training`` a forward and backward pass."""
    if not training:

        @torch.no_grad()
        def forward() -> object:
            module.eval()  # mmdet's return None
            return module(x)

        return forward

    def step() -> None:
        module.train()
        outputs = module(x)
        outputs = outputs if isinstance(outputs, (tuple, list)) else [outputs]
        sum(output.float().square().mean() for output in outputs).backward()

    return step


def attention_verdicts(rows: list[dict]) -> list[str]:
    """A line per goal that the rows hold the figures of."""

    def seconds(name: str, tokens: int, mode: str = 'forward', batch: int = 1) -> float:
        return next(
            row['seconds']
            for row in rows
            if (row['attention'], row['tokens'], row['mode'], row['batch'])
            == (name, tokens, mode, batch)
        )

    def faster(tokens: int, mode: str, goal: float, than: str = 'mhsa') -> str:
        ratio = seconds(than, tokens, mode) / seconds('imhsa', tokens, mode)
        what = f'imhsa against {than}, {tokens:,} tokens, {mode}'
        return f'{_mark(ratio >= goal)} {what}: {ratio:.2f}x faster (goal {goal}x)'

    lines = [faster(*goal) for goal in ((1050, 'forward', 2.4), (4200, 'forward', 6.8))]
    lines += [faster(16800, 'forward', 25), faster(4200, 'training', 5)]
    ratio = seconds('imhsa', 196) / seconds('mhsa', 196)
    lines.append(f'{_mark(ratio <= 1.2)} imhsa, 196 tokens: {ratio:.2f}x mhsa (goal 1.2x)')
    core, fused, block = (
        seconds(a, 4200) - seconds(b, 4200)
        for a, b in (('imhsa', 'floor'), ('decomposed', 'floor'), ('imhsa', 'decomposed'))
    )
    lines.append(
        f'{_mark(core <= 1.25 * fused)} core, 4,200 tokens: {core / fused:.2f}x two fused calls '
        '(goal 1.25x)'
    )
    share = block / seconds('decomposed', 4200)
    lines.append(f'{_mark(share <= 0.15)} interaction adds {share:.0%} to the block (goal 15%)')
    lines.append(faster(4200, 'forward', 20, 'interactive'))
    for key in ('seconds', 'peak_bytes'):
        points = {
            row['tokens']: row[key]
            for row in rows
            if row['attention'] == 'imhsa'
            and row['mode'] == 'forward'
            and row['batch'] == 1
            and row['tokens'] >= 1050
        }
        slope = _slope(points)
        lines.append(f'{_mark(0.9 <= slope <= 1.1)} slope of {key}: {slope:.2f} (goal 0.9 to 1.1)')
    ratio = seconds('imhsa', 4200, batch=4) / 4 / seconds('imhsa', 4200)
    lines.append(f'{_mark(ratio <= 1.15)} batch 4: {ratio:.2f}x per image (goal 1.15x)')
    row = next(
        r for r in rows if r['saved_bytes'] and r['attention'] == 'imhsa' and r['tokens'] == 4200
    )
    size = row['tokens'] * row['batch'] * row['dim'] * getattr(torch, row['dtype']).itemsize
    saved = row['saved_bytes'] / size - 2  # besides the block's input and the projection's
    lines.append(f'{_mark(saved <= 3.3)} the core saves {saved:.2f}x the tokens (goal 3.3x)')
    return lines


def _slope(points: dict[int, float]) -> float:
    """Least-squares slope of log value over log tokens."""
    x = torch.tensor([float(n) for n in points]).log()
    y = torch.tensor([float(value) for value in points.values()]).log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


def _mark(reached: bool) -> str:
    return 'reached' if reached else 'missed '


def plot_attention(rows: list[dict], path: Path) -> None:
    """Fig. 3 of the paper: time and memory over tokens, forward, batch 1; PNG."""
    from matplotlib.figure import Figure

    figure = Figure((10, 4))
    axes = figure.subplots(1, 2)
    for axis, key, unit in zip(axes, ('seconds', 'peak_bytes'), (1e-3, 2**20)):
        for name in (*ATTENTIONS, 'floor'):
            points = [
                (row['tokens'], row[key] / unit)
                for row in rows
                if row['attention'] == name and row['mode'] == 'forward' and row['batch'] == 1
            ]
            style = '--' if name == 'floor' else '-'
            axis.loglog(*zip(*points), style, marker='o', label=name)
        axis.set_xlabel('tokens')
        axis.grid(alpha=0.3, which='both')
    axes[0].set(ylabel='milliseconds', title='time of a forward pass')
    axes[1].set(ylabel='MiB', title='peak memory')
    axes[0].legend()
    first = rows[0]
    figure.suptitle(f'{first["dim"]} channels, {first["heads"]} heads, {first["dtype"]}')
    figure.savefig(path, dpi=110, bbox_inches='tight')


# Backbones


def backbones(device: str, size: str = 'tiny') -> dict[str, nn.Module]:
    """iViT and what else a user would pick at its size, from mmdet and timm.

    Args:
        device: where the models are put.
        size: 'tiny', 'small' or 'base'.
    """
    import timm
    from mmdet.models.backbones import PyramidVisionTransformerV2, ResNet, SwinTransformer

    letter = size[0].upper()
    i = ('tiny', 'small', 'base').index(size)
    caformer = ('s18', 's36', 'b36')[i]
    pvt, layers = (('B2', [3, 4, 6, 3]), ('B3', [3, 4, 18, 3]), ('B5', [3, 6, 40, 3]))[i]
    swin = dict(depths=(2, 2, (6, 18, 18)[i], 2))
    if size == 'base':
        swin.update(embed_dims=128, num_heads=(4, 8, 16, 32))
    models = {
        f'iViT-{letter}': IViT(size, drop_path_rate=0.1),
        f'ResNet-{(50, 101, 152)[i]}': ResNet((50, 101, 152)[i]),
        f'ConvNeXt-{letter}': timm.create_model(f'convnext_{size}', features_only=True),
        f'Swin-{letter}': SwinTransformer(**swin),
        f'CAFormer-{caformer.upper()}': timm.create_model(
            f'caformer_{caformer}', features_only=True
        ),
        f'PVTv2-{pvt}': PyramidVisionTransformerV2(
            embed_dims=64,
            num_layers=layers,
            mlp_ratios=(4,) * 4 if size == 'base' else (8, 8, 4, 4),
        ),
    }
    return {name: model.to(device) for name, model in models.items()}


def benchmark_backbones(
    sizes: Sequence[tuple[int, int]] = IMAGE_SIZES, device: str = 'cpu', size: str = 'tiny'
) -> list[dict]:
    """Inference at every size with batch 1, and a training step at 512 x 512 with batch 2.

    ``floor`` is the time of iViT's own matrix products and convolutions, at the same shapes.

    Args:
        sizes: heights and widths of images, pixels.
        device: 'cpu' or 'cuda'.
        size: 'tiny', 'small' or 'base'.

    Returns:
        A row for each model, image size and mode, with seconds, quartiles, images per second; for
        training also peak bytes, and for iViT a row with blocks recomputed (``with_cp``). Where
        the machine multiplies bf16, a row of iViT in it, with its error relative to fp32.
    """
    models = backbones(device, size)
    ours = next(iter(models))
    rows = []
    runs = [('inference', image, 1) for image in sizes] + [('training', (512, 512), 2)]
    for mode, (height, width), batch in tqdm(runs, desc='backbones', unit='run'):
        x = torch.randn(batch, 3, height, width, device=device)
        steps = {name: _step(model, x, mode == 'training') for name, model in models.items()}
        error = None
        if mode == 'training':
            remaking = IViT(size, drop_path_rate=0.1, with_cp=True).to(device)
            steps[f'{ours}, with_cp'] = _step(remaking, x, True)
        else:
            steps['floor'] = products(steps[ours])
            if (height, width) == BF16_SIZE and has_bf16(device):
                half = copy.deepcopy(models[ours]).bfloat16()
                steps[f'{ours}, bf16'] = _step(half, x.bfloat16(), False)
                error = _relative_error(steps[f'{ours}, bf16'](), steps[ours]())
        for name, result in compare(steps, device).items():
            peak = peak_bytes(steps[name], device) if mode == 'training' else None
            rows.append(
                _row(
                    name,
                    mode,
                    (height, width),
                    batch,
                    device,
                    result,
                    peak_bytes=peak,
                    relative_error=error if name.endswith('bf16') else None,
                )
            )
    return rows


def benchmark_whole(configs: Path, device: str = 'cpu') -> list[dict]:
    """Whole models with iViT-Tiny and with Swin-T, inference with batch 1, in turn.

    Args:
        configs: folder of the configs in :data:`WHOLE`.
        device: 'cpu' or 'cuda'.

    Returns:
        Rows like those of :func:`benchmark_backbones`, the model's name as mode.
    """
    rows = []
    for mode, (config, (height, width)) in tqdm(WHOLE.items(), desc='whole models', unit='model'):
        steps = {}
        for name in ('iViT-T', 'Swin-T'):
            cfg = Config.fromfile(configs / config)
            cfg.model.backbone.init_cfg = None
            if name == 'Swin-T':
                _use_swin(cfg)
            _, forward = build_pass(cfg, (height, width), device)
            steps[name] = torch.no_grad()(forward)
        for name, result in compare(steps, device).items():
            rows.append(_row(name, mode, (height, width), 1, device, result))
    return rows


def _row(
    model: str,
    mode: str,
    size: tuple[int, int],
    batch: int,
    device: str,
    result: dict,
    peak_bytes: int | None = None,
    relative_error: float | None = None,
) -> dict:
    return dict(
        model=model,
        height=size[0],
        width=size[1],
        batch=batch,
        mode=mode,
        device=device,
        images_per_second=batch / result['seconds'],
        peak_bytes=peak_bytes,
        relative_error=relative_error,
        **result,
    )


def _use_swin(cfg: Config) -> None:
    """Put mmdet's Swin-T in the place of a config's backbone."""
    cfg.model.backbone = dict(type='mmdet.SwinTransformer')
    channels = [96, 192, 384, 768]
    if 'neck' in cfg.model:
        cfg.model.neck.in_channels = channels
    else:
        cfg.model.decode_head.in_channels = channels
        cfg.model.auxiliary_head.in_channels = channels[cfg.model.auxiliary_head.in_index]


def has_bf16(device: str) -> bool:
    """Whether the machine has instructions that multiply bf16."""
    if device == 'cuda':
        return torch.cuda.is_bf16_supported(including_emulation=False)
    info = Path('/proc/cpuinfo')
    return info.exists() and any(f in info.read_text() for f in ('avx512_bf16', 'amx_bf16'))


def _relative_error(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """Largest over the maps of |found - expected| / |expected|, Euclidean norms."""
    return max(
        ((f.float() - e).norm() / e.norm()).item() for f, e in zip(found, expected, strict=True)
    )


class _Products(TorchDispatchMode):
    """Records the matrix products and convolutions that run under it."""

    RECORDED = (
        torch.ops.aten.mm.default,
        torch.ops.aten.addmm.default,
        torch.ops.aten.bmm.default,
        torch.ops.aten.convolution.default,
    )

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in self.RECORDED:
            like = [torch.empty_like(a) if isinstance(a, Tensor) else a for a in args]
            self.calls.append((function, like))
        return function(*args, **(kwargs or {}))


def products(function: Callable[[], object]) -> Callable[[], None]:
    """The matrix products and convolutions of a function, alone, on tensors of the same shapes."""
    with _Products() as recorder:
        function()
    for _, args in recorder.calls:
        for arg in args:
            if isinstance(arg, Tensor):
                arg.normal_()

    @torch.no_grad()
    def replay() -> None:
        for operation, args in recorder.calls:
            operation(*args)

    return replay


def backbone_verdicts(rows: list[dict]) -> list[str]:
    """A line per goal."""

    def value(model: str, height: int, width: int, mode: str, key: str = 'seconds') -> float:
        return next(
            row[key]
            for row in rows
            if (row['model'], row['height'], row['width'], row['mode'])
            == (model, height, width, mode)
        )

    lines = []
    goals = {
        (800, 1344): {'ConvNeXt-T': 1.0, 'Swin-T': 0.65, 'PVTv2-B2': 0.25, 'CAFormer-S18': 0.48},
        (512, 512): {'ConvNeXt-T': 0.95, 'Swin-T': 0.75, 'PVTv2-B2': 0.62, 'CAFormer-S18': 0.95},
    }
    for size, limits in goals.items():
        for peer, goal in limits.items():
            ratio = value('iViT-T', *size, 'inference') / value(peer, *size, 'inference')
            what = f'inference {size[0]} x {size[1]}: {ratio:.2f}x {peer}'
            lines.append(f'{_mark(ratio <= goal)} {what} (goal {goal}x)')
    for name, key, goal in (
        ('iViT-T', 'seconds', 0.8),
        ('iViT-T', 'peak_bytes', 0.9),
        ('iViT-T, with_cp', 'peak_bytes', 0.5),
    ):
        ratio = value(name, 512, 512, 'training', key) / value('Swin-T', 512, 512, 'training', key)
        what = f'training step, {key} of {name}: {ratio:.2f}x Swin-T'
        lines.append(f'{_mark(ratio <= goal)} {what} (goal {goal}x)')
    ratio = value('iViT-T', 800, 1344, 'inference') / value('floor', 800, 1344, 'inference')
    what = f'inference 800 x 1344: {ratio:.2f}x its own products and convolutions'
    lines.append(f'{_mark(ratio <= 1.35)} {what} (goal 1.35x)')
    for row in rows:
        if row['model'] == 'iViT-T, bf16':
            ratio = value('iViT-T', 800, 1344, 'inference') / row['seconds']
            lines.append(f'{_mark(ratio >= 2)} bf16, 800 x 1344: {ratio:.2f}x faster (goal 2x)')
            error = row['relative_error']
            lines.append(f'{_mark(error <= 2e-2)} bf16, relative error {error:.3f} (goal 0.02)')
        if row['model'] == 'iViT-T' and row['mode'] in WHOLE:
            where = (row['height'], row['width'], row['mode'])
            ratio = row['seconds'] / value('Swin-T', *where)
            what = f'{row["mode"]} {where[0]} x {where[1]}: {ratio:.2f}x that with Swin-T'
            lines.append(f'{_mark(ratio <= 1)} {what} (goal 1x)')
    return lines


def write_rows(rows: list[dict], setting: dict[str, str], stem: Path) -> None:
    """``stem.json`` with the machine, and ``stem.csv``."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    stem.with_suffix('.json').write_text(json.dumps(dict(machine=setting, rows=rows), indent=1))
    with stem.with_suffix('.csv').open('w', newline='') as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)


def table(rows: list[dict], by: str, across: Sequence[str]) -> str:
    """Markdown: median seconds of every ``by``, a column per combination of ``across``."""
    columns = list(dict.fromkeys(tuple(row[key] for key in across) for row in rows))
    names = list(dict.fromkeys(row[by] for row in rows))
    titles = [' x '.join(map(str, column)) for column in columns]
    lines = [f'| {by} | ' + ' | '.join(titles) + ' |', '|---|' + '---:|' * len(columns)]
    for name in names:
        cells = []
        for column in columns:
            found = [
                row
                for row in rows
                if row[by] == name and tuple(row[key] for key in across) == column
            ]
            cells.append(f'{1e3 * found[0]["seconds"]:.4g}' if found else '')
        lines.append(f'| {name} | ' + ' | '.join(cells) + ' |')
    return '\n'.join(lines)
