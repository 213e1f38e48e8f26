"""A model, data and a run so small that a test can train them in well under a second."""

import random
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from mmengine.hooks import Hook
from mmengine.model import BaseModel
from mmengine.runner import Runner
from mmengine.structures import BaseDataElement
from torch import nn
from torch.utils.data import Dataset

SEEDED = dict(type='mmivit.SeededBatchSampler')


class Draws(Dataset):
    """Samples of an index and a number from each source of random numbers."""

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict:
        numbers = [index, random.random(), np.random.rand(), torch.rand(1).item()]
        sample = BaseDataElement(metainfo=dict(img_path=f'{index}.jpg'))
        return dict(inputs=torch.tensor(numbers), data_samples=sample)


class Toy(BaseModel):
    """Its loss depends on the data, on dropout and on all steps before."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 1))

    def forward(self, inputs, data_samples, mode='loss'):
        outputs = self.layers(torch.stack(inputs))
        return dict(loss=outputs.square().mean() + random.random() + np.random.rand())


class LossRecorder(Hook):
    def __init__(self) -> None:
        self.losses: dict[int, float] = {}  # by step

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.losses[runner.iter + 1] = outputs['loss'].item()


def run(
    work_dir: Path,
    steps: int,
    by_epoch: bool = False,
    workers: int = 0,
    hooks: tuple = (),
    batch_sampler: dict | None = SEEDED,
    checkpoint: dict | None = None,
    scheduler: dict | None = None,
    **settings,
) -> dict[int, float]:
    """Train for a number of steps, of which 4 are an epoch; the loss of each that was trained.

    Args:
        work_dir: of the run.
        steps: to be trained in all.
        by_epoch: with an EpochBasedTrainLoop.
        workers: of the data loader.
        hooks: beside those of the shipped configs.
        batch_sampler: of the data loader.
        checkpoint: further arguments of the checkpoint hook.
        scheduler: of the learning rate; warms up for 20 steps if not given.
        settings: further ones for the Runner.
    """
    recorder = LossRecorder()
    if by_epoch:
        loop = dict(type='EpochBasedTrainLoop', max_epochs=steps // 4)
    else:
        loop = dict(type='IterBasedTrainLoop', max_iters=steps)
    sampler = dict(type='DefaultSampler' if by_epoch else 'InfiniteSampler', shuffle=True)
    runner = Runner(
        model=Toy(),
        work_dir=str(work_dir),
        train_dataloader=dict(
            batch_size=3,
            num_workers=workers,
            persistent_workers=workers > 0,
            dataset=Draws(),
            sampler=sampler,
            batch_sampler=batch_sampler,
        ),
        train_cfg=loop,
        optim_wrapper=dict(optimizer=dict(type='Adam', lr=0.01)),
        param_scheduler=scheduler or dict(type='LinearLR', begin=0, end=20, by_epoch=False),
        default_hooks=dict(
            checkpoint=dict(
                type='mmivit.SafeCheckpointHook',
                by_epoch=by_epoch,
                interval=1,
                max_keep_ckpts=4,
                **(checkpoint or {}),
            ),
            seed=dict(type='mmivit.SeedHook'),
            loss=dict(type='mmivit.FiniteLossHook'),
        ),
        custom_hooks=[recorder, *hooks],
        experiment_name=uuid4().hex,  # runs of one name share a log
        log_level='WARNING',
        **settings,
    )
    runner.train()
    return recorder.losses
