"""Schedules of a checkpoint that are not those of the config, and rates of 0."""

import pytest
from mmengine.hooks import Hook

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


@pytest.mark.parametrize(('steps', 'warm'), [(200, 10), (4, 2)])
def test_a_warm_up_is_a_share_of_the_run(steps, warm, tmp_path):
    """In however few iterations; the rate is full after it, and falls to the end of the run."""
    rates = []

    class Rates(Hook):
        priority = 'VERY_LOW'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            rates.append(runner.optim_wrapper.get_lr()['lr'][0])

    warm_up = dict(type='mmivit.WarmUpLR', share=0.05, start_factor=0.01)
    warm_up['convert_to_iter_based'] = True
    run(tmp_path, steps, by_epoch=True, hooks=(Rates(),), scheduler=warm_up)
    assert len(rates) == steps
    assert rates[0] == pytest.approx(0.01 * 0.01)
    assert rates[warm - 2] < rates[warm - 1] == pytest.approx(0.01)
    assert set(rates[warm - 1 :]) == {rates[-1]}
