"""A graph in onnxruntime beside torch: the same images, and the largest difference."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from mmivit.errors import ExportError
from mmivit.export.runtime import GraphError, open_graph

# Batch, height, width of the images a graph is checked with: the smallest, odd sides, a landmark
# grid that is clamped on one side alone, a batch, and a large one.
SIZES = ((1, 31, 31), (2, 112, 137), (1, 64, 400), (4, 224, 224), (1, 800, 1333))
TOLERANCE = 1e-4
COLUMNS = ('model', 'batch x height x width', 'largest difference')


class Parity(NamedTuple):
    """How a graph compares with torch at one size."""

    batch: int
    height: int  # pixels
    width: int
    difference: float  # the largest absolute one, in units of the largest value

    def cells(self, model: str) -> list[str]:
        """A row of a table of :data:`COLUMNS`."""
        return [model, f'{self.batch} x {self.height} x {self.width}', f'{self.difference:.1e}']

    @staticmethod
    def summary(parities: Sequence[Parity]) -> str:
        """A phrase for all sizes."""
        return f'within {max(parity.difference for parity in parities):.1e}'


class Pair(NamedTuple):
    """A graph and torch on the same images (B, C, H, W), each to be called."""

    shape: tuple[int, int, int, int]
    torch: Callable[[], Sequence[Tensor]]
    onnx: Callable[[], Sequence[np.ndarray]]

    def measure(self) -> Parity:
        """Run both.

        Raises:
            ExportError: the graph's engine fails.
        """
        difference = _difference(self.torch(), run_graph(self.onnx, self.shape))
        batch, _, height, width = self.shape
        return Parity(batch, height, width, difference)

    def compare(self) -> Parity:
        """Run both, and raise ExportError also if they differ by more than :data:`TOLERANCE`."""
        parity = self.measure()
        if not parity.difference <= TOLERANCE:  # neither is NaN
            raise ExportError(
                f'the graph differs from torch by {parity.difference:.1e} at '
                f'{" x ".join(map(str, self.shape))}, more than {TOLERANCE:.0e}; '
                'nothing was written'
            )
        return parity


def check_parity(
    path: Path,
    reference: Callable[[Tensor], Sequence[Tensor]],
    channels: int,
    sizes: Sequence[tuple[int, int, int]],
) -> list[Parity]:
    """Compare a graph in onnxruntime with torch on noise.

    Args:
        path: the graph.
        reference: what the graph should compute: images (B, channels, H, W), whole numbers 0 to
            255, to what it gives.
        channels: of the image.
        sizes: batch, height, width.

    Raises:
        ExportError: they differ by more than :data:`TOLERANCE`, or onnxruntime fails.
    """
    return [pair.compare() for pair in pairs(path, reference, channels, sizes)]


def pairs(
    path: Path,
    reference: Callable[[Tensor], Sequence[Tensor]],
    channels: int,
    sizes: Sequence[tuple[int, int, int]],
) -> Iterator[Pair]:
    """The graph and torch at each size, arguments as in :func:`check_parity`."""
    run, _ = open_beside_torch(path)
    generator = torch.Generator().manual_seed(0)
    for batch, height, width in tqdm(sizes, desc='checking the graph', unit='size'):
        shape = (batch, channels, height, width)
        images = torch.randint(256, shape, generator=generator).float()
        yield Pair(
            shape,
            torch.no_grad()(partial(reference, images)),
            partial(run, images.numpy()),
        )


def open_beside_torch(path: Path) -> tuple[Callable, dict[str, str]]:
    """:func:`mmivit.export.runtime.open_graph` on the CPU, with as many threads as torch has.

    Raises:
        ExportError: its engine is missing, or cannot read it.
    """
    try:
        return open_graph(path, torch.get_num_threads())
    except GraphError as error:
        raise ExportError(str(error)) from error


def run_graph(
    graph: Callable[[], Sequence[np.ndarray]], size: Sequence[int]
) -> Sequence[np.ndarray]:
    """What a graph gives for images of a size; ExportError if its engine fails."""
    try:
        return graph()
    except Exception as error:  # those of the engines have no base class of their own
        size_text = ' x '.join(map(str, size))
        raise ExportError(f'the graph cannot be run at {size_text}: {error}') from error


def _difference(expected: Sequence[Tensor], found: Sequence[np.ndarray]) -> float:
    """The largest over the outputs, each in units of its largest value."""
    if [tuple(y.shape) for y in expected] != [y.shape for y in found]:
        return float('inf')
    return max(
        float(np.abs(y.numpy() - z).max() / np.abs(y.numpy()).max())
        for y, z in zip(expected, found)
    )
