"""Pictures of what a model attends to, as the paper's Fig. 5: maps drawn over the image."""

from __future__ import annotations

import os
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import mmcv
import numpy as np
import torch
from torch import Tensor, nn

from mmivit.analysis.attention_maps import (
    COLLAPSED,
    attention_inputs,
    effective_map,
    key_less_maps,
    kind_of,
    landmark_maps,
    layer_diversity,
)
from mmivit.analysis.map_drawing import Panel, View, draw
from mmivit.apis.config import read_config
from mmivit.apis.images import read_image, viewable
from mmivit.apis.inferencers import load_inferencer
from mmivit.datasets.loaders import ImagePipeline
from mmivit.errors import CheckpointError
from mmivit.models.attention import ATTENTIONS, LOCAL_START, MHSA, DecomposedMHSA
from mmivit.utils.figures import save_figure
from mmivit.utils.files import RefusedFile, check_absent
from mmivit.weights.checkpoint import naming
from mmivit.weights.converters import LINEAR
from mmivit.weights.sources import fetch

COLUMNS = 8  # most heads drawn beside each other
FORMULAS = {
    'mhsa': '$A$',
    'decomposed': '$A_Q A_K$',
    'interactive': '$I(A)$',
    'imhsa': "$A_Q' A_K'$",
}
PARTS = dict(content='content alone', locality='locality alone', both='both')
MOST_ROWS = 256  # of an effective map, that are looked at for the summary


class Shown(NamedTuple):
    """What :func:`show_attention` has drawn.

    Attributes:
        summary: lines for people, on every layer drawn.
    """

    files: list[Path]
    summary: str


def show_attention(
    image: str | Path,
    checkpoint: str,
    out: str | Path,
    config: str | None = None,
    timm: str | None = None,
    points: Sequence[tuple[int, int]] = (),
    layers: Sequence[str] = (),
    force: bool = False,
) -> Shown:
    """Draw what the heads of a trained model attend to, from chosen points of an image.

    For every layer, ``out/IMAGE.LAYER.heads.png`` (the rows A_Q' A_K' of the points' tokens, head
    by head) and ``.attentions.png`` (the four kinds side by side, each with the layer's projections
    and input, averaged over heads); where there are landmarks, also ``.landmarks.png`` (the rows of
    A_K' of those in which the points lie) and ``.queries.png`` (the rows of A_Q: which landmarks
    the points' tokens read, by content alone, by locality alone and by both). The model sees the
    image as its test pipeline makes it, at once even where it is tested on sliding windows.

    Args:
        image: the file.
        checkpoint: the model's weights.
        out: folder to write.
        config: an mmdet or mmseg config; or
        timm: the name of a classifier, which sees the whole image, not a central crop.
        points: pixels (x, y) of the image; three along its diagonal if not given.
        layers: names of attentions, or parts of names such as 'stages.3'; the deepest of the
            finest grid if not given.
        force: replace pictures drawn earlier.

    Raises:
        FileNotFoundError: the image, the config or the checkpoint is missing.
        FileExistsError: a file to be written exists and ``force`` is off.
        LaunchError: the config cannot be read, or is neither mmdet's nor mmseg's.
        CheckpointError: the checkpoint is unsafe, unreadable, or of another model.
        ValueError: the image cannot be read, a point lies outside it, no layer has such a name,
            or the model has no attention of ours.
    """
    for path in filter(None, (image, config, checkpoint)):
        if not Path(path).is_file():
            raise FileNotFoundError(f'no file {path}, seen from {os.getcwd()}')
    load, source = (_load_timm, timm) if timm else (_load_config, config)
    model, view = load(source, checkpoint, Path(image))
    height, width = view.image.shape[:2]
    points = points or [(width * i // 4, height * i // 4) for i in (1, 2, 3)]
    for x, y in points:
        if not (0 <= x < width and 0 <= y < height):
            raise ValueError(
                f'the point {x},{y} is outside the image: expected x from 0 to {width - 1} '
                f'and y from 0 to {height - 1}'
            )
    found = attention_inputs(model, view.inputs)
    view = replace(view, patch=_patch_size(found))
    pages, summary = {}, []
    for name in _chosen(found, layers):
        for kind, page in _pages(name, *found[name], view, points).items():
            pages[Path(out, f'{Path(image).stem}.{name}.{kind}.png')] = page
        summary.append(_summary(name, *found[name]))
    for path in pages:
        check_absent(path, force)
    for path, (title, rows) in pages.items():
        save_figure(draw(view, title, rows), path)
    return Shown(list(pages), '\n'.join(summary))


def _pages(
    name: str, module: MHSA, x: Tensor, view: View, points: Sequence[tuple[int, int]]
) -> dict[str, tuple[str, list[list[Panel | None]]]]:
    """Title and panels of each of a layer's pictures."""
    kind, grid = kind_of(module), tuple(module.patches(x).shape[1:3])
    cells = [view.token(point, grid) for point in points]
    tokens = [row * grid[1] + column for row, column in cells]
    unit = f'Colours: multiples of 1/N, N = {grid[0]} x {grid[1]} tokens.'
    heads = [f'head {i}' for i in range(module.num_heads)]
    maps = _as_grids(effective_map(module, x, tokens), grid)
    pages = {
        'heads': (
            f'{name} ({kind}): effective attention {FORMULAS[kind]} from the starred point, '
            f'head by head. {unit}',
            _rows(points, maps, heads),
        )
    }
    if isinstance(module, DecomposedMHSA):
        landmarks = [[_landmark(i, n, module.landmarks) for i, n in zip(c, grid)] for c in cells]
        side = min(module.landmarks, grid[1])
        indices = [row[0] * side + column[0] for row, column in landmarks]
        maps = _as_grids(landmark_maps(module, x)[:, :, indices], grid)
        boxes = [(row[1], column[1]) for row, column in landmarks]
        mark = "A_K'" if kind == 'imhsa' else 'A_K'
        pages['landmarks'] = (
            f'{name} ({kind}): what the landmark gathers in which the starred point lies (white '
            f'frame), ${mark}$, head by head. {unit}',
            _rows(points, maps, heads, boxes),
        )
        pages['queries'] = _queries_page(name, module, x, points, tokens)
    maps, titles = [], []
    for other in ATTENTIONS:
        rows = effective_map(_as_kind(module, other), x, tokens)
        maps.append(_as_grids(rows, grid).mean(0))
        unmixed = ', heads unmixed' if other in ('interactive', 'imhsa') else ''
        as_converted = ', as converted' if other in LINEAR and kind not in LINEAR else ''
        note = "the model's own" if other == kind else f'not trained so{unmixed}{as_converted}'
        titles.append(f'{other}\n({note})')
    pages['attentions'] = (
        f'{name}: the four attentions from the starred point, mean over heads. The model has '
        f'{kind}; the others run with its projections and input, without training. {unit}',
        _rows(points, np.stack(maps), titles),
    )
    return pages


def _queries_page(
    name: str, module: DecomposedMHSA, x: Tensor, points: Sequence[tuple[int, int]], tokens
) -> tuple[str, list[list[Panel | None]]]:
    """Title and panels of the picture of A_Q: three rows to a point, landmarks as their blocks."""
    grid = module.patches(x).shape[1:3]
    sides = [min(module.landmarks, size) for size in grid]
    blocks = [[_landmark(i, size, module.landmarks)[0] for i in range(size)] for size in grid]
    heads = [
        f'head {i}: content {content:.2f}\nlocality {locality:.2f}'
        for i, (content, locality) in enumerate(zip(module.content, module.locality))
    ]
    lines = []
    maps = {
        part: _as_grids(rows, tuple(sides))[..., blocks[0], :][..., blocks[1]]
        for part, rows in key_less_maps(module, x, tokens).items()
    }
    for i, point in enumerate(points):
        for part, label in PARTS.items():
            lines += _rows([point], maps[part][:, i : i + 1], heads, label=label)
    interaction = ', before heads interact' if kind_of(module) == 'imhsa' else ''
    title = (
        f'{name} ({kind_of(module)}): which landmarks the token of the starred point reads, $A_Q$ '
        r'= softmax(content $Q k^T / \sqrt{d}$ - locality $|p_n - p_l|^2$), head by head'
        f'{interaction}. Colours: multiples of 1/L, L = {sides[0]} x {sides[1]} landmarks.'
    )
    return title, lines


def _summary(name: str, module: MHSA, x: Tensor) -> str:
    """What people should know of a layer, in lines; of a large map some rows are looked at."""
    height, width = module.patches(x).shape[1:3]
    tokens = height * width
    rows = torch.linspace(0, tokens - 1, min(tokens, MOST_ROWS)).long().tolist()
    found = layer_diversity(name, module, x, rows)
    front = f', {x.shape[1] - tokens} in front' if x.ndim == 3 else ''
    lines = [f'{name}: {found.attention}, {height} x {width} tokens{front}, {found.heads} heads']
    if isinstance(module, DecomposedMHSA):
        for number in ('content', 'locality'):
            values = ' '.join(f'{value:.2f}' for value in getattr(module, number))
            lines.append(f'{number} by head: {values}')
    part = f', {len(rows)} of their rows' if len(rows) < tokens else ''
    lines.append(
        f'effective maps{part}: effective rank {found.effective_rank:.2f} (mean of heads), cosine '
        f'{found.map_cosine:.2f} (mean of pairs of heads)'
    )
    if found.collapsed:
        lines.append(
            f'COLLAPSED in {round(found.collapsed * found.heads)} of {found.heads} heads (below '
            f'{COLLAPSED}): whatever the query, a token gets nearly the same pooling of the values'
        )
    return '\n  '.join(lines)


def _as_grids(rows: Tensor, grid: tuple[int, int]) -> np.ndarray:
    """(1, h, points, N) -> (h, points, H, W), in multiples of 1 / N."""
    return (rows[0] * rows.shape[-1]).unflatten(-1, grid).numpy()


def _rows(points, maps, titles, boxes=None, label='') -> list[list[Panel | None]]:
    """The image and the maps (maps, points, H, W) of each point, in lines of equal length."""
    lines = []
    length = -(-len(titles) // -(-len(titles) // COLUMNS))
    for i, point in enumerate(points):
        box = boxes[i] if boxes else None
        panels = [Panel(title, point, grid[i], box) for title, grid in zip(titles, maps)]
        for start in range(0, len(panels), length):
            title = f'point {point[0]},{point[1]}\n{label}'.strip()
            first = None if start else Panel(title, point)
            lines.append([first, *panels[start : start + length]])
    return lines


def _landmark(token: int, size: int, landmarks: int) -> tuple[int, tuple[int, int]]:
    """Along one side: the landmark nearest to a token, and the tokens that it averages."""
    bins = min(landmarks, size)
    i = (2 * token + 1) * bins // (2 * size)
    return i, (i * size // bins, -(-(i + 1) * size // bins))


def _as_kind(module: MHSA, kind: str) -> MHSA:
    """The attention itself, or one of another kind as a conversion makes it."""
    if kind == kind_of(module):
        return module
    other = module.sibling(kind)
    state = module.state_dict()
    if kind in LINEAR and kind_of(module) not in LINEAR:
        state |= {n: torch.full((module.num_heads,), value) for n, value in LOCAL_START.items()}
    other.load_state_dict(state, strict=False)
    return other.eval()


def _patch_size(found: dict[str, tuple[MHSA, Tensor]]) -> tuple[int, int] | None:
    """Pixels of a patch along y and x, of a vision transformer; None for others."""
    grids = [module.token_grid for module, x in found.values() if x.ndim == 3]
    return grids[0].embed.patch_size if grids else None


def _chosen(found: dict[str, tuple[MHSA, Tensor]], wanted: Sequence[str]) -> list[str]:
    """Names of the layers to draw, out of those that ran, in the order in which they did."""
    if not wanted:
        tokens = {name: x[0, ..., 0].numel() for name, (_, x) in found.items()}
        return [name for name in found if tokens[name] == max(tokens.values())][-1:]
    for part in wanted:
        if not any(f'.{part}.' in f'.{name}.' for name in found):
            raise ValueError(f'no attention {part!r}; the model has {", ".join(found)}')
    return [name for name in found if any(f'.{part}.' in f'.{name}.' for part in wanted)]


def _load_config(config: str, checkpoint: str, path: Path) -> tuple[nn.Module, View]:
    """The model of an mmdet or mmseg config, and what its test pipeline makes of an image."""
    inferencer, _ = load_inferencer(read_config(config), checkpoint, 'cpu')
    sample = _read(path, inferencer.pipeline)
    packed = inferencer.pipeline(sample)
    batch = dict(inputs=[packed['inputs']], data_samples=[packed['data_samples']])
    data = inferencer.model.data_preprocessor(batch, False)
    scale = data['data_samples'][0].metainfo.get('scale_factor', (1.0, 1.0))
    image = mmcv.bgr2rgb(viewable(sample['img']))
    return inferencer.model, View(image, data['inputs'], tuple(scale))


def _read(path: Path, pipeline: ImagePipeline) -> dict:
    try:
        return read_image(path, pipeline)
    except RefusedFile as error:
        raise ValueError(f'{path}: {error}') from error


def _load_timm(name: str, checkpoint: str, path: Path) -> tuple[nn.Module, View]:
    """A classifier, and an image resized so that its shorter side is as in training."""
    import timm
    from PIL import Image
    from timm.data import create_transform, resolve_data_config

    if not timm.is_model(name):
        known = ', '.join(timm.list_models(['ivit_*', '*_imhsa']))
        raise ValueError(f'timm has no model {name!r}; expected one of {known}')
    photo = _read(path, ImagePipeline([dict(type='LoadImageFromFile')], None))['img']
    with naming(checkpoint):
        weights = fetch(checkpoint)
        bias = weights.get('head.fc.bias', weights.get('head.bias', ()))
        # Plain vision transformers take one size, unless they are asked for more.
        plain = dict(dynamic_img_size=True, dynamic_img_pad=True) if name.endswith('_imhsa') else {}
        model = timm.create_model(name, num_classes=len(bias), **plain)
        try:
            model.load_state_dict(weights)
        except RuntimeError as error:
            raise CheckpointError(f'{name}: {textwrap.shorten(str(error), 300)}') from error
    height, width = photo.shape[:2]
    setting = resolve_data_config(model=model)
    ratio = setting['input_size'][-1] / min(height, width)
    size = (round(height * ratio), round(width * ratio))
    setting.update(input_size=(3, *size), crop_pct=1.0, crop_mode='squash')
    image = mmcv.bgr2rgb(photo)
    inputs = create_transform(**setting)(Image.fromarray(image)).unsqueeze(0)
    return model, View(image, inputs, (size[1] / width, size[0] / height))
