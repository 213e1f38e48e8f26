"""Pure Python configs, whose types are classes and which name no scope, in the commands."""

import pytest

from mmivit.apis.check_data import check_datasets
from mmivit.apis.config import read_config
from mmivit.apis.inferencers import load_inferencer
from mmivit.apis.models import build_model
from mmivit.export.targets import find_target
from tests.conftest import CONFIGS, run_tool
from tests.pure_configs import write_pure

LOADERS = [f'{split}_dataloader.num_workers=0' for split in ('train', 'val', 'test')]
SETTINGS = dict(
    mask_rcnn_ivit_shapes=(
        ['train_cfg.max_epochs=1', 'model.test_cfg.rcnn.score_thr=1.0'],
        'epoch_1.pth',
        'out.pkl',
    ),
    upernet_ivit_shapes=(
        ['train_cfg.max_iters=1', 'default_hooks.checkpoint.interval=1'],
        'iter_1.pth',
        'maps',
    ),
)


@pytest.mark.parametrize('name', SETTINGS)
def test_all_commands_take_pure_python_configs(name, shapes, tmp_path, monkeypatch):
    options, checkpoint, out = SETTINGS[name]
    config = write_pure(CONFIGS / f'{name}.py', tmp_path)
    options = ['--cfg-options', *options, 'train_dataloader.dataset.indices=4', *LOADERS]
    checkpoint = tmp_path / 'run' / checkpoint
    test = ['test.py', config, checkpoint, '--work-dir', tmp_path / 'test', '--out', tmp_path / out]
    for command in (['train.py', config, '--work-dir', tmp_path / 'run'], test):
        done = run_tool(*command, *options, cwd=shapes)
        assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / out).exists()
    monkeypatch.chdir(shapes)
    assert not any(report.problems for report in check_datasets(str(config)))
    cfg = read_config(str(config))
    package = 'mmdet' if name.startswith('mask_rcnn') else 'mmseg'
    assert cfg.default_scope == package
    assert type(find_target(build_model(cfg), cfg).model).__module__.startswith(package)
    load_inferencer(cfg, str(checkpoint), 'cpu')
