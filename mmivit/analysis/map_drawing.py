"""Maps of tokens drawn over the image that they are of."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import cv2
import numpy as np
from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Where a token looks: the stem's (7x7, stride 4, padding 2) and the downsamplings' (3x3, stride 2,
# padding 1) receptive fields are centred on pixels 1, 1 + s, 1 + 2 s, ... at every stride s, which
# is half a token off the middles of an even partition.
FIRST_CENTRE = 1.5  # of pixel 1, from the image's edge
SLACK = 2  # pixels at the end of an image that the stem may leave out
PANEL = 2.1  # inches
MAX_DRAWN = 480  # pixels of the longer side of the photo below a map


@dataclass(frozen=True)
class View:
    """An image, and the input that the model makes of it: resized, then padded right and below.

    Attributes:
        image: (H, W, 3), RGB.
        inputs: what the backbone takes, (1, 3, H', W').
        scale: pixels of the input per pixel of the image, along x and y.
        patch: pixels of the input per token along y and x, of a vision transformer, whose tokens
            divide it evenly; None for iViT.
    """

    image: np.ndarray
    inputs: Tensor
    scale: tuple[float, float]
    patch: tuple[int, int] | None = None

    def edges(self, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray]:
        """Borders between tokens in the image: every pixel belongs to the nearest centre.

        Args:
            rows: tokens along y, of a layer at any of iViT's strides or of patches.
            columns: tokens along x.

        Returns:
            x (columns + 1) and y (rows + 1), in pixels of the image from its left and upper edge;
            those beyond its size enclose tokens of the padding.
        """
        height, width = self.inputs.shape[2:]
        if self.patch:
            return tuple(
                size * np.arange(n + 1) / scale
                for n, size, scale in zip((columns, rows), reversed(self.patch), self.scale)
            )
        stride = 2 ** math.ceil(math.log2((height - SLACK) / rows))
        return tuple(
            np.array([0, *(FIRST_CENTRE + stride * (np.arange(1, n) - 0.5)), size]) / scale
            for n, size, scale in zip((columns, rows), (width, height), self.scale)
        )

    def token(self, point: tuple[int, int], grid: tuple[int, int]) -> tuple[int, int]:
        """Row and column of the token to which the pixel (x, y) belongs, in a grid (H, W)."""
        column, row = (
            int(np.searchsorted(borders[1:-1], position + 0.5, side='right'))
            for borders, position in zip(self.edges(*grid), point)
        )
        return row, column


@dataclass(frozen=True)
class Panel:
    """One small picture: a map (rows, columns) over the image, or the image alone.

    Attributes:
        box: tokens to outline, as first and last + 1 along rows, then along columns.
    """

    title: str
    point: tuple[int, int]
    map: np.ndarray | None = None
    box: tuple[tuple[int, int], tuple[int, int]] | None = None


def draw(view: View, title: str, rows: Sequence[Sequence[Panel | None]]) -> Figure:
    """A figure of rows of panels, of which None leaves its place empty.

    Every map has its own colours: from 0 up, or where heads subtract, around 0.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    height, width = view.image.shape[:2]
    shrink = min(1, MAX_DRAWN / max(height, width))
    photo = cv2.resize(view.image, None, fx=shrink, fy=shrink, interpolation=cv2.INTER_AREA)
    grey = cv2.cvtColor(photo, cv2.COLOR_RGB2GRAY)
    columns = max(map(len, rows))
    # A panel gives a tenth of its width to its colour bar, and has a title of up to two lines.
    panel_height = 0.9 * PANEL * min(max(height / width, 0.4), 2) + 0.35
    size = (PANEL * columns + 0.6, panel_height * len(rows) + 0.6)
    figure = Figure(size, dpi=110, layout='constrained')
    figure.suptitle('\n'.join(textwrap.wrap(title, int(13 * size[0]))), fontsize=10)
    for line, panels in zip(figure.subplots(len(rows), columns, squeeze=False), rows):
        for axes, panel in zip(line, [*panels, *[None] * (columns - len(panels))]):
            axes.set(xticks=[], yticks=[], xlim=(0, width), ylim=(height, 0), aspect='equal')
            if panel is None:
                axes.set_axis_off()
                continue
            below = photo if panel.map is None else grey
            axes.imshow(below, cmap='gray', extent=(0, width, height, 0), vmin=0, vmax=255)
            if panel.map is not None:
                colours = _draw_map(axes, view, panel)
                bar = figure.colorbar(colours, ax=axes, fraction=0.05, pad=0.02)
                bar.locator = MaxNLocator(3)
                bar.ax.tick_params(labelsize=7, length=2, pad=1)
            axes.set_title(panel.title, fontsize=8, pad=3)
            x, y = (position + 0.5 for position in panel.point)
            axes.plot(x, y, '*', markersize=9, color='white', markeredgecolor='black')
    return figure


def _draw_map(axes, view: View, panel: Panel):
    """Draw a panel's map over the image; returns what a colour bar needs."""
    x, y = view.edges(*panel.map.shape)
    height, width = view.image.shape[:2]
    visible = panel.map[: np.searchsorted(y, height), : np.searchsorted(x, width)]
    limit = np.abs(visible).max()
    signed = visible.min() < -0.01 * limit  # less cannot be seen
    colours = axes.pcolormesh(
        x,
        y,
        panel.map,
        cmap='RdBu_r' if signed else 'viridis',
        vmin=-limit if signed else 0,
        vmax=limit,
        alpha=0.65,
        linewidth=0,
        antialiased=False,
    )
    if panel.box:
        (top, bottom), (left, right) = panel.box
        corners = (left, top), (right, top), (right, bottom), (left, bottom), (left, top)
        axes.plot([x[i] for i, _ in corners], [y[j] for _, j in corners], 'white', linewidth=1.5)
    return colours
