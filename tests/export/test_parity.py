"""Graphs that compute what torch does pass, and no others."""

import copy

import pytest
import torch
from mmengine.utils import digit_version

from mmivit.errors import ExportError
from mmivit.export import graphs
from mmivit.export.graphs import write_onnx
from mmivit.export.parity import Parity, check_parity
from mmivit.models import build_attention
from mmivit.weights.converters import LINEAR

pytestmark = pytest.mark.skipif(
    digit_version(torch.__version__) < digit_version('2.5.0'), reason='its exporter is too old'
)
# Batch, height, width of a grid of tokens.
GRIDS = ((1, 2, 2), (2, 7, 9), (1, 4, 25), (3, 14, 14), (1, 21, 16))


class Landmarks(torch.nn.Module):
    """Both attentions with landmarks, of any content and locality; every pixel is a token."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.attentions = torch.nn.ModuleList(build_attention(kind, 32, 4) for kind in LINEAR)
        for name, parameter in self.named_parameters():
            if 'interaction' in name:
                parameter.data.normal_()
            elif name.endswith('.content'):
                parameter.data.uniform_(-1, 2)
            elif name.endswith('.locality'):
                parameter.data.uniform_(0, 3)

    def forward(self, image):
        """(B, 32, H, W), 0 to 255 -> two of the same."""
        x = image.permute(0, 2, 3, 1) / 64
        return tuple(attention(x).permute(0, 3, 1, 2) for attention in self.attentions)


@pytest.fixture(scope='module')
def landmarks(tmp_path_factory):
    """A small module and its graph."""
    model, path = Landmarks().eval(), tmp_path_factory.mktemp('landmarks') / 'graph.onnx'
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(graphs, 'EXPORTED_SIZE', (2, 14, 18))
        write_onnx(model, path, LINEAR, channels=32)
    return model, path


def test_content_and_locality_in_onnxruntime(landmarks):
    model, path = landmarks
    parities = check_parity(path, model, 32, GRIDS)
    assert len(parities) == len(GRIDS)
    assert all(0 < p.difference <= 1e-4 for p in parities)


@pytest.mark.parametrize(
    ('name', 'factor'),
    [('1.interaction_q', 1.01), ('0.content', 1.1), ('1.locality', 1.1), ('0.proj.weight', 1.01)],
)
def test_a_graph_that_differs_is_refused(landmarks, name, factor):
    model, path = landmarks
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.attentions.get_parameter(name).mul_(factor)
    with pytest.raises(ExportError, match=r'differs from torch by .* at 1 x 32 x 9 x 8'):
        check_parity(path, other, 32, [(1, 9, 8)])


def test_a_graph_that_does_not_run_is_refused(landmarks):
    with pytest.raises(ExportError, match='the graph cannot be run at 1 x 3 x 9 x 8'):
        check_parity(landmarks[1], lambda images: [images], 3, [(1, 9, 8)])


def test_a_row_of_the_table():
    assert Parity(2, 31, 64, 1.2e-6).cells('nano') == ['nano', '2 x 31 x 64', '1.2e-06']
    assert Parity.summary([Parity(1, 31, 64, 1e-6), Parity(1, 9, 9, 2e-5)]) == 'within 2.0e-05'
