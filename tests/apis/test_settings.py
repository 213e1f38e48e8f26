"""Settings without weights: those of the run beside those in the checkpoint."""

import copy
from functools import lru_cache

import pytest
import torch

from mmivit.apis import inferencers, test
from mmivit.apis.config import read_config
from mmivit.apis.models import build_model, load_model
from mmivit.apis.settings import differing_settings
from mmivit.weights.stored_config import backbone_text
from tests.conftest import CONFIGS

DETECTOR, SEGMENTOR = 'mask_rcnn_ivit_shapes.py', 'upernet_ivit_shapes.py'


@lru_cache
def read(name):
    return read_config(str(CONFIGS / name))


def config(name, **options):
    cfg = copy.deepcopy(read(name))
    cfg.merge_from_dict(options)
    return cfg


@lru_cache
def text(name, *options):
    return config(name, **dict(options)).pretty_text


def warn(name, trained, used):
    checkpoint = dict(meta=dict(cfg=text(name, *trained.items())))
    return '\n'.join(differing_settings(config(name, **used), 'x.pth', checkpoint))


STEP = 'test_dataloader.dataset.pipeline.1'


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTOR])
@pytest.mark.parametrize(
    ('trained', 'used', 'line'),
    [
        ({}, {'model.backbone.landmarks': 14}, 'model.backbone.landmarks is 14 here, 7 in the'),
        ({'model.backbone.landmarks': 14}, {}, 'landmarks is 7 here, 14 in the checkpoint'),
        ({}, {'model.backbone.interaction': 'pre'}, "interaction is 'pre' here, 'post' in"),
        ({}, {'model.backbone.head_dim': 16}, 'head_dim is 16 here, 32 in'),
        ({}, {'model.backbone.output_stride': 16}, 'output_stride is 16 here, 32 in'),
        ({}, {'model.backbone.attention': 'mhsa'}, "attention is 'mhsa' here, 'imhsa' in"),
        ({}, {f'{STEP}.scale': (7, 9)}, r'test pipeline.Resize.scale is [7, 9] here, ['),
        ({}, {f'{STEP}.type': 'Pad'}, 'test pipeline.Resize is absent here, {'),
        ({}, {'model.data_preprocessor.mean': [1, 2, 3]}, 'mean is [1, 2, 3] here, ['),
    ],
)
def test_settings_that_differ_are_named_with_both_values(name, trained, used, line):
    warning = warn(name, trained, used)
    assert warning.startswith('x.pth was trained with other settings')
    assert line in warning


@pytest.mark.parametrize('name', [DETECTOR, SEGMENTOR])
@pytest.mark.parametrize(
    ('trained', 'used'),
    [
        ({}, {}),
        ({}, {'model.backbone.landmarks': 7, 'model.backbone.type': 'IViT'}),
        ({}, {'model.backbone.drop_path_rate': 0.5, 'model.backbone.init_cfg': None}),
        ({}, {'train_dataloader.batch_size': 1, 'model.backbone.frozen_stages': 2}),
        ({'model.backbone.attention': 'mhsa'}, {'model.backbone.attention': 'mhsa'}),
        (
            {'model.backbone.attention': 'mhsa', 'model.backbone.landmarks': 14},
            {'model.backbone.attention': 'mhsa'},
        ),
    ],
)
def test_settings_that_mean_the_same_are_not(name, trained, used):
    assert warn(name, trained, used) == ''


def test_what_is_published_of_a_config_is_compared():
    cfg = text(DETECTOR, ('model.backbone.landmarks', 14))
    published = dict(meta=dict(cfg=backbone_text(dict(meta=dict(cfg=cfg)))))
    same = config(DETECTOR, **{'model.backbone.landmarks': 14})
    assert differing_settings(same, '', published) == []
    assert 'landmarks is 7 here, 14' in differing_settings(config(DETECTOR), '', published)[0]


def test_whoever_loads_a_checkpoint_is_warned(tmp_path, log, monkeypatch):
    trained, used = (config(SEGMENTOR, **{'model.backbone.landmarks': g}) for g in (5, 9))
    path = str(tmp_path / 'x.pth')
    state = build_model(trained).state_dict()
    meta = dict(cfg=trained.pretty_text, dataset_meta=dict(classes=['a'], palette=[[0, 0, 0]]))
    torch.save(dict(state_dict=state, meta=meta), path)

    def loads(load):
        log.clear()
        load()
        return [line for line in log if 'landmarks is 9 here, 5 in the checkpoint' in line]

    assert len(loads(lambda: load_model(used, path))) == 1
    assert len(loads(lambda: inferencers.load_inferencer(used, path, 'cpu'))) == 1
    monkeypatch.setattr(test, 'check_paths', lambda *args: None)
    monkeypatch.setattr(test, 'build_runner', lambda cfg: 1 / 0)
    warned = []
    monkeypatch.setattr(test, 'differing_settings', lambda *args: warned.append(args) or [])
    with pytest.raises(ZeroDivisionError):
        test.evaluate(str(CONFIGS / SEGMENTOR), path)
    assert len(warned) == 1
