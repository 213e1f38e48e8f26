"""The comparison of starts, as small as it goes."""

from dataclasses import asdict, replace

import pytest

from mmivit.experiments.data import drawn, photographs
from mmivit.experiments.runs import RunLog
from mmivit.experiments.warm_start import (
    DOWNSTREAM,
    DRAWN,
    PHOTOGRAPHS,
    STARTS,
    Budget,
    plan,
    run_config,
    train,
    warm_start,
)
from mmivit.experiments.warm_start_report import warm_start_tables, write_warm_start_report
from tests.conftest import CONFIGS, run_tool
from tests.datasets.test_photographs import TREES, cells, trees  # noqa: F401 (fixtures)

TINY = Budget(
    pretrain=1,
    size=32,
    continued=4,
    downstream=2,
    downstream_size=32,
    batch=2,
    images=16,
    held_out=2,
    classified=DOWNSTREAM,
    tried=('(1, 0)', '(0, 16)'),
)


def test_every_start_of_every_task_is_a_run(tmp_path):
    data = drawn(tmp_path, TINY)
    first, then = plan(TINY, data, [0, 1])
    assert [(run.task, run.seed) for run in first] == [('pretrain', 0), ('pretrain', 1)]
    tasks = ('classification', 'segmentation', 'detection')
    expected = {(task, start, seed) for task in tasks for start in DOWNSTREAM for seed in (0, 1)}
    assert {(run.task, run.start, run.seed) for run in then} == expected
    assert len({run.name for run in first + then}) == len(first + then)
    for budget in (DRAWN, PHOTOGRAPHS):
        assert set(DOWNSTREAM) <= set(budget.classified) <= set(STARTS)


def test_all_of_it(tmp_path, capfd):
    data = drawn(tmp_path, TINY)
    log, runs = warm_start(tmp_path, CONFIGS, data, TINY, [0], jobs=1)
    assert len(log.records) == len(runs) == 1 + 3 * len(DOWNSTREAM)
    assert warm_start(tmp_path, CONFIGS, data, TINY, [0])[0].records == log.records  # all made
    at_once = log.get(task='pretrain')['score']
    assert len(at_once) == 2 * (2 + 2 * len(TINY.tried))
    # 2 x 2 tokens: all are landmarks, and each keeps to its own.
    assert at_once['(0, 16), 7 at 32'] == at_once['MHSA at 32']
    for task in ('classification', 'segmentation', 'detection'):
        scores = {r['start']: r['score'] for r in log.records if r['task'] == task}
        assert set(scores) == set(DOWNSTREAM)
        assert {tuple(s) for s in scores.values()} == (
            {('0', '1', '2', '3', '4')} if task == 'classification' else {('1', '2')}
        )
    tables = write_warm_start_report(log, runs, tmp_path, 'Drawn images')
    assert (tmp_path / 'warm_start.md').read_text() == tables
    assert '| content and locality, landmarks | 32 x 32 | 64 x 64 |' in tables
    assert '| accuracy (%): start, landmarks | 0 | 1 | 2 | 3 | 4 |' in tables
    assert '| box AP50 (%): start, landmarks | 1 | 2 |' in tables
    assert "| start, landmarks | maps' cosine, before |" in tables
    assert (tmp_path / 'warm_start.png').read_bytes().startswith(b'\x89PNG')
    assert '12 of 12 runs' in capfd.readouterr().err


def test_means_are_over_seeds(tmp_path):
    log = RunLog(tmp_path / 'runs.jsonl')
    first, then = plan(TINY, drawn(tmp_path, TINY), [0, 1, 2])
    alike = dict(map_cosine=1.0, output_cka=1.0, effective_rank=1.0)
    diversity = dict(before=alike, after=alike)
    for run in first + then:
        score = {'MHSA at 32' if run in first else '4': (1.0, 2.0, 6.0)[run.seed]}
        log.add(**asdict(run), score=score, diversity=diversity)
    tables = warm_start_tables(log, first + then)
    assert tables.count('| 3.0 ± 2.6 |') == 1 + 3 * len(DOWNSTREAM)


def test_photographs_have_a_classifier_and_a_detector_without_masks(trees, cells, tmp_path):  # noqa: F811
    for source, package in ((trees, 'deepforest'), (cells, 'elpv_dataset')):
        (tmp_path / package).symlink_to(source / package)
    budget = replace(TINY, downstream_size=64)
    data = photographs(tmp_path, tmp_path / 'out', budget, TREES)
    first, then = plan(budget, data, [0])
    assert {run.task for run in then} == {'classification', 'detection'}
    (tmp_path / 'out').mkdir(exist_ok=True)
    for run in (*first, next(run for run in then if run.task == 'detection')):
        found = train(run, data, CONFIGS, tmp_path / 'out', TINY.tried)
        assert all(0 <= score <= 100 for score in found['score'].values())


@pytest.mark.parametrize('start', DOWNSTREAM)
def test_a_backbone_has_its_start(start, tmp_path, monkeypatch):
    configs = []
    monkeypatch.setattr(
        'mmivit.experiments.warm_start.train_and_score', lambda cfg: configs.append(cfg) or {}
    )
    data = drawn(tmp_path, TINY)
    _, then = plan(TINY, data, [3])
    train(
        next(run for run in then if (run.task, run.start) == ('segmentation', start)),
        data,
        CONFIGS,
        tmp_path,
        TINY.tried,
    )
    backbone = configs[0].model.backbone
    assert backbone.attention == STARTS[start].attention
    if not STARTS[start].weights:
        assert backbone.init_cfg is None
    else:
        assert backbone.init_cfg.checkpoint == str(tmp_path / 'mhsa_1_3.pth')
        assert backbone.init_cfg.paper_start == (start == '(1, 0), 7')


def test_config_of_a_detector_needs_no_masks(tmp_path):
    data = drawn(tmp_path, TINY)
    _, then = plan(TINY, data, [0])
    cfg = run_config(next(r for r in then if r.task == 'detection'), data, CONFIGS)
    assert 'mask' not in str(cfg.model.roi_head)
    for loader in (cfg.train_dataloader, cfg.val_dataloader):
        assert "'with_mask': True" not in str(loader.dataset.pipeline)
    assert cfg.val_evaluator.metric == 'bbox'


def test_command_refuses_in_one_line(tmp_path):
    refused = run_tool('analysis/warm_start.py', 'out', '--photographs', 'wheels', cwd=tmp_path)
    assert refused.returncode == 1
    assert refused.stderr.startswith('warm_start: wheels holds no elpv_dataset/data')
    assert refused.stderr.count('\n') == 1
