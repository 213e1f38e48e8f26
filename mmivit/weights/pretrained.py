"""Where weights come from and where they go: files, URLs, timm's hub; conversion, publishing."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path

import torch
from mmengine.logging import print_log
from torch import Tensor, nn

from mmivit.errors import CheckpointError
from mmivit.models.attention import ATTENTIONS
from mmivit.registry import WEIGHT_INITIALIZERS
from mmivit.utils.files import check_absent
from mmivit.utils.text import printable
from mmivit.version import __version__
from mmivit.weights.checkpoint import find_state_dict, naming, read_checkpoint, write_checkpoint
from mmivit.weights.converters import ConversionReport, convert, is_optional

TIMM = 'timm://'
FROM_SCRATCH = '--cfg-options model.backbone.init_cfg=None'
HASH_LENGTH = 8  # characters of the sha256 in a published file's name, as torch.hub checks them


@WEIGHT_INITIALIZERS.register_module()
class PretrainedIViT:
    """Initialise an iViT backbone from any weights that convert; an ``init_cfg``.

        backbone=dict(
            type='mmivit.IViT',
            init_cfg=dict(type='mmivit.PretrainedIViT', checkpoint='caformer_s18.pth'))

    Args:
        checkpoint: a file (``.pth``, ``.safetensors``), a URL, or ``timm://`` and the name of a
            model in timm's hub.
        drop: patterns of names in it to leave out.

    Raises:
        CheckpointError: when called: there is no such checkpoint, or it does not fit.
    """

    def __init__(self, checkpoint: str, drop: Sequence[str] = ()) -> None:
        self.checkpoint = checkpoint
        self.drop = drop

    def __call__(self, module: nn.Module) -> None:
        mixers = (m for m in module.modules() if type(m) in ATTENTIONS.values())
        kinds = {kind: name for name, kind in ATTENTIONS.items()}
        attention = next((kinds[type(mixer)] for mixer in mixers), None)
        try:
            with naming(self.checkpoint):
                converted, report = convert(
                    fetch(self.checkpoint),
                    attention=attention,
                    in_channels=module.stem.conv.in_channels,
                    drop=self.drop,
                )
                own = _fitting(module, converted, report)
        except CheckpointError as error:
            raise CheckpointError(f'{error}. To start from scratch: {FROM_SCRATCH}') from error
        print_log(f'{self.checkpoint}\n{report.table()}', logger='current')
        module.load_state_dict(own, strict=False)


def _fitting(module: nn.Module, converted: dict[str, Tensor], report: ConversionReport) -> dict:
    """What of the converted tensors the module has; whatever it must have is there, and fits."""
    expected = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in converted.items()}
    stages = tuple(f'stages.{i}.' for i in range(len(module.stages)))
    wrong = [
        f'{name} is {found.get(name, "missing")}, expected {expected.get(name, "nothing")}'
        for name in sorted(expected.keys() | found.keys())
        if found.get(name) != expected.get(name)
        # Initial values stand for what the source has not got; later stages may be left over.
        and not (is_optional(name) and (name not in found or name not in expected))
        and (name in expected or name.startswith(stages))
    ]
    if wrong:
        raise CheckpointError(
            f'the weights are of iViT {report.arch} and do not fit this backbone: {wrong[0]}'
        )
    return {name: tensor for name, tensor in converted.items() if name in expected}


def fetch(source: str | Path) -> dict[str, Tensor]:
    """The weights of a file, a URL or a model in timm's hub.

    Raises:
        CheckpointError: there are none, or they cannot be read or fetched.
    """
    if str(source).startswith(TIMM):
        return _fetch_from_timm(str(source).removeprefix(TIMM))
    return find_state_dict(read_checkpoint(_local(source)))


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
    convertible = timm.list_pretrained('caformer*')
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


def convert_file(
    src: str | Path,
    dst: str | Path,
    force: bool = False,
    dry_run: bool = False,
    **options,
) -> ConversionReport:
    """Convert a file, a URL or a timm model to a file; :func:`mmivit.converters.convert` on files.

    The result carries its source, the source's sha256, its architecture and the converter's
    version, as strings.

    Args:
        src: as for :func:`fetch`.
        dst: ``.pth`` or ``.safetensors``.
        force: replace an existing file.
        dry_run: write nothing.
        options: of :func:`mmivit.converters.convert`.

    Raises:
        CheckpointError: the source does not convert.
        FileExistsError: the destination exists and ``force`` is off.
    """
    check_absent(dst, force or dry_run)
    with naming(src):
        weights = fetch(src)
        converted, report = convert(weights, **options)
    if not dry_run:
        meta = dict(
            source=printable(src if '://' in str(src) else Path(src).name),
            sha256=_sha256_of_timm(weights) if str(src).startswith(TIMM) else _sha256(_local(src)),
            arch=report.arch,
            target=report.target,
            converter=f'mmivit {__version__}',
        )
        write_checkpoint(dst, converted, meta, force)
    return report


def publish(source: str | Path, destination: str | Path, force: bool = False) -> Path:
    """What others need of a trained checkpoint, under a name that carries its hash.

    Weights and the data set's classes and colours stay; the optimiser, schedules, logs and the
    second copy that averaging (EMA) keeps go.

    Args:
        source: a checkpoint of MMEngine's or timm's.
        destination: ``name.pth``; ``name-1a2b3c4d.pth`` is written, with the first characters of
            its sha256, which ``torch.hub`` checks.
        force: replace an existing file.

    Returns:
        The file written.

    Raises:
        CheckpointError: the source cannot be read or holds no weights.
        FileExistsError: the file exists and ``force`` is off.
    """
    destination = Path(destination)
    checkpoint = read_checkpoint(source)
    with naming(source):
        weights = find_state_dict(checkpoint)
    kept = ('dataset_meta', 'epoch', 'iter', 'mmengine_version')
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    unnamed = destination.with_name(f'.{destination.name}.unnamed{destination.suffix}')
    write_checkpoint(unnamed, weights, {key: meta[key] for key in kept if key in meta}, force=True)
    try:
        name = f'{destination.stem}-{_sha256(unnamed)[:HASH_LENGTH]}{destination.suffix}'
        named = destination.with_name(name)
        check_absent(named, force)
        unnamed.replace(named)
    finally:
        unnamed.unlink(missing_ok=True)
    return named


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _sha256_of_timm(weights: dict[str, Tensor]) -> str:
    """Of the tensors' bytes in the order of their names: timm shows no file."""
    digest = hashlib.sha256()
    for _, tensor in sorted(weights.items()):
        digest.update(tensor.detach().contiguous().numpy().tobytes())
    return digest.hexdigest()
