"""What test.py checks before a run starts."""

from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config

from mmivit.apis import test
from mmivit.apis.models import build_model
from mmivit.errors import CheckpointError, LaunchError
from tests.conftest import CONFIGS

CONFIG = str(CONFIGS / 'mask_rcnn_ivit_shapes.py')
FIRST_STEP = 'test_dataloader.dataset.pipeline.0.type'
STOCK = [
    dict(type='LoadImageFromFile'),
    dict(
        type='TestTimeAug',
        transforms=[
            [dict(type='Resize', scale=(128, 128), keep_ratio=True)],
            [dict(type='RandomFlip', prob=prob) for prob in (0.0, 1.0)],
            [
                dict(
                    type='PackDetInputs',
                    meta_keys=(
                        'img_id',
                        'img_path',
                        'ori_shape',
                        'img_shape',
                        'scale_factor',
                        'flip',
                        'flip_direction',
                    ),
                )
            ],
        ],
    ),
]
LOADED_OTHERWISE = [dict(type='LoadImageFromFile', color_type='grayscale'), *STOCK[1:]]


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
        (
            dict(tta=True, cfg_options=dict(tta_pipeline=LOADED_OTHERWISE)),
            r"tta_pipeline loads images by LoadImageFromFile\(color_type='grayscale'\), the test",
        ),
        (
            dict(tta=True, cfg_options={'test_evaluator.metric': 'segm', 'tta_pipeline': STOCK}),
            '--tta: mmdet merges boxes alone, and test_evaluator.metric asks for masks alone',
        ),
        (
            dict(show_dir='x', cfg_options={FIRST_STEP: 'LoadMultiChannelImageFromFiles'}),
            '--show-dir: mmdet draws on files that OpenCV reads, .* LoadMultiChannelImageFromFiles',
        ),
    ],
)
def test_what_does_not_fit_is_said_before_anything_is_built(options, message, tmp_path):
    torch.save(dict(weight=torch.rand(2)), tmp_path / 'y.pth')
    with pytest.raises(LaunchError, match=message):
        test.evaluate(CONFIG, **{'checkpoint': str(tmp_path / 'y.pth'), **options})


def test_augmentation_of_a_detector_with_masks_evaluates_its_boxes(shapes, tmp_path, monkeypatch):
    monkeypatch.chdir(shapes)
    torch.manual_seed(0)
    torch.save(build_model(Config.fromfile(CONFIG)).state_dict(), tmp_path / 'x.pth')
    options = dict(tta_pipeline=STOCK, test_dataloader=dict(num_workers=0, batch_size=2))
    options['test_dataloader']['persistent_workers'] = False
    # Nothing is left out where something is drawn: this config has no hook for it any more.
    options['default_hooks.visualization'] = None
    metrics = test.evaluate(
        CONFIG,
        str(tmp_path / 'x.pth'),
        str(tmp_path),
        tta=True,
        show_dir='pictures',
        cfg_options=options,
    )
    assert 'coco/bbox_mAP' in metrics
    assert 'coco/segm_mAP' not in metrics
    assert len(list(tmp_path.rglob('pictures/*.jpg'))) == 4
