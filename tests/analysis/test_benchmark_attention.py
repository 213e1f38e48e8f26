"""Which attentions are timed, and what is said about goals; never how fast anything is."""

import pytest

from mmivit.analysis import benchmark_attention as benchmark
from mmivit.models import build_attention
from mmivit.utils import timing


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, 'ROUNDS', 2)


def test_every_attention_is_timed_and_written(tmp_path):
    rows = benchmark.benchmark_attention(16, 2, grids=((4, 4), (8, 8)), batches=(1, 2))
    names = {'mhsa', 'decomposed', 'interactive', 'imhsa', 'floor'}
    found = {(r['attention'], r['tokens'], r['batch'], r['mode']) for r in rows}
    modes = ('forward', 'training')
    assert found == {(a, n, b, m) for a in names for n in (16, 64) for b in (1, 2) for m in modes}
    assert all(row['low'] <= row['seconds'] <= row['high'] for row in rows)
    assert all((row['saved_bytes'] is None) == (row['mode'] == 'forward') for row in rows)
    benchmark.plot_attention(rows, tmp_path / 'figures.png')
    assert (tmp_path / 'figures.png').read_bytes().startswith(b'\x89PNG')


def test_attentions_of_vision_transformers_are_timed():
    rows = benchmark.benchmark_attention(16, 2, grids=((4, 4), (3, 8)), batches=(1,), prefix=5)
    assert {r['tokens'] for r in rows} == {16, 24}
    assert {r['attention'] for r in rows} == {*benchmark.ATTENTIONS, 'floor'}


def test_quadratic_attentions_stop_at_their_limit(monkeypatch):
    monkeypatch.setattr(benchmark, 'QUADRATIC_LIMIT', {'mhsa': 16, 'interactive': 4})
    rows = benchmark.benchmark_attention(16, 2, grids=((4, 4), (8, 8)), batches=(1,))
    assert {r['attention'] for r in rows if r['tokens'] == 64} == {'decomposed', 'imhsa', 'floor'}


def test_a_line_per_goal():
    times = dict(mhsa=10.0, decomposed=2.0, interactive=50.0, imhsa=2.2, floor=1.0)
    rows = [
        dict(
            attention=name,
            tokens=tokens,
            mode=mode,
            batch=batch,
            seconds=seconds * tokens,
            peak_bytes=tokens * 100,
            saved_bytes=tokens * 64 * 4 * 5 if mode == 'training' else None,
            dim=64,
            dtype='float32',
        )
        for name, seconds in times.items()
        for tokens in (196, 1050, 4200, 16800)
        for mode in ('forward', 'training')
        for batch in (1, 4)
    ]
    lines = benchmark.attention_verdicts(rows)
    assert any('4,200 tokens, forward: 4.55x' in line and 'missed' in line for line in lines)
    assert any('slope of seconds: 1.00' in line and 'reached' in line for line in lines)
    assert any('the core saves 3.00x' in line and 'reached' in line for line in lines)
    assert any('batch 4: 0.25x' in line for line in lines)


def test_attentions_are_those_of_the_paper():
    for name in benchmark.ATTENTIONS:
        assert build_attention(name, 16, 2)
