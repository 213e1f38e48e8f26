"""What is timed beside its parity; never how fast anything is."""

import pytest
import torch
from mmengine.utils import digit_version

from mmivit.export import benchmark, parity, targets
from mmivit.export.benchmark import Timed, benchmark_export
from mmivit.utils import timing
from tests.conftest import CONFIGS

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.5.0'), reason='its exporter is too old'
)
SEGMENTOR = CONFIGS / 'upernet_ivit_shapes.py'


def test_it_takes_backbones_and_whole_models(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr(targets, 'write_onnx', lambda *args: made.append(args[2]))

    def pairs(path, reference, channels, sizes):
        values = torch.ones(1, 2)
        yield parity.Pair((4, channels, 64, 96), lambda: [values], lambda: [values.numpy()])

    monkeypatch.setattr(targets, 'pairs', pairs)
    monkeypatch.setattr(timing, 'ROUNDS', 2)
    found = list(benchmark_export(['nano', str(SEGMENTOR)], 0, tmp_path))
    assert [timed.model for timed in found] == ['backbone nano', 'upernet_ivit_shapes']
    assert all(timed.parity == (4, 64, 96, 0.0) for timed in found)
    assert all(timed.torch_seconds > 0 and timed.onnx_seconds > 0 for timed in found)
    assert made == [['map0', 'map1', 'map2', 'map3'], ['logits']]


def test_a_row_of_the_table():
    timed = Timed('nano', parity.COLUMNS, parity.Parity(2, 31, 64, 1.2e-6), 0.012, 0.0034)
    assert dict(zip(timed.columns, timed.cells())) == {
        'model': 'nano',
        'batch x height x width': '2 x 31 x 64',
        'largest difference': '1.2e-06',
        'torch, ms': '12.0',
        'onnxruntime, ms': '3.4',
    }


def test_every_parameter_is_moved():
    before = torch.nn.Linear(3, 3)
    start = [parameter.clone() for parameter in before.parameters()]
    moved = benchmark.scatter(before)
    assert all((now != then).all() for now, then in zip(moved.parameters(), start))
