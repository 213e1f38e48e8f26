"""Checkpoints: loading MMEngine's under ``weights_only``, and saying what was loaded."""

from __future__ import annotations

import json
import logging
import pickle
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from mmengine.logging import HistoryBuffer, print_log
from mmengine.utils import digit_version
from torch import Tensor, nn

from mmivit.vetting import RefusedFile, check_checkpoint, check_regular, printable


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used: unsafe, unreadable, or of something else."""


# torch 2.6 made `weights_only` the default and its allow-list able to hold stand-ins.
HAS_ALLOW_LIST = digit_version(torch.__version__) >= digit_version('2.6.0')
LOG_VALUES = ('f4', 'f8', 'i4', 'i8')  # numpy's types in MMEngine's log history
MAX_LISTED = 8  # names listed per group of a load report
MOST_VIEWS = 16  # bytes of tensors per byte of the file: some share their numbers


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
    types = [Namespace, HistoryBuffer, np.ndarray, *{type(np.dtype(kind)) for kind in LOG_VALUES}]
    allowed = {f'{kind.__module__}.{kind.__qualname__}': kind for kind in types}
    allowed['numpy.dtype'] = _log_dtype
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


def _log_dtype(kind: str, *options: bool) -> np.dtype:
    """Stand-in for ``numpy.dtype`` while unpickling: plain numbers, nothing else."""
    if kind in LOG_VALUES:
        return np.dtype(kind, *options)
    raise pickle.UnpicklingError(f'refused: it asks for numpy arrays of {kind!r}')


def read_checkpoint(path: str | Path) -> dict:
    """Read a local checkpoint as data: nothing in it can run code.

    Args:
        path: a ``.pth`` or ``.safetensors`` file.

    Returns:
        What it holds, tensors on the CPU.

    Raises:
        CheckpointError: it is damaged, no checkpoint at all, or would run code, fill the memory
            or never end. The message is one line.
        OSError: there is no such file, or it may not be read.
    """
    # `weights_only` of older versions cannot be told what to allow; their unpickler can.
    safely = dict(weights_only=True) if HAS_ALLOW_LIST else dict(pickle_module=_SafePickle)
    try:
        check_regular(path)
        if Path(path).suffix == '.safetensors':
            from safetensors.torch import load_file

            checkpoint = load_file(path)
        else:
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')  # about pickles it then refuses
                check_checkpoint(path)
                checkpoint = torch.load(path, map_location='cpu', **safely)
        if _tensor_bytes(checkpoint) > MOST_VIEWS * max(Path(path).stat().st_size, 2**20):
            raise RefusedFile('a checkpoint whose tensors are larger than the file')
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        if isinstance(error, OSError) and error.filename is not None:  # it could not be opened
            raise
        raise CheckpointError(
            f'{path} was not loaded: it seems to be {_kind(path, error)}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint')
    return checkpoint


def _kind(path: str | Path, error: Exception) -> str:
    """What a file that could not be read seems to be."""
    if isinstance(error, RefusedFile):
        return str(error)
    refused = re.search(r'GLOBAL (\S+)|asks for (.+)', str(error))
    if refused:
        asked = printable(refused[1] or refused[2])
        return f'a pickle that is not safe to load, it would run code or build objects ({asked})'
    with open(path, 'rb') as file:
        start = file.read(512)
    if not start:
        return 'an empty file'
    if start.startswith(b'PK'):
        if isinstance(error, zipfile.BadZipFile):
            return 'an archive cut short or damaged'
        return 'a damaged archive, or one of something else'
    if start.startswith(b'\x80'):
        return 'a damaged pickle, or one of something else than weights'
    if Path(path).suffix == '.safetensors':
        return f'a damaged safetensors file, or none ({printable(error)})'
    if all(byte >= 32 or byte in b'\t\r\n' for byte in start):
        return 'a text file'
    return 'neither an archive of torch nor a pickle'


def _tensor_bytes(checkpoint: object) -> int:
    """What all tensors would take if each held its own numbers, in containers of any depth."""
    total, waiting = 0, [checkpoint]
    while waiting:
        value = waiting.pop()
        if isinstance(value, np.ndarray) or (isinstance(value, Tensor) and _is_plain(value)):
            total += value.nbytes
        elif isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, tuple)):
            waiting += value
        elif isinstance(value, (Namespace, HistoryBuffer)):
            waiting.append(vars(value))
    return total


@contextmanager
def naming(source: str | Path) -> Iterator[None]:
    """Put what was read in front of a CheckpointError that does not open with it."""
    try:
        yield
    except CheckpointError as error:
        if str(error).startswith(str(source)):
            raise
        raise CheckpointError(f'{source}: {error}') from error


def find_state_dict(checkpoint: dict) -> dict[str, Tensor]:
    """The weights in a checkpoint of torch's, timm's or MMEngine's, without wrappers' prefixes.

    timm keeps averaged weights beside the last ones, under another name, and means the averaged
    ones to be used; so does this. (MMEngine saves averaged ones as ``state_dict``.)

    Raises:
        CheckpointError: it holds none.
    """
    keys = ('state_dict_ema', 'model_ema', 'state_dict', 'model')
    held = (checkpoint.get(key) for key in keys)
    weights = next((value for value in held if isinstance(value, dict) and value), checkpoint)
    if not weights:
        raise CheckpointError('it holds no weights')
    strangers = [
        str(name)
        for name, value in weights.items()
        if not (isinstance(name, str) and name.isprintable() and _is_plain(value))
    ]
    if strangers:
        raise CheckpointError(
            f'it holds no weights under {", ".join(keys)}, and not only weights otherwise: '
            f'{listed(strangers)}'
        )
    for prefix in ('_orig_mod.', 'module.', '_orig_mod.'):  # torch.compile's around DDP's or within
        if all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


def dataset_meta(checkpoint: dict) -> dict:
    """Classes and palette as a checkpoint of MMEngine's has them, empty if it has none.

    Raises:
        CheckpointError: they are not what mmdet and mmseg take.
    """
    meta = checkpoint.get('meta')
    saved = meta.get('dataset_meta') if isinstance(meta, dict) else None
    if saved is None:
        return {}
    try:
        fits = all(isinstance(name, str) for name in saved.get('classes') or ())
        palette = saved.get('palette') or ()
        fits &= isinstance(palette, str) or np.array(palette, np.uint8).shape[1:] in ((), (3,))
    except (AttributeError, TypeError, ValueError, OverflowError):
        fits = False
    if not fits:
        raise CheckpointError('its meta.dataset_meta is no list of names and of colours')
    return saved


def _is_plain(value: object) -> bool:
    """Whether it is a tensor that holds its own numbers."""
    return (
        isinstance(value, Tensor)
        and value.layout is torch.strided
        and not value.is_meta
        and not value.is_quantized
    )


def write_checkpoint(
    path: str | Path, state_dict: dict[str, Tensor], meta: dict[str, object], force: bool = False
) -> None:
    """Write weights and what is to be known of them, whole or not at all.

    Args:
        path: where to; ``.safetensors`` writes that format, anything else torch's.
        state_dict: plain tensors.
        meta: plain values, kept as ``meta`` (torch) or as strings in the header (safetensors; what
            is no string as JSON).
        force: replace an existing file.

    Raises:
        FileExistsError: the file exists and ``force`` is off.
    """
    path = Path(path)
    check_absent(path, force)
    # Views of a larger tensor would drag all of it into the file.
    state_dict = {name: tensor.detach().clone() for name, tensor in state_dict.items()}
    with whole(path) as partial:
        if path.suffix == '.safetensors':
            from safetensors.torch import save_file

            contiguous = {name: tensor.contiguous() for name, tensor in state_dict.items()}
            texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()}
            save_file(contiguous, partial, metadata=texts)
        else:
            torch.save(dict(state_dict=state_dict, meta=meta), partial)


def check_absent(path: str | Path, force: bool) -> None:
    """Raise FileExistsError if the file exists, unless ``force``."""
    if Path(path).exists() and not force:
        raise FileExistsError(f'{path} exists; name another file, or replace it with --force')


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """A temporary name for a file, its own once it is written; nothing is left if that fails.

    The folders it needs are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    partial.unlink(missing_ok=True)  # what lay there may have been a link
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, content: bytes) -> None:
    """Write a file, with the folders it needs, whole or not at all."""
    with whole(path) as partial, open(partial, 'xb') as file:
        file.write(content)


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
            f'  found:    {listed(list(state_dict)) or f"none that begins with {prefix!r}"}\n'
            f'  expected: {listed([prefix + key for key in expected])}\n'
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
    lines += [f'  {len(keys)} {what}: {listed(keys)}' for what, keys in problems.items() if keys]
    level = logging.INFO if len(lines) == 1 else logging.WARNING
    print_log('\n'.join(lines), logger='current', level=level)


def check_fits(module: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Refuse weights that would leave a part of a model as it was initialised.

    Auxiliary heads may stay so, which training alone needs.

    Raises:
        CheckpointError: tensors of the model are missing or of another shape.
    """
    optional = re.compile(r'auxiliary_head\.|.*\.num_batches_tracked$')
    expected = module.state_dict()
    unfit = [
        name
        for name, tensor in expected.items()
        if not optional.match(name)
        and (name not in state_dict or state_dict[name].shape != tensor.shape)
    ]
    if unfit:
        raise CheckpointError(
            f'it is of another model: {len(unfit)} of the {len(expected)} tensors of this '
            f'{type(module).__name__} are missing or of another shape: {listed(unfit)}'
        )


def listed(names: list[str]) -> str:
    """The first of many names, and how many more there are, for an error or a log."""
    more = len(names) - MAX_LISTED
    return ', '.join(map(printable, names[:MAX_LISTED])) + (f' and {more} more' if more > 0 else '')
