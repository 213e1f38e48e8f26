"""Reading a config's data sets before a run does: what is wrong, how often, and where."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

from mmivit.apis.config import check_paths, innermost_datasets, read_config
from mmivit.datasets.checks import check_dataset
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
    nodes: dict[str, tuple[dict, dict[str, None]]] = {}
    for split in splits or present:
        for node in innermost_datasets(cfg[f'{split}_dataloader']):
            key = repr({name: value for name, value in node.items() if name != 'pipeline'})
            nodes.setdefault(key, (node, {}))[1][split] = None
    scope = cfg.get('default_scope')
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # what Pillow warns of is reported, or harmless
        return [check_dataset(node, list(of), scope) for node, of in nodes.values()]
