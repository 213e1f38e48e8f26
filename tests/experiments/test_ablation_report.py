"""What the ablations' tables say."""

from dataclasses import asdict, replace

import pytest

from mmivit.experiments.ablation import DIVERSITY, PEERS, plan
from mmivit.experiments.ablation_report import ablation_tables, peer_costs
from mmivit.experiments.warm_start import RunLog
from tests.experiments.test_ablation import TINY


def test_peers_are_of_like_size():
    ours, *others = (costs := peer_costs()).values()
    assert set(costs) == set(PEERS)
    for other in others:
        assert other.parameters == pytest.approx(ours.parameters, rel=0.15)
        assert other.macs == pytest.approx(ours.macs, rel=0.15)


def test_mean_and_spread_are_those_of_the_seeds(tmp_path):
    log = RunLog(tmp_path / 'runs.jsonl')
    rows = {'attention': plan(replace(TINY, seeds=3))['attention']}
    diversity = dict.fromkeys(('before', 'after'), dict.fromkeys(DIVERSITY, 1.0))
    for _, _, runs in rows['attention']:
        for run, value in zip(runs, (1.0, 2.0, 6.0)):
            log.add(**asdict(run), score={'mIoU': value}, seconds=1.0, diversity=diversity)
    assert '| imhsa | 3.0 ± 2.6 | 3 |' in ablation_tables(log, rows)
