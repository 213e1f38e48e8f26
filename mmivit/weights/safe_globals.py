"""What MMEngine's and timm's checkpoints hold besides tensors, and nothing more, may be unpickled.

Needs torch, numpy and mmengine alone: it runs whenever mmivit is imported.
"""

from __future__ import annotations

import pickle
from argparse import Namespace
from typing import Any, BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from mmengine.utils import digit_version

# torch 2.6 made `weights_only` the default and its allow-list able to hold stand-ins.
HAS_ALLOW_LIST = digit_version(torch.__version__) >= digit_version('2.6.0')
# numpy's types of plain numbers, in MMEngine's log history, in metrics and palettes
NUMBERS = ('b1', 'i1', 'i2', 'i4', 'i8', 'u1', 'u2', 'u4', 'u8', 'f2', 'f4', 'f8')


def allow_mmengine_checkpoints() -> None:
    """Allow-list exactly what MMEngine's and timm's checkpoints hold besides tensors.

    From torch 2.6 on ``torch.load`` refuses pickled objects unless they are allow-listed, and
    MMEngine 0.10 calls it without further ado, so that it cannot read its own checkpoints.

    Older versions of torch have no such list; there :func:`read_checkpoint` applies it.
    """
    if HAS_ALLOW_LIST:
        torch.serialization.add_safe_globals([(value, name) for name, value in _allowed().items()])


def _allowed() -> dict[str, object]:
    """What checkpoints hold besides tensors, by name.

    timm's: the arguments of the run. MMEngine's: the log history, HistoryBuffer objects, numpy
    arrays and scalars. A HistoryBuffer pickles its statistics as
    ``getattr(HistoryBuffer, 'mean')``; ``getattr`` itself would open every door, so a stand-in
    that answers for those four alone is registered under its name. So is one for ``numpy.dtype``,
    whose arrays of objects can be made to hold any address.
    """
    types = [Namespace, HistoryBuffer, np.ndarray, *{type(np.dtype(kind)) for kind in NUMBERS}]
    allowed = {f'{kind.__module__}.{kind.__qualname__}': kind for kind in types}
    allowed['numpy.dtype'] = _number_dtype
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


def _number_dtype(kind: str, *options: bool) -> np.dtype:
    """Stand-in for ``numpy.dtype`` while unpickling: plain numbers, nothing else."""
    if kind in NUMBERS:
        return np.dtype(kind, *options)
    raise pickle.UnpicklingError(f'refused: it asks for numpy arrays of {kind!r}')


class SafePickle:
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
            if full_name in SafePickle.TENSORS:
                return super().find_class(module, name)
            allowed = _allowed()
            if full_name in allowed:
                return allowed[full_name]
            if module == 'torch' and isinstance(getattr(torch, name, None), torch.dtype):
                return getattr(torch, name)
            raise pickle.UnpicklingError(f'refused: it asks for {full_name}')

    @classmethod
    def load(cls, file: BinaryIO, **options: Any) -> object:
        return cls.Unpickler(file, **options).load()
