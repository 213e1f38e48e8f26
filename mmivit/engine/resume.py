"""Going on with a run: its latest checkpoint that is whole."""

from __future__ import annotations

import logging
import os
import zipfile
from functools import partial
from pathlib import Path

from mmengine.logging import print_log

from mmivit.errors import CheckpointError
from mmivit.utils.text import listed, printable
from mmivit.weights.checkpoint import read_checkpoint

MARKER = 'last_checkpoint'  # MMEngine's file with the path of the last checkpoint
NEEDED = ('meta', 'state_dict', 'message_hub')  # what MMEngine asks of one to resume from


def latest_checkpoint(work_dir: str | Path) -> str | None:
    """The checkpoint to resume a run from: the last one that is whole.

    That is the one named in ``last_checkpoint``, in ``work_dir`` if it is there. Where that is
    missing or damaged it is the nearest before it, and where the file names none the most recently
    written ``epoch_*.pth`` or ``iter_*.pth``.
    What was passed over is logged.

    Args:
        work_dir: folder of the run.

    Returns:
        Its path, or None if the run has written none. One on another backend (``s3://...``) is
        not looked at.

    Raises:
        CheckpointError: there are checkpoints, and none is whole.
    """
    work_dir = Path(work_dir).absolute()
    marker = work_dir / MARKER
    name = marker.read_text(errors='replace').strip('\0\n ') if marker.is_file() else ''
    if '://' in name:
        return name  # MMEngine fetches it
    # They are here, though the work dir was moved since, or where the config says (out_dir).
    folders = [work_dir, Path(name).parent] if name else [work_dir]
    folders = [folder for folder in folders if os.path.isdir(folder)]
    candidates, passed_over = [], []
    if name:
        found = [f / Path(name).name for f in folders if os.path.isfile(f / Path(name).name)]
        candidates = found[:1]
        folders = [path.parent for path in candidates] or folders
        if not candidates:
            passed_over.append(f'{printable(name)}, which {marker} names, is missing')
    numbered = {path for f in folders for path in f.glob('*_*.pth') if _is_numbered(path)}
    candidates += sorted(numbered.difference(candidates), key=partial(_rank, Path(name)))
    for path in candidates:
        try:
            check_whole(path)
        except (CheckpointError, OSError) as error:
            passed_over.append(str(error))
        else:
            for reason in passed_over:
                print_log(f'Passed over: {reason}', logger='current', level=logging.WARNING)
            return str(path)
    if passed_over:
        raise CheckpointError(
            f'{work_dir} holds no whole checkpoint to resume from:\n'
            + ''.join(f'    {reason}\n' for reason in passed_over)
            + 'Put a whole copy back and name it (--resume FILE), or start from the beginning: '
            f'without --resume, or with these and {marker} moved away.'
        )
    return None


def _is_numbered(path: Path) -> bool:
    kind, _, number = path.stem.partition('_')
    return kind in ('epoch', 'iter') and number.isdigit()


def _rank(last: Path, path: Path) -> tuple[bool, int, int]:
    """Sorts those of the run before ``last`` first, the nearest leading; others by age."""
    number = int(path.stem.partition('_')[2])
    same_kind = _is_numbered(last) and last.stem.partition('_')[0] == path.stem.partition('_')[0]
    if same_kind and number < int(last.stem.partition('_')[2]):
        return False, -number, 0
    return True, -path.stat().st_mtime_ns, -number


def check_whole(path: str | Path) -> None:
    """Check that a run can be resumed from a file.

    Raises:
        CheckpointError: it is damaged, unsafe, or no checkpoint of a training run.
    """
    checkpoint = read_checkpoint(path)
    missing = [key for key in NEEDED if key not in checkpoint]
    if missing:
        raise CheckpointError(f'{path} is no checkpoint of a training run: no {listed(missing)}')
    if (
        isinstance(checkpoint['meta'], dict) and 'config' in checkpoint['meta']
    ):  # MMEngine's own have 'cfg', which it does not run
        raise CheckpointError(
            f'{path} is not safe to resume: MMEngine would run the program in its meta.config, '
            'which it never writes there. Start from its weights: --cfg-options load_from=FILE'
        )
    if zipfile.is_zipfile(path):
        # torch checks the directory of the archive, not the sums of what is in it.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f'{path} is damaged: the checksum of {damaged} does not fit')
