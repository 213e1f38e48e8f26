"""Checkpoints: loading MMEngine's under ``weights_only``, and saying what was loaded."""

from __future__ import annotations

import logging
from pickle import UnpicklingError

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.utils import digit_version
from torch import Tensor, nn


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: unsafe, unreadable, or of something else."""


# torch 2.6 made `weights_only` the default and its allow-list able to hold stand-ins.
HAS_ALLOW_LIST = digit_version(torch.__version__) >= digit_version('2.6.0')
MAX_LISTED = 8  # names listed per group of a load report


def allow_mmengine_checkpoints() -> None:
    """Allow-list exactly what an MMEngine checkpoint holds besides tensors.

    From torch 2.6 on ``torch.load`` refuses pickled objects unless they are allow-listed, and
    MMEngine 0.10 calls it without further ado, so that it cannot read its own checkpoints. What
    they hold is the log history: HistoryBuffer objects, numpy arrays and scalars. A HistoryBuffer
    pickles its statistics as ``getattr(HistoryBuffer, 'mean')``; ``getattr`` itself would open
    every door, so a stand-in that answers for those four alone is registered under its name.

    Older versions of torch have no such list and nothing to allow.
    """
    if not HAS_ALLOW_LIST:
        return
    log_values = [np.array([], dtype=kind).dtype for kind in ('f4', 'f8', 'i4', 'i8')]
    reconstruct = np.zeros(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    allowed = [HistoryBuffer, np.ndarray, np.dtype, *{type(dtype) for dtype in log_values}]
    # numpy 2 moved `numpy.core` to `numpy._core`: read the checkpoints of both.
    for core in ('numpy.core', 'numpy._core'):
        allowed.append((reconstruct, f'{core}.multiarray._reconstruct'))
        allowed.append((scalar, f'{core}.multiarray.scalar'))
    for builtins in ('builtins', '__builtin__'):
        allowed.append((_get_statistic, f'{builtins}.getattr'))
    torch.serialization.add_safe_globals(allowed)


def _get_statistic(owner: object, name: str) -> object:
    """Stand-in for ``getattr`` while unpickling: a HistoryBuffer's statistics, nothing else."""
    if owner is HistoryBuffer and name in ('mean', 'min', 'max', 'current'):
        return getattr(HistoryBuffer, name)
    raise UnpicklingError(
        f'refused: the checkpoint asks for the attribute {name!r} of {owner!r}, which no '
        'MMEngine checkpoint needs. Do not trust this file.'
    )


def check_readable(path: str) -> None:
    """Check that a checkpoint file loads as data, before a run is built around it.

    Raises:
        CheckpointError: it is damaged, no checkpoint at all, or would run code.
    """
    if '://' in path or not HAS_ALLOW_LIST:
        return
    try:
        torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = (str(error).strip() or 'it is empty').splitlines()[0]
        raise CheckpointError(
            f'{path} was not loaded, it is damaged, no checkpoint, or not safe to load: '
            f'{type(error).__name__}: {reason}'
        ) from error


def report_loading(module: nn.Module, state_dict: dict[str, Tensor], prefix: str = '') -> None:
    """Log which tensors of a state dict fit a module, and refuse one of which nothing does.

    Meant to be called from the module's ``_load_from_state_dict``, through which every way of
    loading passes.

    Args:
        module: the module about to be loaded.
        state_dict: everything the loader was given.
        prefix: what the module's own names start with in it.

    Raises:
        CheckpointError: not one tensor fits by name and shape.
    """
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {
        name[len(prefix) :]: tuple(getattr(tensor, 'shape', ()))
        for name, tensor in state_dict.items()
        if name.startswith(prefix)
    }
    name = type(module).__name__
    matched = [key for key in expected if found.get(key) == expected[key]]
    if not matched:
        # A loader hands a sub-module only what begins with its name: often nothing at all.
        raise CheckpointError(
            f'{name}: none of the loaded tensors fits any of its {len(expected)}.\n'
            f'  found:    {_listed(list(state_dict)) or f"none that begins with {prefix!r}"}\n'
            f'  expected: {_listed([prefix + key for key in expected])}\n'
            '  Is this a checkpoint of another model, or of a part of one?'
        )
    reshaped = [
        f'{key} {found[key]} instead of {expected[key]}'
        for key in expected
        if key in found and found[key] != expected[key]
    ]
    problems = {
        'missing': [prefix + key for key in expected if key not in found],
        'unexpected': [prefix + key for key in found if key not in expected],
        'of another shape': [prefix + line for line in reshaped],
    }
    lines = [f'{name}: {len(matched)} of {len(expected)} tensors found']
    lines += [f'  {len(keys)} {what}: {_listed(keys)}' for what, keys in problems.items() if keys]
    level = logging.INFO if len(lines) == 1 else logging.WARNING
    print_log('\n'.join(lines), logger='current', level=level)


def _listed(names: list[str]) -> str:
    more = len(names) - MAX_LISTED
    return ', '.join(names[:MAX_LISTED]) + (f' and {more} more' if more > 0 else '')
