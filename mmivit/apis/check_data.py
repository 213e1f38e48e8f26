"""Reading a config's data sets before a run does: what is wrong, how often, and where."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence

from mmengine.config import Config

from mmivit.apis.config import check_paths, innermost_datasets, innermost_evaluators, read_config
from mmivit.datasets.checks import Source, check_source, find_check, open_source
from mmivit.datasets.coco import check_coco
from mmivit.datasets.evaluators import check_evaluator, reads_coco_file, wants_masks
from mmivit.datasets.report import DataReport
from mmivit.errors import LaunchError

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
        for path, its in _evaluated(cfg, split, own):
            coco = all(find_check(type(source.dataset)) is check_coco for source in its)
            files = [source.dataset.ann_file for source in its] if coco else []
            judged[(path, *files)] = (reports[its[0]], files)
    for (path, *_), (report, files) in judged.items():
        check_evaluator(report, path, files)
    return list(reports.values())


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


def _evaluated(
    cfg: Config, split: str, sources: list[Source]
) -> Iterator[tuple[str, list[Source]]]:
    """The COCO files that evaluators of a split read, each with the data sets that it judges."""
    node = cfg.get(f'{split}_evaluator')
    evaluators = list(innermost_evaluators(node))
    each = isinstance(node, dict) and 'dataset_prefixes' in node  # one for each data set
    for index, evaluator in enumerate(evaluators):
        if reads_coco_file(evaluator, cfg.get('default_scope')):
            yield evaluator['ann_file'], sources[index : index + 1] if each else sources
