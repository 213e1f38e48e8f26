"""The four attentions over the number of tokens, as in the paper's Fig. 3."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from tqdm import tqdm

from mmivit.analysis.benchmark import mark, peak_bytes, saved_bytes, step
from mmivit.models.attention import build_attention
from mmivit.utils.figures import save_figure
from mmivit.utils.timing import compare

ATTENTIONS = ('mhsa', 'decomposed', 'interactive', 'imhsa')
TOKEN_GRIDS = ((14, 14), (25, 42), (50, 84), (100, 168), (200, 336))  # 196 to 67,200 tokens
QUADRATIC_LIMIT = {'mhsa': 16800, 'interactive': 4200}  # tokens; beyond, minutes per call
BACKWARD_LIMIT = 16800


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
    prefix: int | None = None,
) -> list[dict]:
    """One block with projections, every attention in turn.

    MHSA is ``scaled_dot_product_attention``, ``decomposed`` two calls of it; ``floor`` the two
    projections alone. Quadratic attentions stop where a call would take minutes.

    Args:
        prefix: tokens in front of those on the grid; then the attentions are those of
            :mod:`mmivit.models.vit`, with biases. iViT's if not given.

    Returns:
        A row for each attention, token count, batch and mode ('forward', 'training'), with
        seconds, quartiles, peak bytes, and bytes saved for the backward pass.
    """
    torch.manual_seed(0)
    if prefix is None:
        modules = {kind: build_attention(kind, dim, heads) for kind in ATTENTIONS}
    else:
        from mmivit.models import vit

        modules = {kind: vit.ATTENTIONS[kind](dim, heads, qkv_bias=True) for kind in ATTENTIONS}
    modules['floor'] = Floor(modules['mhsa'])
    modules = {name: module.to(device, dtype) for name, module in modules.items()}
    rows = []
    runs = [(g, b, m) for m in ('forward', 'training') for b in batches for g in grids]
    for grid, batch, mode in tqdm(runs, desc=f'attention, {dim} channels', unit='run'):
        tokens = grid[0] * grid[1]
        if mode == 'training' and tokens * batch > BACKWARD_LIMIT:
            continue
        shape = grid if prefix is None else (prefix + tokens,)
        for kind in ATTENTIONS:
            modules[kind].token_grid = SimpleNamespace(prefix=prefix, size=grid)
        x = torch.randn(batch, *shape, dim, device=device, dtype=dtype)
        training = mode == 'training'
        chosen = {
            name: step(module, x, training)
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
        return f'{mark(ratio >= goal)} {what}: {ratio:.2f}x faster (goal {goal}x)'

    lines = [faster(*goal) for goal in ((1050, 'forward', 2.4), (4200, 'forward', 6.8))]
    lines += [faster(16800, 'forward', 25), faster(4200, 'training', 5)]
    ratio = seconds('imhsa', 196) / seconds('mhsa', 196)
    lines.append(f'{mark(ratio <= 1.2)} imhsa, 196 tokens: {ratio:.2f}x mhsa (goal 1.2x)')
    core, fused, block = (
        seconds(a, 4200) - seconds(b, 4200)
        for a, b in (('imhsa', 'floor'), ('decomposed', 'floor'), ('imhsa', 'decomposed'))
    )
    lines.append(
        f'{mark(core <= 1.25 * fused)} core, 4,200 tokens: {core / fused:.2f}x two fused calls '
        '(goal 1.25x)'
    )
    share = block / seconds('decomposed', 4200)
    lines.append(f'{mark(share <= 0.15)} interaction adds {share:.0%} to the block (goal 15%)')
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
        lines.append(f'{mark(0.9 <= slope <= 1.1)} slope of {key}: {slope:.2f} (goal 0.9 to 1.1)')
    ratio = seconds('imhsa', 4200, batch=4) / 4 / seconds('imhsa', 4200)
    lines.append(f'{mark(ratio <= 1.15)} batch 4: {ratio:.2f}x per image (goal 1.15x)')
    row = next(
        r for r in rows if r['saved_bytes'] and r['attention'] == 'imhsa' and r['tokens'] == 4200
    )
    size = row['tokens'] * row['batch'] * row['dim'] * getattr(torch, row['dtype']).itemsize
    saved = row['saved_bytes'] / size - 2  # besides the block's input and the projection's
    lines.append(f'{mark(saved <= 3.3)} the core saves {saved:.2f}x the tokens (goal 3.3x)')
    return lines


def _slope(points: dict[int, float]) -> float:
    """Least-squares slope of log value over log tokens."""
    x = torch.tensor([float(n) for n in points]).log()
    y = torch.tensor([float(value) for value in points.values()]).log()
    return (((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()).item()


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
    save_figure(figure, path, dpi=110, bbox_inches='tight')
