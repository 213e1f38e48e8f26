"""Distillation as a user runs it: trained, killed and resumed, on two processes; its weights."""

import json
import signal

import pytest
import torch
from mmengine.config import Config
from mmengine.registry import MODELS, DefaultScope

from mmivit.datasets.shapes import ShapesSpec, write_dataset
from mmivit.models.classifier import IViTClassifier
from mmivit.weights.checkpoint import read_checkpoint
from tests.conftest import CONFIGS, ROOT, TIMEOUT, run_tool
from tests.forked import Forked
from tests.test_distributed import free_port
from tests.weights.states import randomise

CONFIG = CONFIGS / 'distill_ivit_shapes.py'
STEPS = 4


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    """Drawn images in a folder for each class, and a classifier of them with MHSA."""
    folder = tmp_path_factory.mktemp('distillation')
    spec = ShapesSpec(train=8, val=4, size=32)
    write_dataset(folder / 'data/shapes', spec, classification=True)
    teacher = randomise(IViTClassifier('nano', num_classes=5, attention='mhsa'))
    torch.save(teacher.state_dict(), folder / 'teacher.pth')
    return folder


def write_config(folder, name, hooks=(), **changes):
    """The shipped config on the drawn images, a loss logged and a checkpoint kept of every step."""
    cfg = Config.fromfile(CONFIG)
    cfg.custom_imports.imports.append('tests.faults')
    cfg.custom_hooks = list(hooks)
    cfg.model.teacher = 'teacher.pth'
    cfg.model.student.drop_path_rate = 0.2
    cfg.randomness = dict(seed=0, deterministic=True)
    cfg.train_cfg.update(max_iters=STEPS, val_interval=STEPS)
    cfg.log_processor.window_size = 1
    cfg.default_hooks.logger.interval = cfg.default_hooks.checkpoint.interval = 1
    for loader, split in (('train_dataloader', 'train'), ('val_dataloader', 'validation')):
        cfg[loader].update(batch_size=4, num_workers=0)
        cfg[loader].dataset.data_prefix.img_path = split
    cfg.val_dataloader.dataset.labelled = True
    cfg.test_dataloader = cfg.val_dataloader
    cfg.merge_from_dict(changes)
    cfg.dump(folder / f'{name}.py')
    return f'{name}.py'


def train(folder, config, *arguments, **env):
    env['PYTHONPATH'] = ROOT
    return run_tool('train.py', config, *arguments, cwd=folder, **env)


def losses(folder, name):
    """The loss of every step, of all starts of a run."""
    records = []
    for file in sorted((folder / 'work_dirs' / name).glob('*/vis_data/scalars.json')):
        records += map(json.loads, file.read_text().splitlines())
    return {record['step']: record['loss'] for record in records if 'loss' in record}


def state(folder, name, step=STEPS):
    return read_checkpoint(folder / 'work_dirs' / name / f'iter_{step}.pth')['state_dict']


@pytest.fixture(scope='module')
def trained(folder):
    """The checkpoint of a run that nothing interrupts."""
    done = train(folder, write_config(folder, 'whole'))
    assert done.returncode == 0, done.stderr[-3000:]
    output = done.stdout + done.stderr
    for metric in ('error_stages.2', 'error_stages.3', 'agreement', 'accuracy', 'teacher_accuracy'):
        assert f'student/{metric}: ' in output
    assert 'missing keys' not in output
    return folder / f'work_dirs/whole/iter_{STEPS}.pth'


def test_a_killed_run_goes_on_as_if_it_had_not_been(trained, folder):
    config = write_config(folder, 'killed', [dict(type='KillHook', step=3, rank=0)])
    done = train(folder, config, '--resume', TORCHELASTIC_RESTART_COUNT=0)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    assert not (folder / 'work_dirs/killed/iter_3.pth').exists()
    done = train(folder, config, '--resume', TORCHELASTIC_RESTART_COUNT=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(losses(folder, 'whole')) == STEPS
    assert losses(folder, 'killed') == losses(folder, 'whole')
    expected = state(folder, 'whole')
    assert all(torch.equal(t, expected[name]) for name, t in state(folder, 'killed').items())


def test_two_processes_train_as_one(folder):
    changes = {
        'model.student.drop_path_rate': 0.0,
        'train_dataloader.dataset.pipeline': Config.fromfile(CONFIG).pipeline[:2],  # no flips
        'optim_wrapper.optimizer.type': 'SGD',  # Adam makes the sign of rounding errors a step
        'train_cfg.max_iters': 2,
        'val_cfg': None,
        'val_dataloader': None,
        'val_evaluator': None,
    }
    alone = train(folder, write_config(folder, 'alone', **changes))
    assert alone.returncode == 0, alone.stderr[-3000:]
    config = write_config(folder, 'two', **changes, **{'train_dataloader.batch_size': 2})
    told = dict(WORLD_SIZE=2, MASTER_ADDR='127.0.0.1', MASTER_PORT=free_port(), PYTHONPATH=ROOT)
    arguments = (config, '--launcher', 'pytorch')
    ranks = [
        Forked(ROOT / 'tools/train.py', arguments, folder, dict(told, RANK=rank, LOCAL_RANK=rank))
        for rank in range(2)
    ]
    for done in [rank.wait(TIMEOUT) for rank in ranks]:
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = state(folder, 'alone', 2), state(folder, 'two', 2)
    begun = torch.load(folder / 'teacher.pth')
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=1e-4, atol=1e-6)
    assert any(not torch.equal(one[f'student.{name}'], t) for name, t in begun.items())


def test_what_was_distilled_is_evaluated_published_and_starts_a_detector(trained, folder):
    done = run_tool('test.py', 'whole.py', trained, cwd=folder, PYTHONPATH=ROOT)
    assert 'student/error_stages.3' in done.stdout, done.stderr[-3000:]
    student = {n.removeprefix('student.'): t for n, t in state(folder, 'whole').items()}
    assert set(student) == set(IViTClassifier('nano', num_classes=5).state_dict())

    done = run_tool('publish_model.py', trained, 'student.pth', cwd=folder)
    assert done.returncode == 0, done.stderr
    (published,) = folder.glob('student-*.pth')
    assert 'landmarks' in read_checkpoint(published)['meta']['cfg']

    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit_shapes.py')
    cfg.model.backbone.init_cfg = dict(type='mmivit.PretrainedIViT', checkpoint=str(published))
    with DefaultScope.overwrite_default_scope('mmdet'):
        detector = MODELS.build(cfg.model)
        detector.init_weights()
    own = detector.backbone.state_dict()
    shared = own.keys() & student.keys()
    assert all(name.startswith('norm') for name in own.keys() - shared)  # they are the task's
    assert all(torch.equal(own[name], student[name]) for name in shared)

    done = run_tool('convert_weights.py', published, 'timm.pth', '--target', 'timm', cwd=folder)
    assert done.returncode == 0, done.stderr
    model = IViTClassifier('nano', num_classes=5)
    model.load_state_dict(torch.load(folder / 'timm.pth')['state_dict'])


def test_what_is_wrong_is_said_in_a_line(folder):
    (folder / 'empty').mkdir()
    config = write_config(folder, 'wrong')
    for option, said in (
        ('train_dataloader.dataset.data_prefix.img_path=../../empty', 'holds no image'),
        ('model.student.arch=tiny', 'it is of size nano, the student of tiny'),
    ):
        done = train(folder, config, '--cfg-options', option)
        assert done.returncode == 1
        assert said in done.stderr
        assert 'Traceback' not in done.stderr
        (line,) = [line for line in done.stderr.splitlines() if line.startswith('train: ')]
        assert said in line
