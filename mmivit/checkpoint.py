"""Checkpoints: loading MMEngine's under ``weights_only``, and saying what was loaded."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import BinaryIO

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
    MMEngine 0.10 calls it without further ado, so that it cannot read its own checkpoints.

    Older versions of torch have no such list; there :func:`read_checkpoint` applies it.
    """
    if HAS_ALLOW_LIST:
        torch.serialization.add_safe_globals([(value, name) for name, value in _allowed().items()])


def _allowed() -> dict[str, object]:
    """What an MMEngine checkpoint's log history pickles, by name.

    HistoryBuffer objects, numpy arrays and scalars. A HistoryBuffer pickles its statistics as
    ``getattr(HistoryBuffer, 'mean')``; ``getattr`` itself would open every door, so a stand-in
    that answers for those four alone is registered under its name.
    """
    log_values = [np.array([], dtype=kind).dtype for kind in ('f4', 'f8', 'i4', 'i8')]
    types = [HistoryBuffer, np.ndarray, np.dtype, *{type(dtype) for dtype in log_values}]
    allowed = {f'{kind.__module__}.{kind.__qualname__}': kind for kind in types}
    # numpy 2 moved `numpy.core` to `numpy._core`: read the checkpoints of both.
    for core in ('numpy.core', 'numpy._core'):
        allowed[f'{core}.multiarray._reconstruct'] = np.zeros(0).__reduce__()[0]
        allowed[f'{core}.multiarray.scalar'] = np.float64(0).__reduce__()[0]
    for builtins in ('builtins', '__builtin__'):
        allowed[f'{builtins}.getattr'] = _get_statistic
    return allowed


def _get_statistic(owner: object, name: str) -> object:
    """Stand-in for ``getattr`` while unpickling: a HistoryBuffer's statistics, nothing else."""
    if owner is HistoryBuffer and name in ('mean', 'min', 'max', 'current'):
        return getattr(HistoryBuffer, name)
    raise pickle.UnpicklingError(
        f'refused: the checkpoint asks for the attribute {name!r} of {owner!r}, which no '
        'MMEngine checkpoint needs. Do not trust this file.'
    )


def read_checkpoint(path: str | Path) -> dict:
    """Read a local checkpoint as data: nothing in it can run code.

    Args:
        path: a ``.pth`` file.

    Returns:
        What it holds, tensors on the CPU.

    Raises:
        CheckpointError: it is damaged, no checkpoint at all, or would run code.
    """
    # `weights_only` of older versions cannot be told what to allow; their unpickler can.
    safely = dict(weights_only=True) if HAS_ALLOW_LIST else dict(pickle_module=_SafePickle)
    try:
        checkpoint = torch.load(path, map_location='cpu', **safely)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        reason = (str(error).strip() or 'it is empty').splitlines()[0]
        raise CheckpointError(
            f'{path} was not loaded, it is damaged, no checkpoint, or not safe to load: '
            f'{type(error).__name__}: {reason}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint')
    return checkpoint


class _SafePickle:
    """A ``pickle_module`` for torch before 2.6 that knows tensors and :func:`_allowed` only."""

    __name__ = 'safe'
    TENSORS = (
        'collections.OrderedDict',
        '_codecs.encode',
        'torch.Size',
        'torch._utils._rebuild_tensor_v2',
        'torch._utils._rebuild_parameter',
    )

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> object:
            full_name = f'{module}.{name}'
            if full_name in _SafePickle.TENSORS:
                return super().find_class(module, name)
            allowed = _allowed()
            if full_name in allowed:
                return allowed[full_name]
            if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            raise pickle.UnpicklingError(f'refused: it asks for {full_name}')

    @classmethod
    def load(cls, file: BinaryIO, **options) -> object:
        return cls.Unpickler(file, **options).load()


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
