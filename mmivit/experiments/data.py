"""The data sets of the experiments that are made on drawn images and on photographs alike."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from mmivit.datasets.scenes import CLASSES
from mmivit.datasets.shapes import ShapesSpec, write_dataset
from mmivit.datasets.solar_cells import CellsSpec, write_cells
from mmivit.datasets.tree_crowns import TREE_CLASSES, TreesSpec, write_trees

TREES = TreesSpec(size=200)  # crowns are 20 to 60 pixels wide


class Sizes(Protocol):
    """What the budget of an experiment says of its data.

    Args:
        size: side of a classifier's images, pixels; they are written at twice that, too.
        downstream_size: side of drawn images to segment and to detect in, pixels.
        images: drawn training images of each task.
        held_out: drawn images to be scored on; four times as many for a classifier.
    """

    size: int
    downstream_size: int
    images: int
    held_out: int


@dataclass(frozen=True)
class Data:
    """Folders of the data sets.

    Args:
        classification: images in folders by class, by the side of the images in pixels.
        downstream: by task.
        classes: names of the objects to detect.
    """

    classification: dict[int, Path]
    downstream: dict[str, Path]
    classes: tuple[str, ...]


def drawn(folder: Path, budget: Sizes) -> Data:
    """Drawn images: one of five shapes to classify; scenes to segment and to detect in."""
    sides = {side: folder / f'classify_{side}' for side in (budget.size, 2 * budget.size)}
    for side, root in sides.items():
        spec = ShapesSpec(budget.images, 4 * budget.held_out, side)
        write_dataset(root, spec, classification=True)
    scenes = folder / f'scenes_{budget.downstream_size}'
    write_dataset(scenes, ShapesSpec(budget.images, budget.held_out, budget.downstream_size))
    return Data(sides, dict(segmentation=scenes, detection=scenes), CLASSES)


def photographs(wheels: Path, folder: Path, budget: Sizes, trees: TreesSpec = TREES) -> Data:
    """Photographs: solar cells to classify, tree crowns to detect.

    Args:
        wheels: folder where the wheels of ``elpv-dataset`` and ``deepforest`` were unpacked.
        folder: the data sets go here.
        budget: sizes.
        trees: how the tree crowns' photographs are cut and split.

    Raises:
        OSError: the packages' files are not there.
    """
    sides = {side: folder / f'cells_{side}' for side in (budget.size, 2 * budget.size)}
    for side, root in sides.items():
        write_cells(wheels, root, CellsSpec(side))
    write_trees(wheels, folder / 'trees', trees)
    return Data(sides, dict(detection=folder / 'trees'), TREE_CLASSES)


def write_data(folder: Path, budget: Sizes, wheels: Path | None = None) -> Data:
    """:func:`drawn` images or, of unpacked wheels, :func:`photographs`."""
    return photographs(wheels, folder, budget) if wheels else drawn(folder, budget)
