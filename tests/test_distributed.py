"""Two gloo processes against one of the same total batch, for detection and segmentation.

The models are such that the loss of a batch is the mean over its images whichever way it is split:
ATSS normalises by counts averaged over processes, and norms are over groups, not batches.
"""

import json
import os
import socket
import subprocess
import sys
from copy import deepcopy

import pytest
from mmengine.config import Config
from mmseg.registry import MODELS
from mmseg.utils import register_all_modules

from mmivit.weights.checkpoint import read_checkpoint
from tests.conftest import CONFIGS, ROOT, TIMEOUT
from tests.forked import Forked

STEPS = 4
BATCH = 4  # in total
GROUP_NORM = dict(type='GN', num_groups=4)


def detection():
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit_shapes.py')
    preprocessor = cfg.model.data_preprocessor
    preprocessor.pop('pad_mask')
    cfg.model = dict(
        type='ATSS',
        data_preprocessor=preprocessor,
        backbone=dict(type='mmivit.IViT', arch='nano', out_indices=(1, 2, 3)),
        neck=dict(type='FPN', in_channels=[64, 128, 256], out_channels=16, num_outs=3),
        bbox_head=dict(
            type='ATSSHead',
            num_classes=5,
            in_channels=16,
            stacked_convs=1,
            feat_channels=16,
            norm_cfg=GROUP_NORM,
            anchor_generator=dict(
                type='AnchorGenerator',
                ratios=[1.0],
                octave_base_scale=4,
                scales_per_octave=1,
                strides=[8, 16, 32],
            ),
            loss_bbox=dict(type='GIoULoss', loss_weight=2.0),
        ),
        train_cfg=dict(
            assigner=dict(type='ATSSAssigner', topk=9), allowed_border=-1, pos_weight=-1
        ),
        test_cfg=dict(nms_pre=100, score_thr=0.05, nms=dict(type='nms', iou_threshold=0.6)),
    )
    cfg.train_dataloader.dataset.pipeline[1].with_mask = False
    cfg.train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=1)
    return cfg


def segmentation():
    cfg = Config.fromfile(CONFIGS / 'upernet_ivit_shapes.py')
    cfg.model.decode_head.norm_cfg = cfg.model.auxiliary_head.norm_cfg = GROUP_NORM
    cfg.model.auxiliary_head.dropout_ratio = 0
    cfg.train_cfg = dict(type='IterBasedTrainLoop', max_iters=STEPS)
    return cfg


def train(cfg, name, workers, folder, **backbone):
    """Train for STEPS steps and return what each rank recorded."""
    cfg.model.backbone.update(backbone)
    cfg.train_dataloader.num_workers = 0
    cfg.train_dataloader.persistent_workers = False
    cfg.train_dataloader.sampler.shuffle = False
    del cfg.train_dataloader.dataset.pipeline[2:-1]  # flips
    cfg.val_dataloader = cfg.val_cfg = cfg.val_evaluator = None
    cfg.test_dataloader = cfg.test_cfg = cfg.test_evaluator = None
    cfg.optim_wrapper.optimizer.lr = 1e-4
    cfg.param_scheduler = []
    work_dir = folder / name
    work_dir.mkdir()
    cfg.dump(work_dir / 'config.py')
    script = ROOT / 'tests/distributed_losses.py'
    launcher = 'pytorch' if workers > 1 else 'none'
    arguments = (work_dir / 'config.py', work_dir, launcher, BATCH // workers)
    # What torchrun tells its processes; the scripts' test starts some by torchrun itself.
    told = dict(WORLD_SIZE=workers, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port())
    ranks = [
        Forked(script, arguments, folder.parent, dict(told, RANK=rank, LOCAL_RANK=rank))
        for rank in range(workers)
    ]
    for done in [rank.wait(TIMEOUT) for rank in ranks]:
        assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((work_dir / f'{rank}.json').read_text()) for rank in range(workers)]


def free_port():
    with socket.socket() as server:
        server.bind(('127.0.0.1', 0))
        return server.getsockname()[1]


@pytest.mark.parametrize('build', [detection, segmentation])
def test_two_processes_train_as_one(build, shapes):
    folder = shapes / build.__name__
    folder.mkdir()
    (alone,) = train(build(), 'one', 1, folder)
    ranks = train(build(), 'two', 2, folder)
    assert all('Distributed' in rank['wrapped'] for rank in ranks)
    assert len(alone['losses']) == STEPS
    for rank in ranks:
        assert rank['losses'] == pytest.approx(alone['losses'], rel=1e-4)
    # Each rank saw its own half of what one process sees.
    first, second = (set(rank['images']) for rank in ranks)
    assert not first & second
    assert first | second == set(alone['images'])


@pytest.mark.parametrize('build', [detection, segmentation])
def test_frozen_stages_and_checkpointing_under_ddp(build, shapes):
    folder = shapes / f'{build.__name__}_frozen'
    folder.mkdir()
    (alone,) = train(build(), 'one', 1, folder, frozen_stages=1)
    ranks = train(build(), 'two', 2, folder, frozen_stages=1, with_cp=True)
    for rank in ranks:
        assert not rank['stem_changed']
        assert rank['losses'] == pytest.approx(alone['losses'], rel=1e-4)


def test_fsdp_with_blocks_as_units_trains_as_one(shapes):
    folder = shapes / 'fsdp'
    folder.mkdir()
    cfg = segmentation()
    cfg.runner_type = 'FlexibleRunner'  # draws the initial weights in another order than Runner
    (alone,) = train(deepcopy(cfg), 'one', 1, folder)
    cfg.strategy = dict(
        type='FSDPStrategy',
        model_wrapper=dict(
            device_id='cpu',
            use_orig_params=True,
            auto_wrap_policy='mmivit.models.ivit.wrap_blocks',
        ),
        # On CPUs torch crashes when it offloads a gathered state dict.
        state_dict_cfg=dict(
            state_dict_type='FULL_STATE_DICT',
            state_dict_config=dict(type='FullStateDictConfig', rank0_only=False),
            optim_state_dict_config=dict(type='FullOptimStateDictConfig', rank0_only=False),
        ),
    )
    cfg.default_hooks.checkpoint.interval = STEPS
    ranks = train(cfg, 'two', 2, folder)
    for rank in ranks:
        assert rank['wrapped'] == 'MMFullyShardedDataParallel'
        assert rank['losses'] == pytest.approx(alone['losses'], rel=1e-4)
    register_all_modules()
    model = MODELS.build(segmentation().model)
    saved = read_checkpoint(folder / 'two' / f'iter_{STEPS}.pth')
    model.load_state_dict(saved['state_dict'])  # strict: a plain checkpoint


def test_dist_scripts_train_and_test(shapes):
    config = CONFIGS / 'upernet_ivit_shapes.py'
    options = [
        '--cfg-options',
        'train_cfg.max_iters=2',
        'train_cfg.val_interval=2',
        'default_hooks.checkpoint.interval=2',
    ]
    python = {'PATH': f'{sys.prefix}/bin:{os.environ["PATH"]}', 'PORT': '29713'}
    for command in (
        ['dist_train.sh', config, '2', '--work-dir', 'dist', *options],
        ['dist_test.sh', config, 'dist/iter_2.pth', '2', '--work-dir', 'dist'],
    ):
        done = subprocess.run(
            [str(ROOT / 'tools' / command[0]), *map(str, command[1:])],
            cwd=shapes,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
            env={**os.environ, **python},
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert 'mIoU' in done.stdout
