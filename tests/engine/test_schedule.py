"""Schedules of a checkpoint that are not those of the config, and rates of 0."""

import pytest

from mmivit.engine import ScheduleHook
from tests.toy_training import run


def poly(end, **more):
    return dict(type='PolyLR', by_epoch=False, begin=0, end=end, **more)


@pytest.fixture
def warnings(capsys, tmp_path):
    """Train with a scheduler, at first or resumed; what is said of its rates."""

    def warnings(steps, scheduler, resume=False, **settings):
        hooks = (ScheduleHook(),)
        run(tmp_path, steps, hooks=hooks, scheduler=scheduler, resume=resume, **settings)
        return [line for line in capsys.readouterr().out.splitlines() if 'learning rate' in line]

    return warnings


def test_a_longer_run_gets_the_schedule_of_its_checkpoint(warnings):
    assert not warnings(3, poly(3))
    assert not warnings(3, poly(3), resume=True)
    (message,) = warnings(5, poly(5), resume=True)
    assert 'PolyLR.total_iters is 2 (config: 4), PolyLR.end is 3 (config: 5).' in message
    assert 'rate is 0 from iteration 3 on, where PolyLR ends; the run goes on to 5.' in message
    assert '--cfg-options load_from=CHECKPOINT' in message


def test_a_schedule_that_ends_before_the_run(warnings):
    (message,) = warnings(4, poly(3))
    assert 'The learning rate is 0 from iteration 3 on' in message
    assert 'load_from' not in message
    assert not warnings(4, poly(3, eta_min=1e-5))
    assert not warnings(4, dict(type='MultiStepLR', milestones=[2], by_epoch=False))
    constant = dict(type='ConstantLR', begin=3, end=4, by_epoch=False)
    (message,) = warnings(4, [poly(3), constant])  # a third of 0
    assert 'where PolyLR ends' in message
    assert not warnings(4, [poly(3, eta_min=1e-5), constant])


def test_epochs(warnings):
    by_epoch = dict(type='PolyLR', begin=0, end=1)
    assert not warnings(4, by_epoch, by_epoch=True)
    (message,) = warnings(8, by_epoch, by_epoch=True, resume=True)
    assert 'from epoch 1 on' in message
    assert not warnings(4, by_epoch)  # never taken a step, in a run without epochs
