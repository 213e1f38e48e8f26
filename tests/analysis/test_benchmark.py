"""What the benchmarks count and print; never how fast anything is."""

import csv
import json

import pytest
import torch
from torch import nn

from mmivit.analysis.benchmark import peak_bytes, saved_bytes, step, table, write_rows


def test_saved_bytes_count_each_storage_once():
    linear, x = nn.Linear(8, 8, bias=False), torch.randn(4, 8, requires_grad=True)
    assert saved_bytes(lambda: linear(x), linear.parameters()) == 4 * 8 * 4
    assert saved_bytes(lambda: linear(x)) == 4 * 8 * 4 + 8 * 8 * 4


def test_peak_bytes_are_those_held_at_once():
    x = torch.randn(1000, 10)

    def two_held_one_freed():
        a = x + 1  # 40 kB
        b = a * 2  # 80 kB
        del a
        return b - 1  # 80 kB again

    assert peak_bytes(two_held_one_freed, 'cpu') == pytest.approx(80_000, rel=0.01)


def test_a_step_is_a_forward_pass_or_a_backward_pass_too():
    linear, x = nn.Linear(2, 3), torch.ones(4, 2)
    assert not step(linear, x, training=False)().requires_grad
    assert linear.weight.grad is None
    step(linear, x, training=True)()
    assert linear.weight.grad is not None


def test_figures_as_files(tmp_path):
    rows = [dict(model='a', seconds=0.5), dict(model='b', seconds=1.5)]
    write_rows(rows, dict(cpu='some'), tmp_path / 'new' / 'figures')
    written = json.loads((tmp_path / 'new' / 'figures.json').read_text())
    assert written == dict(machine=dict(cpu='some'), rows=rows)
    with (tmp_path / 'new' / 'figures.csv').open() as file:
        assert [row['seconds'] for row in csv.DictReader(file)] == ['0.5', '1.5']


def test_figures_as_a_table():
    rows = [
        dict(model=model, mode=mode, batch=1, seconds=seconds)
        for model, mode, seconds in (
            ('a', 'forward', 0.25), ('a', 'training', 1.5), ('b', 'training', 2.0)
        )
    ]  # fmt: skip
    assert table(rows, 'model', ('mode', 'batch')).splitlines() == [
        '| model | forward x 1 | training x 1 |',
        '|---|---:|---:|',
        '| a | 250 | 1500 |',
        '| b |  | 2000 |',
    ]
