"""What others need of a trained checkpoint, in a file named by its contents."""

from __future__ import annotations

from pathlib import Path

from mmivit.utils.files import check_absent
from mmivit.weights.checkpoint import find_state_dict, naming, read_checkpoint, write_checkpoint
from mmivit.weights.sources import HASH_LENGTH, sha256
from mmivit.weights.stored_config import backbone_text


def publish(source: str | Path, destination: str | Path, force: bool = False) -> Path:
    """What others need of a trained checkpoint, under a name that carries its hash.

    Weights, the data set's classes and colours and the backbone's settings that have no weights
    stay; the optimiser, schedules, logs and the second copy that averaging (EMA) keeps go.

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
    meta = {key: meta[key] for key in kept if key in meta}
    if text := backbone_text(checkpoint):
        meta['cfg'] = text
    unnamed = destination.with_name(f'.{destination.name}.unnamed{destination.suffix}')
    write_checkpoint(unnamed, weights, meta, force=True)
    try:
        name = f'{destination.stem}-{sha256(unnamed)[:HASH_LENGTH]}{destination.suffix}'
        named = destination.with_name(name)
        check_absent(named, force)
        unnamed.replace(named)
    finally:
        unnamed.unlink(missing_ok=True)
    return named
