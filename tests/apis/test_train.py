"""What train.py and test.py check before a run starts."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmivit.apis import launch
from mmivit.apis.launch import (
    _choose_checkpoint,
    build_runner,
    check_channels,
    check_data,
    read_config,
    warn_about_batch_size,
)
from mmivit.errors import CheckpointError, LaunchError
from tests.conftest import CONFIGS, ROOT, run_tool


def test_training_without_coco_says_what_to_do(tmp_path):
    done = run_tool('train.py', CONFIGS / 'mask_rcnn_ivit.py', cwd=tmp_path, timeout=60)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    for text in (
        'data/coco/annotations/instances_train2017.json',
        'data/coco/val2017/',
        'ln -s /where/it/is data/coco',
        'tools/make_shapes.py data/shapes',
    ):
        assert text in done.stderr
    assert not (tmp_path / 'work_dirs').exists()


def test_only_what_is_missing_is_called_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'data/coco/annotations').mkdir(parents=True)
    (tmp_path / 'data/coco/annotations/instances_val2017.json').touch()
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit.py')
    with pytest.raises(LaunchError) as caught:
        check_data(cfg, ('val',))
    assert 'ln -s' not in str(caught.value)  # it would be made within data/coco
    missing, expected = str(caught.value).split('Expected layout')
    assert 'val2017/' in missing
    assert 'instances_val2017.json' not in missing
    assert 'instances_val2017.json' in expected
    (tmp_path / 'data/coco/val2017').mkdir()
    check_data(cfg, ('val',))


def test_wrapped_datasets_and_remote_paths(tmp_path):
    inner = dict(type='A', data_root=str(tmp_path), ann_file='a.json', data_prefix=dict(img=''))
    remote = dict(type='A', data_root='s3://bucket', ann_file='a.json')
    wrapped = dict(dataset=dict(type='Repeat', dataset=dict(type='Concat', datasets=[remote])))
    check_data(Config(dict(train_dataloader=wrapped)), ('train',))
    wrapped['dataset']['dataset']['datasets'].append(inner)
    with pytest.raises(LaunchError, match=r'a\.json'):
        check_data(Config(dict(train_dataloader=wrapped)), ('train',))


@pytest.mark.parametrize(
    ('options', 'paste'),
    [
        (dict(backbone=dict(arch='medium')), r'neck=dict\(in_channels=\[96, 192, 384, 576\]\)'),
        (dict(backbone=dict(out_indices=(1, 2, 3))), r'neck=dict\(in_channels=\[128, 320, 512\]\)'),
        (dict(backbone=dict(arch='huge')), "model.backbone: arch='huge'.*'nano'"),
        (dict(backbone=dict(landmark=7)), 'model.backbone.*landmark'),
    ],
)
def test_channels_that_do_not_fit_print_what_to_paste(options, paste):
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit.py')
    cfg.merge_from_dict(dict(model=options))
    with pytest.raises(LaunchError, match=f'(?s){paste}'):
        check_channels(cfg)


def segmentor(**head):
    backbone = dict(type='mmivit.IViT', arch='nano')
    return Config(dict(model=dict(backbone=backbone, decode_head=head)))


def test_channels_of_segmentation_heads():
    check_channels(segmentor(in_channels=[32, 64, 128, 256], in_index=[0, 1, 2, 3]))
    check_channels(segmentor(in_channels=256))
    with pytest.raises(LaunchError, match=r'decode_head=dict\(in_channels=128\)'):
        check_channels(segmentor(in_channels=512, in_index=2))
    check_channels(segmentor(in_channels=[32, 64, 128, 256]))  # a head that takes all maps
    with pytest.raises(LaunchError, match='4 maps'):
        check_channels(segmentor(in_channels=512, in_index=4))


@pytest.mark.parametrize('name', sorted(p.name for p in CONFIGS.glob('*.py')))
def test_shipped_configs_pass_the_check(name):
    check_channels(Config.fromfile(CONFIGS / name))


@pytest.mark.parametrize('name', ['mask_rcnn_ivit_shapes.py', 'upernet_ivit_shapes.py'])
def test_sync_bn_becomes_bn_on_one_process(name, tmp_path):
    cfg = Config.fromfile(CONFIGS / name)
    cfg.work_dir = str(tmp_path)
    part = cfg.model.get('neck') or cfg.model.decode_head
    part.norm_cfg = dict(type='SyncBN')
    norms = [type(m).__name__ for m in build_runner(cfg).model.modules() if 'BatchNorm' in str(m)]
    assert norms
    assert 'SyncBatchNorm' not in norms


class FakeRunner:
    def __init__(self, world_size, batch, base=16, enable=False, accumulate=1):
        self.world_size = world_size
        self.cfg = ConfigDict(
            train_dataloader=dict(batch_size=batch),
            optim_wrapper=dict(accumulative_counts=accumulate),
            auto_scale_lr=dict(base_batch_size=base, enable=enable),
        )


@pytest.mark.parametrize(
    ('runner', 'warns'),
    [
        (FakeRunner(8, 2), False),
        (FakeRunner(1, 2), True),
        (FakeRunner(1, 2, enable=True), False),
        (FakeRunner(4, 2, accumulate=2), False),
    ],
)
def test_batch_size_warning(runner, warns, log):
    warn_about_batch_size(runner)
    assert any('--auto-scale-lr' in message for message in log) is warns


def test_the_learning_rate_counts_accumulated_batches(tmp_path, monkeypatch):
    built = []
    monkeypatch.setattr(launch, 'check_data', lambda *args: None)
    monkeypatch.setattr(launch, 'build_runner', lambda cfg: built.append(cfg) or 1 / 0)
    options = dict(auto_scale_lr=dict(base_batch_size=16))
    options['optim_wrapper.accumulative_counts'] = 8
    with pytest.raises(ZeroDivisionError):
        launch.train(
            str(CONFIGS / 'mask_rcnn_ivit_shapes.py'),
            str(tmp_path),
            auto_scale_lr=True,
            cfg_options=options,
        )
    # MMEngine takes 1 process x 2 images for the batch; they are 2 x 8, what the rate is meant for.
    assert built[0].auto_scale_lr == dict(enable=True, base_batch_size=2)


@pytest.fixture
def run_dir(tmp_path):
    """A work dir with two checkpoints, one that is damaged where torch does not look."""
    for name in ('iter_1.pth', 'iter_2.pth'):
        content = dict(meta={}, message_hub={}, state_dict=dict(weight=torch.rand(999)))
        torch.save(content, tmp_path / name)
    path = tmp_path / 'iter_2.pth'
    content = path.read_bytes()
    path.write_bytes(content[:2000] + bytes(16) + content[2016:])
    torch.load(path, weights_only=True)
    (tmp_path / 'last_checkpoint').write_text(str(path))
    torch.save(dict(weight=torch.rand(2)), tmp_path / 'weights.pth')
    (tmp_path / 'x.safetensors').touch()
    return tmp_path


def chosen(work_dir, resume=None, load_from=None, cfg_resume=False):
    cfg = Config(dict(work_dir=str(work_dir), load_from=load_from, resume=cfg_resume))
    _choose_checkpoint(cfg, resume)
    return cfg.resume, cfg.get('load_from') and Path(cfg.load_from).name


def test_which_checkpoint_a_run_begins_with(run_dir, tmp_path_factory):
    empty, weights = tmp_path_factory.mktemp('empty'), str(run_dir / 'weights.pth')
    assert chosen(run_dir, 'auto') == (True, 'iter_1.pth')
    assert chosen(run_dir, 'auto', load_from=weights) == (True, 'iter_1.pth')
    assert chosen(run_dir, load_from=weights) == (False, 'weights.pth')
    assert chosen(run_dir, str(run_dir / 'iter_1.pth')) == (True, 'iter_1.pth')
    assert chosen(empty, 'auto') == (False, None)
    assert chosen(empty, 'auto', load_from=weights) == (False, 'weights.pth')
    # MMEngine's own setting.
    assert chosen(run_dir, cfg_resume=True) == (True, 'iter_1.pth')
    assert chosen(empty, cfg_resume=True) == (False, None)


@pytest.mark.parametrize(
    ('resume', 'name', 'error', 'message'),
    [
        (True, 'iter_2.pth', CheckpointError, 'iter_2.pth is damaged'),
        (True, 'weights.pth', CheckpointError, 'no checkpoint of a training run'),
        (True, 'x.safetensors', CheckpointError, 'loads .pth files alone'),
        (False, 'x.safetensors', CheckpointError, 'loads .pth files alone'),
        (True, 'iter_9.pth', LaunchError, '--resume: no file'),
        (False, 'iter_9.pth', LaunchError, 'load_from: no file'),
    ],
)
def test_named_checkpoints_are_taken_or_refused(resume, name, error, message, run_dir):
    path = str(run_dir / name)
    with pytest.raises(error, match=message):
        chosen(run_dir, path) if resume else chosen(run_dir, load_from=path)


@pytest.mark.parametrize('wrapped', [False, True])
def test_weights_of_another_model_are_neither_tested_nor_resumed(wrapped, run_dir, monkeypatch):
    model = torch.nn.Linear(1, 1)
    wrapper = torch.nn.Module()
    wrapper.module = model
    runner = SimpleNamespace(model=wrapper if wrapped else model)
    monkeypatch.setattr(launch, 'check_data', lambda *args: None)
    monkeypatch.setattr(launch, 'build_runner', lambda cfg: runner)
    config, other = str(CONFIGS / 'mask_rcnn_ivit_shapes.py'), str(run_dir / 'iter_1.pth')
    with pytest.raises(CheckpointError, match=r'iter_1\.pth: it is of another model: 2 of the 2'):
        launch.evaluate(config, other)
    with pytest.raises(CheckpointError, match=r'iter_1\.pth: it is of another model: 2 of the 2'):
        launch.train(config, str(run_dir), resume=other)


@pytest.mark.parametrize('text', ['model = (', "_base_ = 'nowhere.py'", 'x = undefined'])
def test_what_is_no_config(text, tmp_path):
    (tmp_path / 'x.py').write_text(text)
    with pytest.raises(LaunchError, match=r'x\.py cannot be read as a config: \w+Error: '):
        read_config(str(tmp_path / 'x.py'))


@pytest.mark.parametrize('tool', ['train.py', 'test.py', 'predict.py'])
def test_missing_files_are_named_without_a_traceback(tool, tmp_path):
    args = {'train.py': (), 'test.py': ('x.pth',), 'predict.py': ('x.pth', 'x.jpg')}[tool]
    done = run_tool(tool, 'nowhere.py', *args, cwd=tmp_path)
    assert done.returncode == 1
    assert 'nowhere.py' in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize('script', ['dist_train.sh', 'dist_test.sh', 'slurm_train.sh'])
def test_launch_scripts_print_their_usage(script, tmp_path):
    import subprocess

    done = subprocess.run([ROOT / 'tools' / script], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert 'Usage:' in done.stdout
