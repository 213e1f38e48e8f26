"""What is published of a trained checkpoint."""

import os
import re

import pytest
import torch
from mmengine.runner.checkpoint import load_checkpoint
from safetensors import safe_open

from mmivit.models import IViT
from mmivit.weights.publish import publish
from mmivit.weights.stored_config import stored_backbone
from tests.conftest import run_tool
from tests.weights.states import equal, prefixed


def test_publishing_strips_and_names(folder):
    weights = prefixed(IViT('nano').state_dict())
    checkpoint = dict(
        state_dict=weights,
        ema_state_dict={f'module.{name}': tensor for name, tensor in weights.items()},
        optimizer=dict(state={0: torch.ones(10)}),
        message_hub={},
        param_schedulers=[],
        meta=dict(dataset_meta=dict(classes=('a', 'b')), epoch=3, cfg='data_root = "/home/me"'),
    )
    torch.save(checkpoint, 'epoch_3.pth')
    written = publish('epoch_3.pth', 'out/mask_rcnn.pth')
    assert re.fullmatch(r'mask_rcnn-[0-9a-f]{8}\.pth', written.name)
    assert os.listdir('out') == [written.name]
    # torch.hub checks the name against the contents.
    state = torch.hub.load_state_dict_from_url(
        written.resolve().as_uri(), model_dir='hub', check_hash=True
    )
    assert set(state) == {'state_dict', 'meta'}
    assert state['meta'] == dict(dataset_meta=dict(classes=('a', 'b')), epoch=3)
    assert equal(state['state_dict'], weights)
    load_checkpoint(IViT('nano'), str(written), revise_keys=[(r'^backbone\.', '')])
    with pytest.raises(FileExistsError):
        publish('epoch_3.pth', 'out/mask_rcnn.pth')
    with safe_open(publish('epoch_3.pth', 'safe.safetensors'), 'pt') as file:
        assert file.metadata()['dataset_meta'] == '{"classes": ["a", "b"]}'
    assert publish('epoch_3.pth', 'out/mask_rcnn.pth', force=True) == written


def test_settings_without_weights_are_kept_and_paths_are_not(folder):
    backbone = dict(type='mmivit.IViT', landmarks=9, init_cfg=dict(checkpoint='/home/me'))
    meta = dict(cfg=f'model = {dict(backbone=backbone, pretrained="/home/me")}')
    torch.save(dict(state_dict={'a': torch.ones(3)}, meta=meta), 'a.pth')
    published = torch.load(publish('a.pth', 'b.pth'))
    assert stored_backbone(published)['landmarks'] == 9
    assert '/home/me' not in str(published)


def test_the_command(folder):
    torch.save({'a': torch.ones(3)}, 'a.pth')
    done = run_tool('publish_model.py', 'a.pth', 'b.safetensors', cwd=folder)
    assert done.returncode == 0, done.stderr
    assert re.search(r'Weights: URL/b-[0-9a-f]{8}\.safetensors', done.stdout)
