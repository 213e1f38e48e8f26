"""The latest checkpoint that is whole, whatever became of the others."""

import os
import shutil

import pytest
import torch

from mmivit.engine.resume import check_whole, latest_checkpoint
from mmivit.errors import CheckpointError
from tests.toy_training import run


def write(path, age):
    torch.save(dict(meta={}, message_hub={}, state_dict=dict(weight=torch.rand(999))), path)
    os.utime(path, (1e9 - age, 1e9 - age))
    return str(path)


@pytest.fixture
def run_dir(tmp_path):
    """A work dir of a run that wrote three checkpoints, and of a longer one before it."""
    write(tmp_path / 'epoch_12.pth', 1000)
    for iteration, age in ((2, 30), (4, 20), (10, 10)):
        path = write(tmp_path / f'iter_{iteration}.pth', age)
    write(tmp_path / 'best_mIoU_iter_10.pth', 0)
    (tmp_path / 'last_checkpoint').write_text(path)
    return tmp_path


def damage(path, how):
    content = path.read_bytes()
    middle = len(content) // 2
    path.write_bytes(
        dict(
            emptied=b'',
            truncated=content[:-100],
            zeroed=content[:middle] + bytes(16) + content[middle + 16 :],
            foreign=b'something else',
        )[how]
    )
    if how == 'zeroed':  # what torch reads without a word
        torch.load(path, weights_only=True)


def test_the_named_one_is_taken_before_newer_ones(run_dir):
    (run_dir / 'last_checkpoint').write_text(str(run_dir / 'iter_4.pth'))
    assert latest_checkpoint(run_dir) == str(run_dir / 'iter_4.pth')


@pytest.mark.parametrize('how', ['emptied', 'truncated', 'zeroed', 'foreign'])
def test_a_damaged_one_is_named_and_the_one_before_taken(how, run_dir, log, monkeypatch):
    damage(run_dir / 'iter_10.pth', how)
    monkeypatch.chdir(run_dir.parent)
    assert latest_checkpoint(run_dir.name) == str(run_dir / 'iter_4.pth')
    (message,) = (message for message in log if 'Passed over' in message)
    assert 'iter_10.pth' in message


def test_times_do_not_matter_where_a_run_was_copied(run_dir, tmp_path_factory):
    copy = tmp_path_factory.mktemp('copy')
    for name in ('iter_10.pth', 'iter_4.pth', 'iter_2.pth', 'last_checkpoint'):
        shutil.copy(run_dir / name, copy)  # the times are now in this order
    assert latest_checkpoint(copy) == str(copy / 'iter_10.pth')
    damage(copy / 'iter_10.pth', 'truncated')
    assert latest_checkpoint(copy) == str(copy / 'iter_4.pth')


def test_two_damaged_ones_are_passed_over(run_dir):
    damage(run_dir / 'iter_10.pth', 'truncated')
    damage(run_dir / 'iter_4.pth', 'zeroed')
    assert latest_checkpoint(run_dir) == str(run_dir / 'iter_2.pth')


@pytest.mark.parametrize('marker', [None, b'', b'\0' * 80, b'\xff\xfe'])
def test_without_a_usable_last_checkpoint_the_newest_is_taken(marker, run_dir):
    (run_dir / 'last_checkpoint').unlink()
    if marker is not None:
        (run_dir / 'last_checkpoint').write_bytes(marker)
    assert latest_checkpoint(run_dir) == str(run_dir / 'iter_10.pth')


def test_a_missing_one_is_named(run_dir, log):
    (run_dir / 'iter_10.pth').unlink()
    assert latest_checkpoint(run_dir) == str(run_dir / 'iter_4.pth')
    assert any('iter_10.pth' in message and 'missing' in message for message in log)


def test_a_run_that_was_moved_is_found(run_dir):
    moved = run_dir.rename(run_dir.with_name('moved'))
    assert latest_checkpoint(moved) == str(moved / 'iter_10.pth')


def test_checkpoints_are_written_where_out_dir_says(tmp_path):
    run(tmp_path / 'run', 2, checkpoint=dict(out_dir=str(tmp_path / 'elsewhere')))
    latest = tmp_path / 'elsewhere' / 'run' / 'iter_2.pth'
    assert latest_checkpoint(tmp_path / 'run') == str(latest)


@pytest.mark.parametrize('marker', ['x' * 300, 'x' * 300 + '/y', 'a\0b'])
def test_last_checkpoints_that_name_no_file(marker, run_dir):
    (run_dir / 'last_checkpoint').write_text(marker)
    assert latest_checkpoint(run_dir) == str(run_dir / 'iter_10.pth')


def test_a_checkpoint_on_another_backend_is_left_to_mmengine(run_dir):
    (run_dir / 'last_checkpoint').write_text('s3://bucket/iter_12.pth')
    assert latest_checkpoint(run_dir) == 's3://bucket/iter_12.pth'


def test_checkpoints_outside_the_work_dir_are_found(run_dir, tmp_path_factory):
    other = tmp_path_factory.mktemp('other')
    (other / 'last_checkpoint').write_text(str(run_dir / 'iter_10.pth'))
    damage(run_dir / 'iter_10.pth', 'truncated')
    assert latest_checkpoint(other) == str(run_dir / 'iter_4.pth')


def test_none_at_all_is_a_new_run(tmp_path):
    assert latest_checkpoint(tmp_path) is None
    assert latest_checkpoint(tmp_path / 'nowhere') is None
    write(tmp_path / 'best_mIoU_iter_10.pth', 0)
    assert latest_checkpoint(tmp_path) is None


def test_nothing_but_damaged_ones_is_refused(run_dir):
    names = ['iter_2.pth', 'iter_4.pth', 'iter_10.pth', 'epoch_12.pth']
    for name in names:
        damage(run_dir / name, 'truncated')
    with pytest.raises(CheckpointError, match='--resume FILE') as caught:
        latest_checkpoint(run_dir)
    assert str(caught.value).count('was not loaded') == len(names)
    assert all(name in str(caught.value) for name in names)
    for name in names:
        (run_dir / name).unlink()
    with pytest.raises(CheckpointError, match=r'iter_10\.pth.*missing'):
        latest_checkpoint(run_dir)


def test_weights_alone_are_no_run(tmp_path):
    torch.save(dict(state_dict={}), tmp_path / 'iter_1.pth')
    with pytest.raises(CheckpointError, match='no meta, message_hub'):
        check_whole(tmp_path / 'iter_1.pth')


def test_what_mmengine_would_run_is_refused(tmp_path):
    """It takes meta.config, which MMCV wrote, for a config and reads that: a program."""
    meta = dict(config="x = __import__('os').getpid()")
    torch.save(dict(state_dict={}, message_hub={}, meta=meta), tmp_path / 'iter_1.pth')
    with pytest.raises(CheckpointError, match=r'would run the program in its meta\.config'):
        check_whole(tmp_path / 'iter_1.pth')
