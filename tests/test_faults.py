"""Training that is killed, runs out of disk, loses a process, meets a NaN: what is left goes on.

``make test-faults`` sets MMIVIT_KILLS=20: the long form, whose figures are in docs/reliability.md.
"""

import os

import pytest

from mmivit.shapes import ShapesSpec, write_dataset
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
        ('segmentation', 1, KILLS),
        pytest.param('detection', 1, KILLS, marks=long_form),
        pytest.param('segmentation', 2, KILLS // 3, marks=long_form),
        pytest.param('detection', 2, KILLS // 3, marks=long_form),
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
    assert max(apart) <= 1e-5
    assert toll.passed_over == toll.damaged
    if LONG and processes == 1:
        assert set(toll.moments) == {'saving', 'step', 'evaluation'}
