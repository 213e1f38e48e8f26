"""The warm-start experiment, as small as it goes."""

import pytest

from mmivit.experiments import warm_start as experiments
from mmivit.experiments.warm_start import (
    KINDS,
    WarmStartBudget,
    warm_start,
    warm_start_tables,
)
from tests.conftest import CONFIGS, run_tool

BUDGET = WarmStartBudget(
    pretrain=1,
    pretrain_size=32,
    continued=4,
    finetune=2,
    size=64,
    val_interval=1,
    images=16,
    held_out=4,
)
CONFIG = CONFIGS / 'upernet_ivit_shapes.py'


def test_warm_start_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    class Killed(Exception):
        pass

    segment, made = experiments.segment, []

    def killed_at_the_third(config, folder, seed, backbone, budget):
        if len(made) == 2:
            raise Killed
        made.append(backbone)
        return segment(config, folder, seed, backbone, budget)

    monkeypatch.setattr(experiments, 'segment', killed_at_the_third)
    with pytest.raises(Killed):
        warm_start(tmp_path, CONFIG, [0], BUDGET)
    before = (tmp_path / 'runs.jsonl').read_text()
    # the budget, the pretraining, three classifiers and two segmentors
    assert len(before.splitlines()) == 7

    def stands_for_training(config, folder, seed, backbone, budget):
        made.append(backbone)
        return {'1': 1.0, '2': 2.0}

    monkeypatch.setattr(experiments, 'segment', stands_for_training)
    log = warm_start(tmp_path, CONFIG, [0], BUDGET)
    assert (tmp_path / 'runs.jsonl').read_text().startswith(before)
    assert len(made) == len(KINDS)
    assert [backbone['landmarks'] for backbone in made] == [7, 14, 7, 14]
    weights = [backbone.get('init_cfg', {}).get('checkpoint') for backbone in made]
    assert weights == [None, None, *[str(tmp_path / 'mhsa_0.pth')] * 2]
    scores = log.get(run='from scratch, 7', seed=0)['miou']
    assert set(scores) == {'1', '2'}
    table = warm_start_tables(log)
    assert '| mhsa at 32 |' in table
    assert '| accuracy (%), classification: start, landmarks | 1 | 2 | 3 | 4 |' in table
    assert '| warm start, 14 | 1.0 | 2.0 |' in table
    experiments.plot_warm_start(log, tmp_path / 'curve.png')
    assert (tmp_path / 'curve.png').read_bytes().startswith(b'\x89PNG')
    done = run_tool('analysis/warm_start.py', tmp_path, cwd=tmp_path)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(f'warm_start: {tmp_path}/runs.jsonl begins with')
    assert 'Traceback' not in done.stderr
