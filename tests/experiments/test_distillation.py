"""The experiment with distillation, as small as it goes."""

from dataclasses import asdict, replace

import pytest

from mmivit.experiments.data import drawn
from mmivit.experiments.distillation import (
    BASE,
    DRAWN,
    PHOTOGRAPHS,
    STARTS,
    TEACHER,
    WAYS,
    Budget,
    distil_config,
    plan,
    train,
)
from mmivit.experiments.distillation_report import POINTS, write_distillation_report
from mmivit.experiments.runs import RunLog
from tests.conftest import CONFIGS

TINY = Budget(
    pretrain=1,
    distil=4,
    size=32,
    downstream=2,
    downstream_size=32,
    batch=2,
    images=20,
    held_out=2,
    ways=(BASE, 'at twice the side'),
)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return drawn(tmp_path_factory.mktemp('drawn'), TINY)


def test_every_way_and_start_is_a_run(data):
    first, then, last = plan(replace(DRAWN, size=32), data, [0, 1])
    assert [(run.task, run.seed) for run in first] == [('teach', 0), ('teach', 1)]
    assert {(run.start, run.seed) for run in then} == {(w, s) for w in WAYS for s in (0, 1)}
    expected = {(t, s, n) for t in ('segmentation', 'detection') for s in STARTS for n in (0, 1)}
    assert {(run.task, run.start, run.seed) for run in last} == expected
    assert len({run.name for run in first + then + last}) == len(first + then + last)
    assert not plan(PHOTOGRAPHS, data, [0])[2]


def test_a_way_is_told_by_its_config(data):
    budget = replace(TINY, ways=tuple(WAYS))
    configs = {run.start: distil_config(run, data, CONFIGS) for run in plan(budget, data, [0])[1]}
    assert configs['all, block by block, 3e-4'].model.by_block
    assert configs['attention, end to end, 3e-4'].optim_wrapper.optimizer.lr == 3e-4
    assert 'token_mixer' in configs['attention, end to end, 3e-4'].model.learns
    roots = {n: c.train_dataloader.dataset.data_root for n, c in configs.items()}
    assert roots[BASE].endswith('classify_32/train')
    assert roots['at twice the side'].endswith('classify_64/train')
    assert roots['on other images'].endswith('scenes_32/images/training')
    assert {c.val_dataloader.dataset.data_root for c in configs.values()} == {
        str(data.classification[32] / 'validation')
    }


def test_all_of_it(data, tmp_path):
    data = replace(data, downstream=dict(segmentation=data.downstream['segmentation']))
    log = RunLog(tmp_path / 'runs.jsonl')
    runs = [run for phase in plan(TINY, data, [0]) for run in phase]
    runs = [run for run in runs if run.start in (TEACHER, BASE, 'distilled')]
    for run in runs:
        log.add(**asdict(run), **train(run, data, CONFIGS, tmp_path))
    taught = log.get(task='teach')['score']
    assert len(taught) == 2 * 4
    # 2 x 2 tokens, all of which are landmarks.
    student = log.get(start=BASE)
    assert list(student['score']) == ['0', '1', '2', '3', '4']
    assert student['score']['0'] == pytest.approx(taught['converted at 32'])
    assert student['error']['0'] < 0.1
    assert student['sides']['32'] == pytest.approx(student['score']['4'])
    starts = {r['start']: r['score'] for r in log.records if r['task'] == 'segmentation'}
    assert set(starts) == {TEACHER, 'distilled'}
    tables = write_distillation_report(log, runs, tmp_path, 'Drawn images')
    assert (tmp_path / 'distillation.md').read_text() == tables
    assert f'| {POINTS}: what learns, how, rate | 0 | 1 | 2 | 3 | 4 |' in tables
    above = (student['sides'][side] - taught[f'MHSA at {side}'] for side in ('32', '64'))
    assert '| {} | {:.1f} | {:.1f} |'.format(BASE, *above) in tables
    assert '| mIoU (%): start | 1 | 2 |' in tables
    assert f'| {TEACHER} |' in tables
    assert (tmp_path / 'distillation.png').read_bytes().startswith(b'\x89PNG')
