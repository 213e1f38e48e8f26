"""Learning rates: a warm-up that fits any run, and rates that are not those of the config.

The latter are told before a run spends its days on them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import LinearLR
from mmengine.runner import Runner

from mmivit.registry import HOOKS, PARAM_SCHEDULERS
from mmivit.utils.text import listed

# What changes as a scheduler goes; all else of it are settings.
PROGRESS = frozenset(
    ('optimizer', 'last_step', 'best', 'num_bad_epochs', 'cooldown_counter', 'verbose')
)


@PARAM_SCHEDULERS.register_module()
class WarmUpLR(LinearLR):
    """MMEngine's LinearLR over the first share of a run, however long that is.

    How many iterations a run has is known only once its data are: 500 of warm-up are nothing for
    COCO and a third of 100 epochs of 92 images in batches of 6.

        dict(type='mmivit.WarmUpLR', share=0.05, start_factor=0.01, convert_to_iter_based=True)
    """

    @classmethod
    def build_iter_from_epoch(
        cls, *args: Any, share: float, end: int, epoch_length: int, **kwargs: Any
    ) -> WarmUpLR:
        """By iterations, which is what ``convert_to_iter_based`` calls.

        Args:
            args: of LinearLR.
            share: of the run, between 0 and 1.
            end: epochs of the run, which MMEngine gives.
            epoch_length: iterations of an epoch, which MMEngine gives.
            kwargs: of LinearLR.
        """
        # LinearLR over a single iteration would leave the rate where it starts.
        iterations = max(2, round(share * end * epoch_length))
        return cls(*args, end=iterations, **{**kwargs, 'by_epoch': False})


@HOOKS.register_module()
class ScheduleHook(Hook):
    """Warns where a run follows another schedule than its config's, or has a rate of 0 at its end.

    MMEngine restores schedulers with all their settings, so that a run resumed to be trained for
    longer stays at the rate with which it ended, which mostly is 0.
    """

    def before_run(self, runner: Runner) -> None:
        self.configured = [_settings(scheduler) for scheduler in _schedulers(runner)]

    def before_train(self, runner: Runner) -> None:
        schedulers = list(_schedulers(runner))
        changed = [
            f'{type(scheduler).__name__}.{name} is {value} (config: {configured.get(name)})'
            for scheduler, configured in zip(schedulers, self.configured)
            for name, value in _settings(scheduler).items()
            if value != configured.get(name)  # of another scheduler, perhaps
        ]
        texts = []
        if changed:
            texts.append(
                "The learning rate follows the checkpoint's schedule, not the config's: "
                f'{listed(changed)}.'
            )
        texts += _rate_of_zero(schedulers, runner)
        if changed:
            weights = runner._load_from or 'CHECKPOINT'
            texts.append(
                "For the config's, start from these weights instead: without --resume, with "
                f'another --work-dir and --cfg-options load_from={weights}'
            )
        if texts:
            print_log(' '.join(texts), logger='current', level=logging.WARNING)


def _schedulers(runner: Runner) -> Iterator:
    """Those of the learning rate, of every optimiser."""
    found = runner.param_schedulers or []
    for group in found.values() if isinstance(found, dict) else [found]:
        yield from (scheduler for scheduler in group if scheduler.param_name == 'lr')


def _settings(scheduler: object) -> dict:
    settings = {
        name: value
        for name, value in vars(scheduler).items()
        if name not in PROGRESS and not name.startswith('_')
    }
    settings['base_values'] = max(settings['base_values'])  # of as many as there are groups
    return settings


def _rate_of_zero(schedulers: list, runner: Runner) -> Iterator[str]:
    """Say from when on the rate is 0, if that is not where the run ends.

    Schedulers go on from the rate that others left, mostly by a factor, so 0 stays 0.
    """
    for scheduler in schedulers:
        unit, total = 'iteration', runner.max_iters
        if scheduler.by_epoch:
            unit, total = 'epoch', runner.max_epochs
        others = [other for other in schedulers if other is not scheduler]
        if (
            scheduler.end < total
            and 0 in (*_least(scheduler), getattr(scheduler, 'end_factor', None))
            and not any(map(any, map(_least, others)))
        ):
            yield (
                f'The learning rate is 0 from {unit} {scheduler.end} on, where '
                f'{type(scheduler).__name__} ends; the run goes on to {total}.'
            )


def _least(scheduler: object) -> list[float | None]:
    return [getattr(scheduler, name, None) for name in ('eta_min', 'eta_min_ratio')]
