"""The log of an experiment's runs."""

import json

import pytest

from mmivit.experiments.runs import RunLog, spread


def test_the_log_is_read_back(tmp_path):
    RunLog(tmp_path / 'runs.jsonl').add(run='a', seed=1, miou={'2': 3.0})
    log = RunLog(tmp_path / 'runs.jsonl')
    assert log.get(run='a', seed=1) == json.loads((tmp_path / 'runs.jsonl').read_text())
    assert log.get(run='a', seed=2) is None


def test_a_torn_last_line_is_dropped(tmp_path):
    path = tmp_path / 'runs.jsonl'
    log = RunLog(path)
    log.add(run='a', seed=1)
    log.add(run='a', seed=2)
    path.write_bytes(path.read_bytes()[:-5])
    log = RunLog(path)
    assert log.records == [dict(run='a', seed=1)]
    log.add(run='a', seed=3)
    assert RunLog(path).records == [dict(run='a', seed=1), dict(run='a', seed=3)]
    path.write_text('{"run": ')
    assert RunLog(path).records == []
    path.write_text('no record\n{}\n')
    with pytest.raises(ValueError, match='line 1'):
        RunLog(path)


def test_mean_and_standard_deviation():
    assert spread([1.0, 2.0, 6.0]) == '3.0 ± 2.6'
    assert spread(iter([1.234]), digits=2) == '1.23'
