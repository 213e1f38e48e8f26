"""Training that can be gone on with: whole checkpoints, the latest whole one, finite losses."""

from __future__ import annotations

import logging
import math
import os
import zipfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from mmengine.dist import all_gather_object
from mmengine.fileio import LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.runner import Runner

from mmivit.errors import CheckpointError, TrainingError
from mmivit.registry import HOOKS
from mmivit.utils.files import whole
from mmivit.utils.text import listed, printable
from mmivit.weights.checkpoint import read_checkpoint

WHOLE_FILES = dict(backend='mmivit.WholeFileBackend')
MARKER = 'last_checkpoint'  # MMEngine's file with the path of the last checkpoint
NEEDED = ('meta', 'state_dict', 'message_hub')  # what MMEngine asks of one to resume from
WHAT_HELPS = (
    '  Nothing of this step was saved. What helps: look for faults in the data '
    '(python tools/check_data.py CONFIG), lower the learning rate (optim_wrapper.optimizer.lr) or '
    'warm it up for longer, clip gradients (optim_wrapper.clip_grad.max_norm=1.0), with --amp '
    'optim_wrapper.dtype=bfloat16.\n'
    '  Then go on with --resume. Unchanged, the run would come to the same step again.'
)


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
    if zipfile.is_zipfile(path):
        # torch checks the directory of the archive, not the sums of what is in it.
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged:
            raise CheckpointError(f'{path} is damaged: the checksum of {damaged} does not fit')


class WholeFileBackend(LocalBackend):
    """MMEngine's local files, written whole or not at all."""

    def put(self, obj: bytes, filepath: str | Path) -> None:
        """Write under a temporary name beside the file, then rename.

        Raises:
            OSError: it could not be written; nothing has changed then.
        """
        try:
            with whole(filepath) as partial, open(partial, 'xb') as file:
                file.write(obj)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(filepath)) from error


register_backend(WHOLE_FILES['backend'], WholeFileBackend, force=True)


@HOOKS.register_module()
class SafeCheckpointHook(CheckpointHook):
    """MMEngine's, with checkpoints that are whole and hold finite weights.

    Takes the arguments of MMEngine's. ``max_keep_ckpts`` may not be 1: the oldest checkpoint is
    deleted before the newest is written, so that there would be none in between. Files on the local
    disk are written under a temporary name first, so 2 take no more room meanwhile.

    Raises:
        TrainingError: ``max_keep_ckpts`` is 1; or the processes of a run do not go on from the same
            checkpoint; or weights are not finite.
    """

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        if self.max_keep_ckpts == 1:
            raise TrainingError(
                'max_keep_ckpts=1 would leave no checkpoint while one is written; take 2'
            )

    def before_train(self, runner: Runner) -> None:
        super().before_train(runner)
        if type(self.file_backend) is LocalBackend:
            self.backend_args = WHOLE_FILES
            self.file_backend = get_file_backend(backend_args=WHOLE_FILES)
        iterations = all_gather_object(runner.iter)
        if len(set(iterations)) > 1:
            raise TrainingError(
                f'The processes go on from different iterations: {iterations}, by rank.\n'
                '  Process 0 writes the checkpoints; put the work dir where all machines see it.'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        # Another process may have met a loss that is not finite, and is about to stop this one.
        broken = [name for name, p in runner.model.named_parameters() if not p.isfinite().all()]
        if broken:
            raise TrainingError(
                f'After iteration {checkpoint["meta"]["iter"]} {len(broken)} weights are not '
                f'finite: {listed(broken)}\n'
                '  Where a loss is not finite either, its process names the images.\n'
                f'{WHAT_HELPS}'
            )


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops a run at the first loss that is NaN or infinite, before anything is saved.

    It looks at numbers that MMEngine has read from the device already. Under torchrun and slurm the
    other processes are ended with this one.
    """

    priority = 'HIGH'  # after the losses are recorded; before logging, averaging and saving

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: dict | None = None,
        outputs: dict | None = None,
    ) -> None:
        losses = {
            name: runner.message_hub.get_scalar(f'train/{name}').current()
            for name in outputs or ()
            if 'loss' in name
        }
        if all(map(math.isfinite, losses.values())):
            return
        values = ', '.join(f'{name} {value:.4g}' for name, value in losses.items())
        images = list(image_paths(data_batch)) or ['(unknown: img_path is not among the meta_keys)']
        paths = ''.join(f'    {path}\n' for path in images)
        raise TrainingError(
            f'The loss is not finite at iteration {runner.iter + 1} (epoch {runner.epoch + 1}): '
            f'{values}\n'
            f'  Images of this step on process {runner.rank}:\n'
            f'{paths}{WHAT_HELPS}'
        )


def image_paths(batch: object) -> Iterator[str]:
    """The paths of the images in a batch of whatever structure."""
    if hasattr(batch, 'img_path'):
        yield batch.img_path
    elif isinstance(batch, dict):
        yield from image_paths(list(batch.values()))
    elif isinstance(batch, (list, tuple)):
        for item in batch:
            yield from image_paths(item)
