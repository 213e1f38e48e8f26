"""Splits by group: what belongs together, such as the tiles of one photograph, is never divided."""

from __future__ import annotations

import csv
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from mmivit.errors import LaunchError
from mmivit.utils.text import listed

FOLDER = 'folder'
# A name that ends in two short numbers, perhaps with a letter before each: photo_x0_y400
TILE = re.compile(r'(.+?)[_\-. ]+[A-Za-z]*(\d{1,5})[_\-. ]+[A-Za-z]*(\d{1,5})$')


def find_groups(names: Sequence[str], rule: str | None) -> dict[str, str]:
    """The group of each image.

    Args:
        names: of the images, as paths below their folder, with '/'.
        rule: None for a group of each image by itself; 'folder'; a file of lines ``image,group``;
            or a regular expression that is searched in the name without suffix and whose first
            group, or else all that it matches, is the group.

    Raises:
        LaunchError: the rule gives an image no group.
    """
    if rule is None:
        return {name: name for name in names}
    if rule == FOLDER:
        return {name: name.rpartition('/')[0] or '.' for name in names}
    if Path(rule).is_file():
        with open(rule, encoding='utf-8', newline='') as file:
            groups = {row[0].strip(): row[1].strip() for row in csv.reader(file) if len(row) > 1}
    elif rule.endswith(('.csv', '.txt')):
        raise LaunchError(f'--group: no file {rule}, seen from {Path.cwd()}')
    else:
        try:
            pattern = re.compile(rule)
        except re.error as error:
            raise LaunchError(
                f"--group {rule}: neither 'folder', nor a file, nor a regular expression: {error}"
            ) from error
        matches = {name: pattern.search(name.rpartition('.')[0]) for name in names}
        groups = {
            name: match[min(1, pattern.groups)] or '' for name, match in matches.items() if match
        }
    missing = [name for name in names if name not in groups]
    if missing:
        raise LaunchError(
            f'--group {rule} gives {len(missing)} of {len(names)} images no group: '
            f'{listed(missing)}'
        )
    return {name: groups[name] for name in names}


def looks_tiled(names: Sequence[str]) -> str | None:
    """The beginning of names that several images share whose ends are places on a grid."""
    places: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        match = TILE.match(name.rpartition('.')[0])
        if match:
            places[match[1]].append((match[2], match[3]))
    for start, ends in places.items():
        rows, columns = Counter(one for one, _ in ends), Counter(other for _, other in ends)
        if max(rows.values()) > 1 and max(columns.values()) > 1:
            return start
    return None


def hold_out(groups: dict[str, str], val: str | Sequence[str], seed: int = 0) -> set[str]:
    """The groups that are held out for validation.

    Args:
        groups: of each image.
        val: a share of the images, or the names of the groups.
        seed: of the order in which groups are drawn.

    Raises:
        LaunchError: a name is no group's, or one side would be empty.
    """
    sizes = Counter(groups.values())
    wanted = [val] if isinstance(val, str) else list(val)
    try:
        share = float(wanted[0]) if len(wanted) == 1 and wanted[0] not in sizes else None
    except ValueError:
        share = None
    if share is None:
        unknown = [name for name in wanted if name not in sizes]
        if unknown:
            raise LaunchError(
                f'--val {listed(unknown)}: no such group; there are {listed(sorted(sizes))}'
            )
        held = set(wanted)
    else:
        if not 0 < share < 1:
            raise LaunchError(f'--val {share:g}: a share of the images is between 0 and 1')
        held = _draw(sizes, share * len(groups), seed)
    if not held or held == set(sizes):
        raise LaunchError(
            f'{len(sizes)} group(s) of images ({listed(sorted(sizes))}) leave training or '
            'validation empty: two at least are needed, see --group and --val'
        )
    return held


def _draw(sizes: Counter[str], target: float, seed: int) -> set[str]:
    """Groups of about so many images in all, drawn one after the other while they fit."""
    order = np.random.default_rng(seed).permutation(sorted(sizes)).tolist()
    held: set[str] = set()
    count = 0
    for name in order:
        if count + sizes[name] <= max(1.0, target):
            held.add(name)
            count += sizes[name]
    return held or {min(order, key=sizes.__getitem__)}
