"""Solar cells for classification: the electroluminescence photographs of ``elpv-dataset``.

Each is of one cell, with the probability of a defect and the cell's type. How to get the package:
:mod:`mmivit.datasets.photographs`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from mmivit.datasets.photographs import package_folder, read_image, write_image, write_photographs
from mmivit.utils.text import printable

CELL_CLASSES = ('sound', 'defective')  # timm numbers folders by the alphabet: 0 is defective
UNSURE = 'unsure'  # a probability between 0 and 1
CELL_TYPES = ('mono', 'poly')
FOLDER_SPLITS = ('train', 'validation')  # as timm calls them

CHOOSING = 1  # to be raised whenever the same spec would write other files
SHRINK = cv2.INTER_AREA  # without aliasing
STRETCH = 60  # consecutive cells that stay together; most modules have as many
HELD_OUT = 4  # of so many stretches one is held out


@dataclass(frozen=True)
class CellsSpec:
    """What makes the solar-cell data set: equal specs give equal files.

    Args:
        size: side of the square images, pixels; the photographs have 300.
        seed: seed of the split and of the choice of sound cells.
    """

    size: int = 128
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (('size', 32), ('seed', 0)):
            if getattr(self, name) < least:
                raise ValueError(f'{name}={getattr(self, name)}: expected at least {least}')


class Cell(NamedTuple):
    """A solar cell's photograph, its type and class."""

    path: Path
    type: str
    label: str


def write_cells(source: str | Path, root: str | Path, spec: CellsSpec, force: bool = False) -> bool:
    """Sort the photographs of ``elpv-dataset`` into folders as timm's ``ImageFolder`` reads them.

        root/{train,validation}/{sound,defective}/cell0001.png
        root/photographs.json                                    the spec, written last
        root/split.json                                          what is in which split

    Sound cells have a defect probability of 0, defective ones of 1; those between are left out. Of
    either type, mono- and polycrystalline, a split has as many sound cells as defective ones, so
    that chance is 50 % and the type says nothing: cells beyond that, drawn by the seed, are left
    out as well.

    Cells of one module look alike and are often defective together, so a split by cell would
    measure how well modules are recognised. The package doesn't say which of the 44 modules a cell
    is of, but they seem to stand in order: the type changes mostly after multiples of 60 cells,
    and neighbours look alike. So the split is by stretches of consecutive cells
    (:func:`hold_out`); a module that a stretch's border cuts may still be in both.

    Args:
        source: folder where the wheel was unpacked.
        root: folder to write; complete or not there, whenever the process is stopped.
        spec: size and split.
        force: replace the data set of photographs that the folder holds.

    Returns:
        False if the folder holds this very data set already, and nothing was written.

    Raises:
        OSError: the package's files are not there, or ``root`` holds something else.
        ValueError: labels.csv is damaged, or a split has no cells of a class.
    """
    cells = read_cells(source)
    held_out = hold_out(cells, spec.seed)
    rng = np.random.default_rng((spec.seed, 1))
    chosen: list[tuple[str, Cell]] = []
    table = []
    for split, here in zip(FOLDER_SPLITS, (~held_out, held_out)):
        for kind in CELL_TYPES:
            found: dict[str, list[Cell]] = {label: [] for label in (*CELL_CLASSES, UNSURE)}
            for cell, is_here in zip(cells, here):
                if is_here and cell.type == kind:
                    found[cell.label].append(cell)
            count = min(len(found[label]) for label in CELL_CLASSES)
            if not count:
                raise ValueError(f'{split} has no {kind} cells of both classes; try another seed')
            for label in CELL_CLASSES:
                picked = sorted(rng.permutation(len(found[label]))[:count])
                chosen += [(split, found[label][i]) for i in picked]
            row = dict(split=split, type=kind, **dict.fromkeys(CELL_CLASSES, count))
            row.update({f'{name}_left_out': len(found[name]) - count for name in CELL_CLASSES})
            table.append(row | {f'{UNSURE}_left_out': len(found[UNSURE])})
    wanted = dict(photographs='cells', choosing=CHOOSING, **asdict(spec))

    def write(folder: Path) -> None:
        for split in FOLDER_SPLITS:
            for label in CELL_CLASSES:
                (folder / split / label).mkdir(parents=True)
        for split, cell in chosen:
            image = cv2.resize(read_image(cell.path), (spec.size, spec.size), None, 0, 0, SHRINK)
            write_image(folder / split / cell.label / f'{cell.path.stem}.png', image)

    return write_photographs(root, wanted, table, len(chosen), write, force)


def read_cells(source: str | Path) -> list[Cell]:
    """The cells of an unpacked ``elpv-dataset``, in its order; label 'unsure' between 0 and 1.

    Raises:
        OSError: labels.csv isn't there, or a picture it names.
        ValueError: a line of labels.csv isn't a path, a probability and a type.
    """
    table = package_folder(source, 'elpv_dataset/data', 'elpv-dataset') / 'labels.csv'
    if not table.is_file():
        raise FileNotFoundError(f'{table} is not there; unpack the wheel of elpv-dataset again')
    cells = []
    for number, line in enumerate(table.read_text('utf-8').splitlines(), 1):
        try:
            name, chance, kind = line.split()
            if not 0 <= float(chance) <= 1 or kind not in CELL_TYPES:
                raise ValueError
        except ValueError:
            raise ValueError(
                f'{table}, line {number}: expected a path, a probability and mono or poly, '
                f'found {printable(line)!r}'
            ) from None
        # The file's own folders don't count: a stranger's path could lead anywhere.
        path = table.parent / 'images' / Path(name).name
        if not path.is_file():
            raise FileNotFoundError(f'{table}, line {number}: {printable(path)} is not there')
        label = {0.0: 'sound', 1.0: 'defective'}.get(float(chance), UNSURE)
        cells.append(Cell(path, kind, label))
    return cells


def hold_out(cells: Sequence[Cell], seed: int) -> np.ndarray:
    """Which cells (n,) are for validation, by stretches of consecutive cells of one type.

    Stretches have up to STRETCH cells. Those of one type are put in order of their share of
    defective cells, and of every HELD_OUT of them one, drawn by the seed, is held out: both splits
    have modules in good and in bad repair.
    """
    stretches: dict[str, list[list[int]]] = {kind: [] for kind in CELL_TYPES}
    for index, cell in enumerate(cells):
        of_type = stretches[cell.type]
        if not of_type or of_type[-1][-1] != index - 1 or len(of_type[-1]) == STRETCH:
            of_type.append([])
        of_type[-1].append(index)
    rng = np.random.default_rng(seed)
    held_out = np.zeros(len(cells), bool)
    for of_type in stretches.values():
        of_type.sort(key=lambda stretch: _share_defective([cells[i] for i in stretch]))
        for start in range(0, len(of_type), HELD_OUT):
            group = of_type[start : start + HELD_OUT]
            # Drawn out of a whole group even where the last is short, for equal chances.
            drawn = int(rng.integers(HELD_OUT))
            if drawn < len(group):
                held_out[group[drawn]] = True
    return held_out


def _share_defective(cells: Sequence[Cell]) -> float:
    count = Counter(cell.label for cell in cells)
    return count['defective'] / max(1, count['defective'] + count['sound'])
