"""Where weights come from: files, URLs, timm's hub."""

from __future__ import annotations

import hashlib
import os
import re
from http.client import HTTPException
from pathlib import Path

import torch
from torch import Tensor

from mmivit.errors import CheckpointError
from mmivit.weights.checkpoint import find_state_dict, is_index, read_checkpoint
from mmivit.weights.kinds import SOURCES

TIMM = 'timm://'
HASH_LENGTH = 8  # characters of a sha256 in a file's name, as torch.hub checks them


def fetch(source: str | Path) -> dict[str, Tensor]:
    """The weights of a file, a URL or a model in timm's hub.

    Raises:
        CheckpointError: there are none, or they cannot be read or fetched.
    """
    return find_state_dict(fetch_checkpoint(source))


def fetch_checkpoint(source: str | Path) -> dict:
    """The same with whatever else the file holds.

    Raises:
        CheckpointError: it cannot be read or fetched.
    """
    if str(source).startswith(TIMM):
        return _fetch_from_timm(str(source).removeprefix(TIMM))
    return read_checkpoint(_local(source))


def _local(source: str | Path) -> Path:
    """A file's own path; of a URL that of its copy in torch's hub folder, downloaded once."""
    path = Path(source)
    if '://' in str(source):
        name = re.split('[?#]', str(source))[0].rpartition('/')[2]
        # Many a URL ends in model.safetensors: the copy's name tells them apart.
        key = hashlib.sha256(str(source).encode()).hexdigest()[:HASH_LENGTH]
        path = Path(torch.hub.get_dir(), 'checkpoints', f'{key}-{name[-100:]}')
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            published = re.search(r'-([0-9a-f]{8})\.\w+$', name)
            try:
                torch.hub.download_url_to_file(
                    str(source), str(path), hash_prefix=published and published[1]
                )
            except (OSError, RuntimeError, ValueError, HTTPException) as error:
                raise CheckpointError(f'it could not be downloaded ({error})') from error
    if not path.is_file():
        raise CheckpointError(f'no such file, seen from {os.getcwd()}')
    return path


def _fetch_from_timm(name: str) -> dict[str, Tensor]:
    try:
        import timm
    except ImportError as error:
        raise CheckpointError('timm is not installed: pip install timm') from error
    convertible = timm.list_pretrained([kind.hub for kind in SOURCES.values() if kind.hub])
    if name not in convertible and name not in {tagged.split('.')[0] for tagged in convertible}:
        raise CheckpointError(
            f'timm has no weights {name!r} that convert; it has {", ".join(convertible)}'
        )
    try:
        return timm.create_model(name, pretrained=True).state_dict()
    except Exception as error:  # the hub's client raises its own, the network's and the system's
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f'timm could not fetch it ({reason}). Where there is a network: '
            f'python tools/convert_weights.py {TIMM}{name} {name}.pth; '
            f'then: --cfg-options model.backbone.init_cfg.checkpoint={name}.pth'
        ) from error


def checksum(source: str | Path, weights: dict[str, Tensor]) -> str:
    """sha256 of a source's file; where it isn't one alone, of the tensors' bytes by name.

    Args:
        source: as for :func:`fetch`.
        weights: what :func:`fetch` returned for it.
    """
    if not (str(source).startswith(TIMM) or is_index(source)):
        return sha256(_local(source))
    digest = hashlib.sha256()
    for _, tensor in sorted(weights.items()):
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
