"""Graphs that compute what torch does pass, and no others."""

import copy

import pytest
import torch
from mmengine.utils import digit_version

from mmivit.errors import ExportError
from mmivit.export.benchmark import scatter
from mmivit.export.graphs import write_onnx
from mmivit.export.parity import Parity, check_parity
from mmivit.models import IViT

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.5.0'), reason='its exporter is too old'
)
# Batch, height, width.
SIZES = ((1, 31, 31), (2, 112, 137), (1, 64, 400), (2, 224, 224), (1, 333, 250))


@pytest.fixture(scope='module')
def nano(tmp_path_factory):
    """The backbone and its graph."""
    model = scatter(IViT('nano')).eval()
    path = tmp_path_factory.mktemp('nano') / 'nano.onnx'
    write_onnx(model, path, [f'map{i}' for i in range(4)])
    return model, path


def test_the_backbone_in_onnxruntime(nano):
    model, path = nano
    parities = check_parity(path, model, 3, SIZES)
    assert all(0 < p.difference <= 1e-4 for p in parities)


@pytest.mark.parametrize('name', ['stages.2.blocks.1.token_mixer.interaction_q', 'norm3.weight'])
def test_a_graph_that_differs_is_refused(nano, name):
    model, path = nano
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.get_parameter(name).mul_(1.01)
    with pytest.raises(ExportError, match=r'differs from torch by .* at 1 x 3 x 64 x 64'):
        check_parity(path, other, 3, [(1, 64, 64)])


def test_a_graph_that_does_not_run_is_refused(nano):
    with pytest.raises(ExportError, match='onnxruntime cannot run the graph at 1 x 3 x 2 x 2'):
        check_parity(nano[1], lambda images: [images], 3, [(1, 2, 2)])


def test_a_row_of_the_table():
    assert Parity(2, 31, 64, 1.2e-6).cells('nano') == ['nano', '2 x 31 x 64', '1.2e-06']
