"""iViT and what a user would pick instead: backbones, and whole models with either."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from mmengine.config import Config
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from tqdm import tqdm

from mmivit.analysis.benchmark import mark, peak_bytes, step
from mmivit.analysis.cost import build_pass, build_timm
from mmivit.apis.config import read_config
from mmivit.models.ivit import IViT
from mmivit.utils.timing import compare

IMAGE_SIZES = ((224, 224), (512, 512), (512, 2048), (800, 1344))
BF16_SIZE = (800, 1344)
WHOLE = {  # config, its size in pixels
    'Mask R-CNN': ('mask_rcnn_ivit.py', (800, 1344)),
    'UperNet': ('upernet_ivit.py', (512, 512)),
}


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
        steps = {name: step(model, x, mode == 'training') for name, model in models.items()}
        error = None
        if mode == 'training':
            remaking = IViT(size, drop_path_rate=0.1, with_cp=True).to(device)
            steps[f'{ours}, with_cp'] = step(remaking, x, True)
        else:
            steps['floor'] = products(steps[ours])
            if (height, width) == BF16_SIZE and has_bf16(device):
                half = copy.deepcopy(models[ours]).bfloat16()
                steps[f'{ours}, bf16'] = step(half, x.bfloat16(), False)
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
            cfg = read_config(str(configs / config))
            cfg.model.backbone.init_cfg = None
            if name == 'Swin-T':
                _use_swin(cfg)
            _, forward = build_pass(cfg, (height, width), device)
            steps[name] = torch.no_grad()(forward)
        for name, result in compare(steps, device).items():
            rows.append(_row(name, mode, (height, width), 1, device, result))
    return rows


def benchmark_timm(names: Sequence[str], image: tuple[int, int], device: str = 'cpu') -> list[dict]:
    """Models of timm's registry, inference and a training step, in turn, with batch 1.

    Args:
        names: such as 'vit_tiny_patch16_224_imhsa'.
        image: height and width, pixels.
        device: 'cpu' or 'cuda'.

    Returns:
        Rows like those of :func:`benchmark_backbones`, with peak bytes.

    Raises:
        LaunchError: timm has no such model.
    """
    models = {name: build_timm(name, image, device) for name in names}
    x = torch.randn(1, 3, *image, device=device)
    rows = []
    for mode in ('inference', 'training'):
        steps = {name: step(model, x, mode == 'training') for name, model in models.items()}
        for name, result in compare(steps, device).items():
            peak = peak_bytes(steps[name], device)
            rows.append(_row(name, mode, image, 1, device, result, peak_bytes=peak))
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
            lines.append(f'{mark(ratio <= goal)} {what} (goal {goal}x)')
    for name, key, goal in (
        ('iViT-T', 'seconds', 0.8),
        ('iViT-T', 'peak_bytes', 0.9),
        ('iViT-T, with_cp', 'peak_bytes', 0.5),
    ):
        ratio = value(name, 512, 512, 'training', key) / value('Swin-T', 512, 512, 'training', key)
        what = f'training step, {key} of {name}: {ratio:.2f}x Swin-T'
        lines.append(f'{mark(ratio <= goal)} {what} (goal {goal}x)')
    ratio = value('iViT-T', 800, 1344, 'inference') / value('floor', 800, 1344, 'inference')
    what = f'inference 800 x 1344: {ratio:.2f}x its own products and convolutions'
    lines.append(f'{mark(ratio <= 1.35)} {what} (goal 1.35x)')
    for row in rows:
        if row['model'] == 'iViT-T, bf16':
            ratio = value('iViT-T', 800, 1344, 'inference') / row['seconds']
            lines.append(f'{mark(ratio >= 2)} bf16, 800 x 1344: {ratio:.2f}x faster (goal 2x)')
            error = row['relative_error']
            lines.append(f'{mark(error <= 2e-2)} bf16, relative error {error:.3f} (goal 0.02)')
        if row['model'] == 'iViT-T' and row['mode'] in WHOLE:
            where = (row['height'], row['width'], row['mode'])
            ratio = row['seconds'] / value('Swin-T', *where)
            what = f'{row["mode"]} {where[0]} x {where[1]}: {ratio:.2f}x that with Swin-T'
            lines.append(f'{mark(ratio <= 1)} {what} (goal 1x)')
    return lines
