"""Images as the config's own test pipeline loads them, in every command."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmcv.transforms import BaseTransform
from mmengine.config import Config
from mmengine.registry import TRANSFORMS, DefaultScope
from PIL import Image

from mmivit.apis.models import build_model
from mmivit.apis.predict import predict
from mmivit.apis.test import evaluate
from mmivit.export.benchmark import scatter
from tests.conftest import CONFIGS

BASE = CONFIGS / 'upernet_ivit_shapes.py'
NAMES = ('a', 'north/a', 'south/b')  # one name in two folders


@TRANSFORMS.register_module()
class LoadFiveBands(BaseTransform):
    """Of a .npy file."""

    def transform(self, results):
        image = np.load(results['img_path'])
        return dict(results, img=image, img_shape=image.shape[:2], ori_shape=image.shape[:2])


def workspace(folder, loader, channels, suffix, write):
    """Labelled images, and a segmentor with random weights that are far from their start."""
    rng = np.random.default_rng(0)
    for name in NAMES:
        for kind in ('images', 'labels'):
            (folder / kind / name).parent.mkdir(parents=True, exist_ok=True)
        write(f'{folder}/images/{name}{suffix}', rng)
        cv2.imwrite(f'{folder}/labels/{name}.png', np.ones((40, 50), np.uint8))
    (folder / 'config.py').write_text(f"""
_base_ = '{BASE}'
pipeline = [
    {loader},
    dict(type='Resize', scale=(64, 64), keep_ratio=True),
    dict(type='LoadAnnotations'),
    dict(type='PackSegInputs'),
]
model = dict(
    data_preprocessor=dict(mean=[30_000.0] * {channels}, std=[9_000.0] * {channels}),
    backbone=dict(in_channels={channels}),
)
test_dataloader = dict(
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        data_root='{folder}',
        img_suffix='{suffix}',
        data_prefix=dict(img_path='images', seg_map_path='labels'),
        pipeline=pipeline,
    ),
)
""")
    cfg = Config.fromfile(folder / 'config.py')
    torch.manual_seed(0)
    weights = scatter(build_model(cfg)).state_dict()
    meta = dict(dataset_meta=dict(cfg.metainfo))
    torch.save(dict(state_dict=weights, meta=meta), folder / 'x.pth')


def deep(*shape):
    """Writes images of 16 bits."""
    return lambda path, rng: cv2.imwrite(path, rng.integers(0, 60_000, shape).astype(np.uint16))


@pytest.mark.parametrize(
    ('loader', 'channels', 'suffix', 'write'),
    [
        (dict(type='LoadImageFromFile', color_type='unchanged'), 3, '.png', deep(40, 50, 3)),
        (dict(type='LoadImageFromFile', color_type='grayscale'), 1, '.png', deep(40, 50)),
        (
            dict(type='LoadFiveBands'),
            5,
            '.npy',
            lambda path, rng: np.save(path, rng.integers(0, 60_000, (40, 50, 5)).astype('f4')),
        ),
    ],
    ids=['sixteen bits', 'grey', 'bands'],
)
def test_every_command_labels_alike(loader, channels, suffix, write, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    workspace(tmp_path, loader, channels, suffix, write)
    evaluate('config.py', 'x.pth', out='tested')
    report = predict('config.py', 'x.pth', ['images'], 'predicted')
    assert not report.failed
    tested = {str(p.relative_to('tested')): p for p in Path('tested').rglob('*.png')}
    assert sorted(tested) == [f'{name}.png' for name in NAMES]
    found = set()
    for name in NAMES:
        labels = Path(f'predicted/labels/{name}{suffix}.png')
        # Byte for byte: the palette is the same, and nothing is added to the labels.
        assert tested[f'{name}.png'].read_bytes() == labels.read_bytes()
        found |= set(np.unique(Image.open(labels)))
    assert len(found) > 1
    if loader['type'] == 'LoadImageFromFile':  # the stock inferencer takes no other
        from mmseg.apis import MMSegInferencer

        with DefaultScope.overwrite_default_scope('mmseg'):
            stock = MMSegInferencer('config.py', 'x.pth')
        for name in NAMES:
            labels = np.asarray(Image.open(f'predicted/labels/{name}{suffix}.png'))
            assert (stock(f'images/{name}{suffix}')['predictions'] == labels).all()


def test_pictures_where_nothing_in_the_config_draws(tmp_path, monkeypatch):
    """Nor does drawing need the training data, which mmseg's hook has MMEngine look for."""
    monkeypatch.chdir(tmp_path)
    workspace(tmp_path, dict(type='LoadImageFromFile'), 3, '.png', deep(40, 50, 3))
    options = {
        'default_hooks.visualization': None,
        'visualizer': dict(_delete_=True, type='SegLocalVisualizer', name='plain'),
        'train_dataloader.dataset.data_root': 'none',
    }
    evaluate('config.py', 'x.pth', show_dir='pictures', cfg_options=options)
    assert len(list(Path('pictures').rglob('*.png'))) == 2  # by their names alone: a and b
