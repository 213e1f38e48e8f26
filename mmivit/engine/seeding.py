"""Exact resumption: random numbers that depend on where a run stands, not on how it got there.

MMEngine restores weights, optimiser, schedule and counters. Random numbers it seeds once, at the
start of every process, so that a resumed run flips other images and drops other paths than one that
was never interrupted. Here every training step and every sample gets a seed of its own, derived
from the run's seed, the rank and the position in the run; nothing has to be saved. In a config:

    default_hooks = dict(seed=dict(type='mmivit.SeedHook'))
    train_dataloader = dict(batch_sampler=dict(type='mmivit.SeededBatchSampler'))
"""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator
from functools import partial
from itertools import chain, islice, repeat
from typing import NamedTuple

import numpy as np
import torch
from mmengine.dataset import InfiniteSampler
from mmengine.dist import broadcast_object_list, get_rank
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.registry import DATA_SAMPLERS as ALL_DATA_SAMPLERS
from mmengine.runner import IterBasedTrainLoop, Runner
from torch.utils.data import BatchSampler, Dataset, Sampler

from mmivit.registry import DATA_SAMPLERS, HOOKS

STEP, SAMPLE = 0, 1  # keep the seeds of steps and of samples apart


def reseed(*position: int) -> None:
    """Seed Python, NumPy and torch, CUDA included, by a tuple of non-negative integers."""
    words = np.random.SeedSequence(position).generate_state(4).tolist()
    random.seed(words[0])
    np.random.seed(words[1])
    # torch.manual_seed would format a stack trace where CUDA is not in use: 0.3 ms a call.
    seed = words[2] << 32 | words[3]
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():
        torch.cuda.manual_seed_all(seed)


class SeededBatch(NamedTuple):
    """What a data loader passes to its workers for a batch."""

    position: tuple[int, ...]  # of the batch in the run
    indices: list[int]


def fetch(dataset: Dataset, batch: SeededBatch) -> list:
    """The samples of a batch, each drawn with its own seed."""
    samples = []
    for place, index in enumerate(batch.indices):
        reseed(*batch.position, place)
        samples.append(dataset[index])
    return samples


@DATA_SAMPLERS.register_module()
class SeededBatchSampler(BatchSampler):
    """Batches whose samples are the same whenever, and by whichever worker, they are loaded.

    Args:
        sampler: one with ``seed`` and ``dataset``, as MMEngine's have.
        batch_size: images per batch and process.
        drop_last: leave out a last batch that is smaller.
        batch_sampler: config of a batch sampler that forms the batches, for instance
            ``dict(type='AspectRatioBatchSampler')``; consecutive ones if not given.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        drop_last: bool = False,
        batch_sampler: dict | None = None,
    ) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.form_batches = partial(
            ALL_DATA_SAMPLERS.build,
            batch_sampler or dict(type=BatchSampler),
            default_args=dict(sampler=sampler, batch_size=batch_size, drop_last=drop_last),
        )
        self.start = 0  # batches left out at the beginning
        # torch asks data sets that have this for a whole batch, in whichever process it is loaded.
        sampler.dataset.__getitems__ = partial(fetch, sampler.dataset)

    def __iter__(self) -> Iterator[SeededBatch]:
        # All begins anew here, where samplers would go on from where one that read ahead left them.
        if isinstance(self.sampler, InfiniteSampler):
            self.sampler.indices = self.sampler._indices_of_rank()
        run = (self.sampler.seed, SAMPLE, get_rank(), getattr(self.sampler, 'epoch', 0))
        for number, indices in islice(enumerate(self.form_batches()), self.start, None):
            yield SeededBatch((*run, number), list(indices))

    def __len__(self) -> int:
        return len(self.form_batches())


class _Batches(chain):
    """What a loop takes batches from; MMEngine's fork also asks it to pass some over."""

    def skip_iter(self, count: int) -> None:
        next(islice(self, count, count), None)


@HOOKS.register_module()
class SeedHook(Hook):
    """Seeds every training step, and lets the data loader begin where a resumed run goes on."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        seed = [runner.seed]  # of the checkpoint, in a run that was started without one
        broadcast_object_list(seed)
        self.run = (seed[0], STEP, get_rank())
        loop, loader = runner.train_loop, runner.train_dataloader
        batches = loader.batch_sampler
        if not isinstance(batches, SeededBatchSampler):
            print_log(
                'The training data are not seeded by position, so resuming this run will not '
                'repeat it exactly. Add to the config: train_dataloader = '
                "dict(batch_sampler=dict(type='mmivit.SeededBatchSampler')), with drop_last, where "
                'it is set, inside',
                logger='current',
                level=logging.WARNING,
            )
            return
        batches.sampler.seed = seed[0]
        if isinstance(loop, IterBasedTrainLoop) and isinstance(batches.sampler, InfiniteSampler):
            # The loop has read ahead before it knew of a checkpoint, and gets to where it goes on
            # by loading every batch up to there: hours late in a long run. It is given nothing
            # in their place.
            batches.start = loop.iter
            loop.dataloader_iterator = _Batches(repeat(None, loop.iter), iter(loader))

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: dict | None = None
    ) -> None:
        reseed(*self.run, runner.iter)
