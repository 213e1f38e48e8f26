"""Training that can be gone on with: whole checkpoints of finite weights, and finite losses."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.fileio import BaseStorageBackend, LocalBackend, get_file_backend, register_backend
from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner

from mmivit.errors import TrainingError
from mmivit.registry import HOOKS
from mmivit.utils.arrays import plain
from mmivit.utils.files import whole
from mmivit.utils.text import listed

WHOLE_FILES = dict(backend='mmivit.WholeFileBackend')
WHAT_HELPS = (
    '  Nothing of this step was saved. What helps: look for faults in the data '
    '(python tools/check_data.py CONFIG), lower the learning rate (optim_wrapper.optimizer.lr) or '
    'warm it up for longer, clip gradients (optim_wrapper.clip_grad.max_norm=1.0), with --amp '
    'optim_wrapper.dtype=bfloat16.\n'
    '  Then go on with --resume. Unchanged, the run would come to the same step again.'
)


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

    file_backend: BaseStorageBackend  # set by MMEngine before training

    def __init__(self, *args: Any, **kwargs: Any) -> None:
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
        checkpoint['meta'] = plain(checkpoint['meta'])  # else it would not be read back
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
