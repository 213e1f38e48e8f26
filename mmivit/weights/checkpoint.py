"""Checkpoints: read as data, whatever they hold, and written whole."""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from torch import Tensor

from mmivit.errors import CheckpointError
from mmivit.utils.arrays import plain
from mmivit.utils.files import RefusedFile, check_absent, check_regular, whole
from mmivit.utils.text import listed, printable
from mmivit.weights.safe_globals import HAS_ALLOW_LIST, SafePickle
from mmivit.weights.vetting import check_checkpoint

SAFETENSORS = '.safetensors'
INDEX = '.safetensors.index.json'  # of a checkpoint in several files of that format
COUNTERS = ('n_averaged', 'steps')  # torch's and MMEngine's beside weights that they average
MOST_VIEWS = 16  # bytes of tensors per byte of the file: some share their numbers


def read_checkpoint(path: str | Path) -> dict:
    """Read a local checkpoint as data: nothing in it can run code.

    Args:
        path: a ``.pth`` or ``.safetensors`` file, or the ``.safetensors.index.json`` of several.

    Returns:
        What it holds, tensors on the CPU.

    Raises:
        CheckpointError: it is damaged, no checkpoint at all, or would run code, fill the memory
            or never end. The message is one line.
        OSError: there is no such file, or it may not be read.
    """
    # `weights_only` of older versions cannot be told what to allow; their unpickler can.
    safely = dict(weights_only=True) if HAS_ALLOW_LIST else dict(pickle_module=SafePickle)
    try:
        check_regular(path)
        if is_index(path):
            return _read_shards(Path(path))
        if is_safetensors(path):
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
        if isinstance(error, CheckpointError):  # of one of several files
            raise
        raise CheckpointError(
            f'{path} was not loaded: it seems to be {_kind(path, error)}'
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f'{path} holds a {type(checkpoint).__name__}, not a checkpoint')
    return checkpoint


def is_safetensors(path: str | Path) -> bool:
    """Whether a file is of that format, by its name."""
    return str(path).lower().endswith(SAFETENSORS)


def is_index(path: str | Path) -> bool:
    """Whether a file names the several safetensors that a checkpoint is divided into."""
    return str(path).lower().endswith(INDEX)


def _read_shards(index: Path) -> dict[str, Tensor]:
    """The tensors of several files, each from the one that the index's ``weight_map`` names.

    Raises:
        CheckpointError: it is no such index, or files or tensors that it names are missing.
    """
    try:
        files = dict(json.loads(index.read_bytes())['weight_map'])
        # Files beside the index alone: a name is no way to another folder.
        sound = all(is_safetensors(file) and Path(file).name == file for file in files.values())
    except (ValueError, KeyError, TypeError, RecursionError):
        sound = False
    if not sound:
        raise RefusedFile('no index of safetensors beside it (weight_map)')
    weights: dict[str, Tensor] = {}
    for file in sorted(set(files.values())):
        path = index.with_name(file)
        if not path.is_file():
            raise CheckpointError(
                f'{index} was not loaded: {printable(file)}, which it names, is not beside it'
            )
        shard = read_checkpoint(path)
        weights |= {name: tensor for name, tensor in shard.items() if files.get(name) == file}
    missing = [name for name in files if name not in weights]
    if missing:
        raise CheckpointError(
            f'{index} was not loaded: the files that it names lack {listed(missing)}'
        )
    return weights


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
    if is_safetensors(path):
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
    return _unwrapped(weights)


def _unwrapped(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under a model's own names: without those of torch.compile, DDP and averaging."""
    # Compiled parts are wrapped within the model, the others stand around all of it.
    own = {name: re.sub(r'(^|\.)(_orig_mod\.)+', r'\1', name) for name in weights}
    wrapped, depth = [name for name in own.values() if name not in COUNTERS], 0
    while wrapped and all(name.startswith('module.', depth) for name in wrapped):
        depth += len('module.')
    if depth:
        own = {name: inner[depth:] for name, inner in own.items() if inner not in COUNTERS}
    if len(set(own.values())) < len(own):
        return weights
    return {inner: weights[name] for name, inner in own.items()}


def dataset_meta(checkpoint: dict) -> dict:
    """Classes and palette as a checkpoint of MMEngine's has them, empty if it has none.

    Raises:
        CheckpointError: they are not what mmdet and mmseg take.
    """
    meta = checkpoint.get('meta')
    saved = meta.get('dataset_meta') if isinstance(meta, dict) else None
    if saved is None:
        return {}
    saved = plain(saved)
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
    path: str | Path, state_dict: dict[str, Tensor], meta: Mapping[str, object], force: bool = False
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
        if is_safetensors(path):
            from safetensors.torch import save_file

            contiguous = {name: tensor.contiguous() for name, tensor in state_dict.items()}
            texts = {k: v if isinstance(v, str) else json.dumps(v) for k, v in meta.items()}
            save_file(contiguous, partial, metadata=texts)
        else:
            torch.save(dict(state_dict=state_dict, meta=meta), partial)
