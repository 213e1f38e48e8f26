"""Reading a config's data sets before a run does: what is wrong, how often, and where."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence

from mmengine.config import Config
from mmengine.registry import DATASETS

from mmivit.apis.config import check_paths, innermost_datasets, innermost_evaluators, read_config
from mmivit.datasets.checks import Source, check_source, find_check, open_source
from mmivit.datasets.coco import check_coco
from mmivit.datasets.coco_file import CocoFile
from mmivit.datasets.evaluators import evaluator_findings, reads_coco_file, wants_masks
from mmivit.datasets.loaders import build
from mmivit.datasets.preflight import (
    check_class_names,
    check_evaluated,
    check_masks,
    check_numbering,
)
from mmivit.datasets.report import DataReport, Finding
from mmivit.errors import LaunchError
from mmivit.registry import class_of, derives_from

SPLITS = ('train', 'val', 'test')


def check_datasets(
    config: str, splits: Sequence[str] | None = None, cfg_options: dict | None = None
) -> list[DataReport]:
    """Read every image and annotation of a config's data sets, through wrappers of any depth.

    Args:
        config: path of an mmdet or mmseg config.
        splits: which of 'train', 'val', 'test'; all that the config has if not given.
        cfg_options: what to override in the config, by dotted key.

    Returns:
        A report for each data set; one that several splits share is read once.

    Raises:
        LaunchError: the config, a split or a folder is missing, or a data set cannot be built.
    """
    cfg = read_config(config, cfg_options=cfg_options)
    present = [split for split in SPLITS if cfg.get(f'{split}_dataloader')]
    for split in splits or SPLITS[: not present]:
        if split not in present:
            raise LaunchError(
                f'{config} has no {split}_dataloader; it has those of: {", ".join(present) or "-"}'
            )
    check_paths(cfg, tuple(splits or present))
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what Pillow warns of is reported, or harmless
        of_split = open_sources(cfg, splits or present)
        sources = dict.fromkeys(source for own in of_split.values() for source in own)
        reports = {source: check_source(source) for source in sources}
    judged = {}
    for split, own in of_split.items():
        for evaluator, its in _evaluators(cfg, split, own):
            coco = all(find_check(type(source.dataset)) is check_coco for source in its)
            files = tuple(source.dataset.ann_file for source in its) if coco else ()
            judged[evaluator['ann_file'], files] = reports[its[0]]
    for (path, files), report in judged.items():
        try:
            loaded = [CocoFile.read(file) for file in files]
            report.add(evaluator_findings(CocoFile.read(path), loaded))
        except ValueError as error:
            if path not in files:  # else it has been said
                report.add([Finding('annotation files that are not JSON', str(error))])
    return list(reports.values())


def check_before_run(cfg: Config, splits: Sequence[str]) -> list[str]:
    """Check a run's COCO files and folders of images for what would end it, or spoil its score.

    Args:
        cfg: the config; files that are not there are left out.
        splits: which of 'train', 'val', 'test' will be read.

    Returns:
        Warnings, of a line each.

    Raises:
        LaunchError: in one line, what is wrong and what to do.
    """
    doubts: list[str] = []
    trained: list[CocoFile] = []
    for split in splits:
        try:
            _check_folders(cfg, split)
            files = _check_split(cfg, split, trained, doubts)
        except (LaunchError, ValueError) as error:
            raise LaunchError(f'{split} data: {error}') from error
        trained += files if split == 'train' else []
    return doubts


def _check_folders(cfg: Config, split: str) -> None:
    scope = cfg.get('default_scope')
    for node in innermost_datasets(cfg.get(f'{split}_dataloader')):
        kind = class_of(DATASETS, node, scope)
        if derives_from(kind, 'mmivit.datasets.image_folder', 'ImageFolder'):
            from mmivit.datasets.image_folder import check_readable

            check_readable(build(DATASETS, node, scope))


def _check_split(
    cfg: Config, split: str, trained: list[CocoFile], doubts: list[str]
) -> list[CocoFile]:
    """Check one split against the files trained on; the COCO files of its labelled data sets."""
    scope = cfg.get('default_scope')
    nodes = list(innermost_datasets(cfg.get(f'{split}_dataloader')))
    coco = [node for node in nodes if find_check(class_of(DATASETS, node, scope)) is check_coco]
    sources = [open_source(node, scope) for node in coco]
    sources = [source for source in sources if os.path.isfile(source.dataset.ann_file)]
    files: dict[str, CocoFile] = {}
    for source in sources:
        if split == 'train' and source.loaders.labels is None:
            continue
        path, classes = source.dataset.ann_file, source.dataset.metainfo['classes']
        file = files[path] = CocoFile.read(path)
        doubts += check_class_names(file, classes, evaluated=split != 'train')
        if source.loaders.with_mask:
            check_masks(file, classes, f'the {split} pipeline')
        for other in trained:
            check_numbering(other, file, classes)
    for evaluator, its in _evaluators(cfg, split, sources):
        path, classes = evaluator['ann_file'], its[0].dataset.metainfo['classes']
        file = files.get(path) or CocoFile.read(path)
        doubts += check_class_names(file, classes, evaluated=True)
        loaded = [files[source.dataset.ann_file] for source in its]
        doubts += check_evaluated(file, loaded if len(sources) == len(nodes) else [])
        if wants_masks(evaluator):
            check_masks(file, classes, f'the {split} evaluator')
    return list(files.values())


def open_sources(cfg: Config, splits: Sequence[str]) -> dict[str, list[Source]]:
    """The data sets of each split; what several share is one, with all that any of them loads.

    Raises:
        LaunchError: a data set or a loader cannot be built.
    """
    scope = cfg.get('default_scope')
    shared: dict[str, Source] = {}
    of_split: dict[str, list[Source]] = {}
    for split in splits:
        evaluators = innermost_evaluators(cfg.get(f'{split}_evaluator'))
        masks = any(wants_masks(e) for e in evaluators if reads_coco_file(e, scope))
        own = of_split[split] = []
        for node in innermost_datasets(cfg[f'{split}_dataloader']):
            key = repr({name: value for name, value in node.items() if name != 'pipeline'})
            opened = open_source(node, scope)
            own.append(shared.setdefault(key, opened))
            own[-1].serve(split, opened.loaders, masks)
    return of_split


def _evaluators(
    cfg: Config, split: str, sources: list[Source]
) -> Iterator[tuple[dict, list[Source]]]:
    """The evaluators of a split that read a COCO file, each with the data sets that it judges."""
    node = cfg.get(f'{split}_evaluator')
    each = isinstance(node, dict) and 'dataset_prefixes' in node  # a metric for each data set
    for index, evaluator in enumerate(innermost_evaluators(node)):
        its = sources[index : index + 1] if each else sources
        if its and reads_coco_file(evaluator, cfg.get('default_scope')):
            yield evaluator, its
