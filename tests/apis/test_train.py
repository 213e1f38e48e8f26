"""What train.py checks before a run starts, and which checkpoint it begins with."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config, ConfigDict

from mmivit.apis import train
from mmivit.apis.train import _choose_checkpoint, warn_about_batch_size
from mmivit.errors import CheckpointError, LaunchError
from tests.conftest import CONFIGS


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
    monkeypatch.setattr(train, 'check_paths', lambda *args: None)
    monkeypatch.setattr(train, 'build_runner', lambda cfg: built.append(cfg) or 1 / 0)
    options = dict(auto_scale_lr=dict(base_batch_size=16))
    options['optim_wrapper.accumulative_counts'] = 8
    with pytest.raises(ZeroDivisionError):
        train.train(
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
@pytest.mark.parametrize('resume', ['auto', 'iter_1.pth'])
def test_weights_of_another_model_are_not_resumed(wrapped, resume, run_dir, monkeypatch):
    model = torch.nn.Linear(1, 1)
    wrapper = torch.nn.Module()
    wrapper.module = model
    runner = SimpleNamespace(model=wrapper if wrapped else model)
    monkeypatch.setattr(train, 'check_paths', lambda *args: None)
    monkeypatch.setattr(train, 'build_runner', lambda cfg: runner)
    with pytest.raises(CheckpointError, match=r'iter_1\.pth: it is of another model: 2 of the 2'):
        train.train(
            str(CONFIGS / 'mask_rcnn_ivit_shapes.py'),
            str(run_dir),
            resume=resume if resume == 'auto' else str(run_dir / resume),
        )
