"""The Runner of a config."""

import pytest
from mmengine.config import Config

from mmivit.apis.runner import build_runner
from tests.conftest import CONFIGS


@pytest.mark.parametrize('name', ['mask_rcnn_ivit_shapes.py', 'upernet_ivit_shapes.py'])
def test_sync_bn_becomes_bn_on_one_process(name, tmp_path):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.work_dir = str(tmp_path)
    part = cfg.model.get('neck') or cfg.model.decode_head
    part.norm_cfg = dict(type='SyncBN')
    norms = [type(m).__name__ for m in build_runner(cfg).model.modules() if 'BatchNorm' in str(m)]
    assert norms
    assert 'SyncBatchNorm' not in norms
