"""The check for each kind of data set, found by its class.

A check is called as ``check(report, dataset, loaders, splits)`` and returns the classes it saw:
the :class:`~mmivit.datasets.report.DataReport` to add to, the data set (built, not yet read), what
its pipeline loads with, and the splits it serves. Images and label maps go through these loaders,
so the report says what training would get.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from mmengine.dataset import BaseDataset
from mmengine.registry import DATASETS

from mmivit.datasets.coco import check_coco
from mmivit.datasets.label_maps import check_label_maps
from mmivit.datasets.loaders import Loaders, build, find_loaders
from mmivit.datasets.report import DataReport, Finding

Check = Callable[[DataReport, BaseDataset, Loaders, list[str]], set[str]]


class Kind(NamedTuple):
    """A class of data sets, with those derived from it, and their check."""

    module: str
    name: str
    check: Check
    parsers: tuple[str, ...] = ()  # methods; who overrides one of them reads another format


def check_image_folder(
    report: DataReport, dataset: BaseDataset, loaders: Loaders, splits: list[str]
) -> set[str]:
    """That of ``mmivit.ImageFolder``, whose module needs torchvision."""
    from mmivit.datasets.image_folder import check_images

    return check_images(report, dataset, loaders)


KINDS = (
    Kind('mmdet.datasets', 'CocoDataset', check_coco, ('load_data_list', 'parse_data_info')),
    Kind('mmdet.datasets', 'BaseSegDataset', check_label_maps),
    Kind('mmseg.datasets', 'BaseSegDataset', check_label_maps),
    Kind('mmivit.datasets.image_folder', 'ImageFolder', check_image_folder),
)


def find_check(kind: type[BaseDataset]) -> Check | None:
    """The check for a class of data sets; None where it reads a format of its own."""
    for module, name, check, parsers in KINDS:
        # A class derives from one of these only where its module has been imported.
        base = getattr(sys.modules.get(module), name, None)
        if base is not None and issubclass(kind, base):
            own = [parser for parser in parsers if getattr(kind, parser) != getattr(base, parser)]
            return None if own else check
    return None


@dataclass(eq=False)
class Source:
    """A data set, built and not yet read; what its pipelines load with; the splits it serves."""

    dataset: BaseDataset
    loaders: Loaders
    splits: list[str] = field(default_factory=list)

    def serve(self, split: str, loaders: Loaders, with_mask: bool = False) -> None:
        """Note a split that reads it, and what is loaded there besides.

        Args:
            split: 'train', 'val' or 'test'.
            loaders: of that split's pipeline.
            with_mask: whether its evaluator wants masks.
        """
        if split not in self.splits:
            self.splits.append(split)
        self.loaders = Loaders(
            self.loaders.image,
            self.loaders.labels or loaders.labels,
            self.loaders.with_mask or loaders.with_mask or with_mask,
        )


def open_source(node: dict, scope: str | None) -> Source:
    """Build a data set without reading it.

    Args:
        node: the data set, as a config has it, with its pipeline.
        scope: of the config, in which its names are looked up.

    Raises:
        LaunchError: the data set or a loader of its pipeline cannot be built.
    """
    dataset = build(DATASETS, dict(node, pipeline=[], lazy_init=True), scope)
    return Source(dataset, find_loaders(node.get('pipeline') or [], scope))


def check_source(source: Source) -> DataReport:
    """Read every image and annotation of a data set."""
    dataset, splits = source.dataset, source.splits
    kind = type(dataset)
    path = getattr(dataset, 'ann_file', '') or dataset.data_prefix.get('img_path') or ''
    report = DataReport(f'{", ".join(splits)}: {kind.__name__} {path}')
    classes = dataset.metainfo.get('classes') or ()
    check = find_check(kind)
    if isinstance(classes, str):
        report.add([Finding('classes that are one text', f"{classes}: write ('{classes}',)")])
    elif '://' in path:
        report.add([Finding('data sets elsewhere, which are not read here', path)])
    elif check:
        seen = check(report, dataset, source.loaders, splits)
        # Outside training a class may be rare rather than forgotten.
        unseen = [name for name in classes if name not in seen]
        what = 'classes that are never annotated'
        report.add(Finding(what, name, 'train' in splits) for name in unseen)
    else:
        what = 'data sets that are not read: neither like CocoDataset nor BaseSegDataset'
        report.add([Finding(what, kind.__name__)])
    return report
