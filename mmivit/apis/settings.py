"""Settings that have no weights: those of a run beside those that its checkpoint was trained with.

Landmarks, the mean of the images or the size they are tested at can differ, and every tensor fits:
the scores are wrong without a word. A checkpoint of MMEngine's holds its config.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from mmengine.config import Config

from mmivit.apis.config import tested_dataset
from mmivit.utils.text import printable
from mmivit.weights.stored_config import CLASSES, UNKNOWN, stored_config, with_defaults

# What training alone asks for, or what is chosen for each test.
IGNORED = re.compile(
    r'.*\.('
    r'auxiliary_head|backend_args|batch_augments|drop\w*|file_client_args|frozen_stages|'
    r'ignore_index|init_cfg|loss\w*|mask_pad_value|meta_keys|norm_eval|pad_mask|pad_seg|pretrained|'
    r'requires_grad|sampler|seg_pad_val|test_cfg|train_cfg|with_cp|_scope_|data_preprocessor\.size)'
)
# Steps of a pipeline that leave the image alone.
NO_IMAGE = re.compile(r'Load\w*Annotations|Pack\w*')
ABSENT = 'absent'


def differing_settings(cfg: Config, name: str, checkpoint: dict | None) -> list[str]:
    """Warn of settings that differ from those that a checkpoint was trained with.

    Those of the model and of the steps of the test pipeline are compared that both configs name,
    and an iViT's with their defaults.

    Args:
        cfg: the run's config.
        name: the checkpoint's, for the warning.
        checkpoint: what it holds; None or without a config there is nothing to compare with.

    Returns:
        The warning with both values of each, or nothing.
    """
    stored = stored_config(checkpoint or {})
    if not stored:
        return []
    pairs = zip(_settings(stored).items(), _settings(cfg.to_dict()).values())
    lines = [
        f'    {path} is {_short(here)} here, {_short(there)} in the checkpoint'
        for (part, theirs), own in pairs
        for path, there, here in _compare(part, theirs, own)
    ]
    if not lines:
        return []
    return [
        '\n'.join(
            [
                f'{name} was trained with other settings than it is used with:',
                *lines,
                '  If that is not meant, take its own config or set them by --cfg-options.',
            ]
        )
    ]


def _settings(config: dict[str, Any]) -> dict[str, Any]:
    """A config's model and the steps of its test pipeline by their names, in plain values."""
    steps = _plain(tested_dataset(config).get('pipeline'))
    named: dict[str, Any] = {}
    for step in steps if isinstance(steps, list) else []:
        kind = _class(step.get('type')) if isinstance(step, dict) else ''
        if kind and not NO_IMAGE.fullmatch(kind):
            named.setdefault(kind, step)
    return {'model': _plain(config.get('model')), 'test pipeline': named}


def _plain(value: Any) -> Any:
    """A value as :func:`stored_config` would read it."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, type):
        return value.__name__
    return value if value is None or isinstance(value, (str, int, float)) else UNKNOWN


def _compare(path: str, there: Any, here: Any) -> Iterator[tuple[str, Any, Any]]:
    """Paths below one, and their two values, where they differ."""
    if isinstance(there, dict) and isinstance(here, dict):
        kind = _class(here.get('type'))
        if kind in CLASSES and kind == _class(there.get('type')):
            there, here = with_defaults(there), with_defaults(here)
        if path == 'test pipeline' and there and here:  # each step is done to the image
            steps = dict.fromkeys([*there, *here], ABSENT)
            there, here = {**steps, **there}, {**steps, **here}
        for key in there:
            if key in here and not IGNORED.fullmatch(f'{path}.{key}'):
                ends = (there[key], here[key])
                one, other = map(_class, ends) if key == 'type' else ends
                yield from _compare(f'{path}.{key}', one, other)
    elif isinstance(there, list) and isinstance(here, list) and len(there) == len(here):
        differing = [
            difference
            for i, (one, other) in enumerate(zip(there, here))
            for difference in _compare(f'{path}.{i}', one, other)
        ]
        plain = not any(isinstance(item, (dict, list)) for item in (*there, *here))
        yield from [(path, there, here)] if plain and differing else differing
    elif there != here and UNKNOWN not in (there, here):
        yield path, there, here


def _class(kind: Any) -> str:
    """A class by its own name; SyncBN computes what BN does."""
    return str(kind).rpartition('.')[2].removeprefix('Sync')


def _short(value: Any) -> str:
    return ABSENT if value is ABSENT else printable(repr(value), 120)
