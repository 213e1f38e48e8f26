"""What is timed, how often and in which order; never how fast anything is."""

import torch

from mmivit.utils import timing


def test_functions_are_called_in_turn(monkeypatch):
    monkeypatch.setattr(timing, 'ROUNDS', 5)
    calls = []
    result = timing.compare(dict(a=lambda: calls.append('a'), b=lambda: calls.append('b')), 'cpu')
    assert calls[:2] == ['a', 'b']  # warm
    assert all({*calls[i : i + 2]} == {'a', 'b'} for i in range(2, len(calls), 2))
    assert len(calls) == 2 * (1 + 5)
    for times in result.values():
        assert times['rounds'] == 5
        assert 0 <= times['low'] <= times['seconds'] <= times['high']


def test_three_rounds_at_least():
    calls = []
    result = timing.compare(dict(a=lambda: calls.append('a')), 'cpu', limit=0)
    assert result['a']['rounds'] == 3
    assert len(calls) == 1 + 3


def test_the_machine_is_told():
    told = timing.machine('cpu')
    assert told['torch'] == torch.__version__
    assert told['gpu'] == 'none'
    assert float(told['softmax_probe_ms']) > 0
