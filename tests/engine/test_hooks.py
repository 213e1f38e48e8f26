"""Whole checkpoints of finite weights, and runs that stop at what is not finite."""

import errno
import os
import zipfile

import numpy as np
import pytest
import torch
import torch.distributed as dist
from mmengine.hooks import Hook

from mmivit.engine.hooks import SafeCheckpointHook, WholeFileBackend, image_paths
from mmivit.engine.resume import latest_checkpoint
from mmivit.errors import TrainingError
from mmivit.weights.checkpoint import dataset_meta, read_checkpoint
from tests.toy_training import Draws, run


def _go_on(rank, folder):
    os.environ.update(RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
    dist.init_process_group('gloo', f'file://{folder}/meeting', rank=rank, world_size=2)
    try:
        run(folder / f'machine{rank}', 4, resume=rank == 0)
    except TrainingError as error:
        (folder / f'{rank}.txt').write_text(str(error))


def test_processes_that_do_not_see_the_same_checkpoint_stop(tmp_path):
    run(tmp_path / 'machine0', 2)
    torch.multiprocessing.spawn(_go_on, (tmp_path,), 2)
    for rank in range(2):
        assert 'different iterations: [2, 0]' in (tmp_path / f'{rank}.txt').read_text()


def test_a_file_that_cannot_be_written_whole_leaves_the_old_one(tmp_path, monkeypatch):
    def full(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / 'iter_1.pth'
    WholeFileBackend().put(b'old', path)
    monkeypatch.setattr(os, 'fsync', full)
    with pytest.raises(OSError, match=r'No space left on device.*iter_1\.pth'):
        WholeFileBackend().put(b'new', path)
    assert path.read_bytes() == b'old'
    assert os.listdir(tmp_path) == ['iter_1.pth']


def test_keeping_a_single_checkpoint_is_refused():
    with pytest.raises(TrainingError, match='take 2'):
        SafeCheckpointHook(max_keep_ckpts=1)


class Poison(Hook):
    """Puts an infinity where ``where`` says, at the fourth step."""

    def __init__(self, where):
        self.where = where

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == 3 and self.where == 'input':
            data_batch['inputs'][0][:] = torch.inf

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3 and self.where == 'weight':
            runner.model.layers[0].weight.data[0, 0] = torch.nan


def test_a_loss_that_is_not_finite_stops_before_anything_is_saved(tmp_path):
    with pytest.raises(TrainingError, match=r'not finite at iteration 4.*loss (inf|nan)') as caught:
        run(tmp_path, 8, hooks=(Poison('input'),))
    named = [line.strip() for line in str(caught.value).splitlines() if '.jpg' in line]
    assert len(named) == 3
    assert '--resume' in str(caught.value)
    assert sorted(path.name for path in tmp_path.glob('*.pth')) == [
        f'iter_{number}.pth' for number in (1, 2, 3)
    ]
    assert latest_checkpoint(tmp_path).endswith('iter_3.pth')


@pytest.mark.parametrize('by_epoch', [True, False])
def test_weights_that_are_not_finite_are_not_saved(by_epoch, tmp_path):
    with pytest.raises(TrainingError, match=r'iteration 4 1 weights.*layers\.0\.weight'):
        run(tmp_path, 8, by_epoch, hooks=(Poison('weight'),))
    assert not list(tmp_path.glob('*_4.pth')) + list(tmp_path.glob('epoch_*.pth'))


def test_image_paths_are_found_at_any_depth():
    class Sample:
        img_path = 'a.jpg'

    assert list(image_paths(dict(sup=dict(data_samples=[Sample()]), inputs=[torch.zeros(1)]))) == [
        'a.jpg'
    ]
    assert list(image_paths(None)) == []


def test_what_was_written_before_a_checkpoint_is_whole(tmp_path):
    run(tmp_path, 2)
    assert [zipfile.ZipFile(path).testzip() for path in tmp_path.glob('*.pth')] == [None, None]
    assert not list(tmp_path.glob('.*'))


def test_a_palette_of_numpy_is_read_back(tmp_path, monkeypatch):
    metainfo = dict(classes=('a', 'b'), palette=np.zeros((2, 3), np.uint8))
    monkeypatch.setattr(Draws, 'metainfo', metainfo, raising=False)
    run(tmp_path, 1)
    saved = torch.load(tmp_path / 'iter_1.pth', weights_only=True)['meta']['dataset_meta']
    assert saved == dict(classes=('a', 'b'), palette=[[0, 0, 0], [0, 0, 0]])
    assert dataset_meta(read_checkpoint(tmp_path / 'iter_1.pth')) == saved
    run(tmp_path, 2, resume=True)
