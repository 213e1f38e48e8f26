"""Training that is killed, runs out of disk, loses a process, meets a NaN: what is left goes on.

``make test-faults`` sets MMIVIT_KILLS=20: the long form, whose figures are in docs/reliability.md.
"""

import os
import re
import shutil
import subprocess

import pytest

from mmivit.datasets.shapes import ShapesSpec, write_dataset
from tests.faults import SIZE, Training, kill_repeatedly

KILLS = int(os.environ.get('MMIVIT_KILLS', 2))
LONG = 'MMIVIT_KILLS' in os.environ
long_form = pytest.mark.skipif(not LONG, reason='a part of make test-faults')


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp('faults')
    write_dataset(folder / 'data/shapes', ShapesSpec(train=16, val=4, size=SIZE))
    return folder


@pytest.mark.parametrize(
    ('task', 'processes', 'kills'),
    [
        pytest.param('segmentation', 1, KILLS, marks=pytest.mark.matrix('segmentation')),
        pytest.param('detection', 1, KILLS, marks=long_form),
        pytest.param('segmentation', 2, KILLS, marks=long_form),
        pytest.param('detection', 2, KILLS, marks=long_form),
    ],
)
def test_a_killed_run_reaches_the_end_as_if_it_had_not_been(task, processes, kills, folder):
    steps = 4 * (kills + 2)
    settings = dict(task=task, steps=steps, processes=processes, val_interval=4 if LONG else 0)
    whole = Training(folder, f'{task}_{processes}_whole', **settings)
    whole.start()
    assert whole.wait() == 0, whole.output()[-3000:]
    killed = Training(folder, f'{task}_{processes}_killed', **settings)
    toll = kill_repeatedly(killed, kills, processes)

    expected, found = whole.losses(), killed.losses()
    assert set(found) == set(expected) == set(range(1, steps + 1))
    apart = [abs(loss - expected[step][0]) for step in found for loss in found[step]]
    print(
        f'\n{task}, {processes} process{"es" * (processes > 1)}: {kills} kills survived '
        f'({", ".join(f"{count} in {moment}" for moment, count in toll.moments.items())}); '
        f'{sum(toll.steps_lost)} steps lost (at most {max(toll.steps_lost)} by one kill); '
        f'{toll.passed_over} damaged checkpoints refused, of {toll.damaged}; {steps} steps, '
        f'{len(apart)} losses, at most {max(apart):.1e} from those of the run never killed'
    )
    assert max(apart) == 0  # promised are 1e-5; these are deterministic runs
    assert toll.passed_over == toll.damaged
    if LONG and processes == 1:
        assert set(toll.moments) == {'saving', 'step', 'evaluation'}


@pytest.mark.matrix('detection')
def test_a_detector_is_bitwise_the_same_in_another_process_and_after_resuming(folder):
    whole = Training(folder, 'bitwise', 'detection', steps=8)
    whole.start()
    assert whole.wait() == 0, whole.output()[-3000:]
    resumed = Training(folder, 'bitwise_resumed', 'detection', steps=8)
    resumed.work_dir.mkdir()
    shutil.copy(whole.work_dir / 'epoch_1.pth', resumed.work_dir)
    resumed.start()
    assert resumed.wait() == 0, resumed.output()[-3000:]
    assert len(whole.losses()) == 8
    assert resumed.losses() == {step: whole.losses()[step] for step in (5, 6, 7, 8)}


def test_a_dead_process_is_replaced_and_a_nan_on_one_stops_all(folder):
    hooks = (dict(type='KillHook', step=6, rank=1), dict(type='PoisonHook', step=9, rank=1))
    training = Training(
        folder, 'ranks', 'segmentation', steps=9, processes=2, interval=3, hooks=hooks
    )
    training.start(MAX_RESTARTS='1')
    assert training.wait() != 0
    output = training.output()
    assert 'exitcode: -9' in output
    assert 'resumed epoch: 0, iter: 3' in output, output[-3000:]
    before, after = training.losses()[4]
    assert before == after
    # Step 9 is on disk nowhere, although process 0 saw nothing wrong in its half of the batch.
    assert 'The loss is not finite at iteration 9' in output
    assert re.search(r'Images of this step on process 1:\n +\S+\.jpg', output)
    assert [path.name for path in training.checkpoints()] == ['iter_3.pth', 'iter_6.pth']


@pytest.mark.parametrize('way', ['limit', pytest.param('mount', marks=long_form)])
def test_a_full_disk_leaves_the_last_checkpoint_and_says_so(way, folder):
    hooks = (dict(type='FullDiskHook', step=3),) if way == 'limit' else ()
    training = Training(folder, f'full_{way}', 'segmentation', steps=4, hooks=hooks)
    training.work_dir.mkdir()
    if way == 'mount':  # holds two checkpoints
        mount = ['mount', '-t', 'tmpfs', '-o', 'size=100m', 'tmpfs', training.work_dir]
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip('mounting a small file system needs root')
    try:
        training.start()
        assert training.wait() == 1
        output = training.output()
        assert 'Traceback' not in output
        assert 'train: The disk is full: ' in output
        assert f'The last whole checkpoint is {training.work_dir}/iter_2.pth' in output
        assert [path.name for path in training.checkpoints()] == ['iter_1.pth', 'iter_2.pth']
        assert not training.being_written()
    finally:
        if way == 'mount':
            subprocess.run(['umount', training.work_dir], check=True)
