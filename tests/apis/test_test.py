"""What test.py checks before a run starts."""

from types import SimpleNamespace

import pytest
import torch

from mmivit.apis import test
from mmivit.errors import CheckpointError, LaunchError
from tests.conftest import CONFIGS

CONFIG = str(CONFIGS / 'mask_rcnn_ivit_shapes.py')


@pytest.fixture(autouse=True)
def without_data(monkeypatch):
    monkeypatch.setattr(test, 'check_paths', lambda *args: None)


@pytest.mark.parametrize('wrapped', [False, True])
def test_weights_of_another_model_are_not_tested(wrapped, tmp_path, monkeypatch):
    torch.save(dict(weight=torch.rand(2)), tmp_path / 'x.pth')
    model = torch.nn.Linear(1, 1)
    wrapper = torch.nn.Module()
    wrapper.module = model
    runner = SimpleNamespace(model=wrapper if wrapped else model)
    monkeypatch.setattr(test, 'build_runner', lambda cfg: runner)
    with pytest.raises(CheckpointError, match=r'x\.pth: it is of another model: 2 of the 2'):
        test.evaluate(CONFIG, str(tmp_path / 'x.pth'))


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        (dict(out='folder'), '--out folder: detections are written to a .pkl file'),
        (dict(tta=True, cfg_options=dict(tta_model=None)), '--tta: .* defines no tta_model'),
        (dict(checkpoint='x.pth'), 'checkpoint: no file x.pth'),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_built(options, message, tmp_path):
    torch.save(dict(weight=torch.rand(2)), tmp_path / 'y.pth')
    with pytest.raises(LaunchError, match=message):
        test.evaluate(CONFIG, **{'checkpoint': str(tmp_path / 'y.pth'), **options})
