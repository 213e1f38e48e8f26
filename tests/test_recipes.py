"""docs/recipes.md: its files and commands, run as they stand there.

Commands run in this process, for most of the time of one of its own would go into imports.
"""

import importlib.util
import re
import runpy
import shlex
import sys
from pathlib import Path

import cv2
import mmdet
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from mmengine.config import Config
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import DATASETS, DefaultScope
from mmengine.utils import digit_version
from mmengine.visualization import Visualizer

from mmivit.apis.models import build_model
from mmivit.export import graphs, runtime, targets
from mmivit.export.benchmark import scatter
from mmivit.models import IViT
from tests.conftest import ROOT, run_tool

TEXT = (ROOT / 'docs' / 'recipes.md').read_text()
BLOCKS = {
    section.partition('\n')[0]: re.findall(r'^```(\w+)\n(.*?)^```$', section, re.S | re.M)
    for section in re.split(r'^##+ ', TEXT, flags=re.M)
    if '```' in section
}
SIDE = 128  # pixels of an image
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'
SMALL = """
_base_ = '{config}'
arch = dict(_delete_=True, depths=(1, 1, 1, 1), widths=(32, 64, 128, 256))
model = dict(backbone=dict(arch=arch))
train_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(indices=4)
)
val_dataloader = dict(
    batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(indices=2)
)
test_dataloader = val_dataloader
"""
DETECTOR = """
model.update(test_cfg=dict(rcnn=dict(score_thr=0.0)))
train_cfg = dict(max_epochs=1, val_interval=99)
"""
SEGMENTOR = """
train_cfg = dict(max_iters=2, val_interval=99)
default_hooks = dict(checkpoint=dict(interval=2))
"""
CONFIGS = dict(my=('mask_rcnn_ivit_shapes', DETECTOR), my_seg=('upernet_ivit_shapes', SEGMENTOR))


def needs(*packages):
    missing = [name for name in packages if not importlib.util.find_spec(name)]
    reason = f'not installed: {", ".join(missing)} (make test-recipes)'
    return pytest.mark.skipif(bool(missing), reason=reason)


@pytest.fixture(scope='module')
def folder(shapes, tmp_path_factory):
    """What the document takes for given, small, as after a training that moved every parameter."""
    folder = tmp_path_factory.mktemp('recipes')
    for name, target in (('tools', ROOT / 'tools'), ('data', shapes / 'data')):
        (folder / name).symlink_to(target)
    (folder / 'photo.jpg').symlink_to(next((shapes / 'data/shapes/images/validation').glob('*')))
    for name, (config, more) in CONFIGS.items():
        path = folder / f'{name}.py'
        path.write_text(SMALL.format(config=ROOT / 'configs' / f'{config}.py') + more)
        cfg = Config.fromfile(path)
        meta = dict(dataset_meta=dict(cfg.metainfo), cfg=cfg.pretty_text)
        state_dict = scatter(build_model(cfg)).state_dict()
        torch.save(dict(state_dict=state_dict, meta=meta), folder / f'{name}.pth')
    return folder


@pytest.fixture(scope='module')
def run(folder):
    """Runs a recipe, with options for each of its commands; what each one's program left."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        # Laying out the config for the log takes longer than the training.
        patch.setattr('mmengine.config.config.FormatCode', lambda text, **_: (text, True))
        yield run_recipe
    forget_runs()


def run_recipe(recipe, *options):
    found = []
    for _, text in files_of(recipe):
        Path(re.match(r'# (\w+\.py)$', text, re.M)[1]).write_text(text)
    for line in commands_of(recipe):
        script, *args = shlex.split(line.removeprefix('mim run ').removeprefix('python '))
        if line.startswith('mim run '):
            assert script == 'mmdet'
            (script,) = MMDET_TOOLS.rglob(f'{args.pop(0)}.py')
        forget_runs()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, 'argv', [str(script), *args, *options])
            found.append(runpy.run_path(str(script), run_name='__main__'))
    return found


def files_of(recipe):
    return [block for block in BLOCKS[recipe] if block[0] == 'python']


def commands_of(recipe):
    return [line for kind, text in BLOCKS[recipe] if kind == 'bash' for line in text.splitlines()]


def forget_runs():
    """MMEngine finds what a run of the same name and second has made, and visualisers of any."""
    kinds = [Visualizer, MMLogger, MessageHub, DefaultScope]
    for kind in kinds:
        kind._instance_dict.clear()
        kinds += kind.__subclasses__()


def weights(path, part='state_dict'):
    return torch.load(path, weights_only=True)[part]


def test_every_recipe_is_run_and_every_file_used():
    own = Path(__file__).read_text()
    for recipe in BLOCKS:
        assert f"'{recipe}'" in own, recipe
        commands = commands_of(recipe)
        assert commands, recipe
        for _, text in files_of(recipe):
            name = re.match(r'# (\w+\.py)$', text, re.M)[1]
            assert any(name in line.split() for line in commands), name


@pytest.fixture(scope='module')
def judged(run):
    run('AP of each class')


def test_ap_of_each_class(judged, folder):
    (log,) = (folder / 'work_dirs/my').rglob('*.log')
    text = log.read_text()
    assert text.count('| category | mAP') == 2
    assert all(f'| {name} ' in text for name in ('circle', 'square', 'triangle', 'star', 'cross'))
    assert all((folder / f'results.{name}').stat().st_size for name in ('pkl', 'bbox.json'))


@pytest.mark.parametrize(
    ('recipe', 'pictures'),
    [
        ('Confusion matrix', ['confusion/confusion_matrix.png']),
        ('Precision and recall', ['curves/bbox/bbox-star-allarea.png']),
        ('Best and worst images', ['ranked/good/*.jpg', 'ranked/bad/*.jpg']),
    ],
)
def test_mmdets_analysis_of_the_predictions(recipe, pictures, judged, run, folder):
    run(recipe)
    assert all(list(folder.glob(picture)) for picture in pictures)


def test_confusion_matrix_of_a_segmentor(run, folder):
    counts = run('Confusion matrix of a segmentor')[-1]['counts']
    (log,) = (folder / 'work_dirs/my_seg').rglob('*.log')
    (reported,) = re.findall(r'mIoU: (\S+)', log.read_text())
    union = counts.sum(0) + counts.sum(1) - counts.diagonal()
    assert np.nanmean(counts.diagonal() / union) * 100 == pytest.approx(float(reported), abs=0.01)


def test_ema(run, folder):
    run('Averaged weights (EMA)', '--cfg-options', 'train_cfg.val_interval=1')
    path = folder / 'work_dirs/ema/epoch_1.pth'
    averaged, own = weights(path), weights(path, 'ema_state_dict')  # MMEngine swaps the names
    name = 'backbone.stages.2.blocks.0.token_mixer.interaction_q'
    assert not torch.equal(averaged[name], own[f'module.{name}'])
    run('Averaged weights (EMA)', '--resume', '--cfg-options', 'train_cfg.max_epochs=2')
    assert weights(folder / 'work_dirs/ema/epoch_2.pth', 'ema_state_dict')['steps'] == 4


def test_early_stopping_and_the_best_checkpoint(run, folder):
    # No evaluation is better by 1 than the first, and one is waited for.
    run(
        'Early stopping, and the best checkpoint',
        *('--cfg-options', 'train_cfg.max_epochs=4', 'train_cfg.val_interval=1'),
        *('custom_hooks.0.patience=1', 'custom_hooks.0.min_delta=1'),
    )
    work_dir = folder / 'work_dirs/stopping'
    assert {path.name for path in work_dir.glob('epoch_*.pth')} == {'epoch_1.pth', 'epoch_2.pth'}
    assert len(list(work_dir.glob('best_coco_bbox_mAP_epoch_?.pth'))) == 1


@needs('tensorboard')
def test_tensorboard(run, folder):
    run('TensorBoard', '--cfg-options', 'default_hooks.logger.interval=1')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    (events,) = (folder / 'work_dirs/board').rglob('events.out.tfevents*')
    board = EventAccumulator(str(events)).Reload()
    assert [event.step for event in board.Scalars('loss')] == [1, 2]


@needs('wandb')
def test_wandb(run, folder, monkeypatch):
    def in_a_process(script, run_name):  # which the run of W&B lasts as long as
        return run_tool(Path(script).name, *sys.argv[1:], cwd=folder)

    monkeypatch.setattr(runpy, 'run_path', in_a_process)
    (done,) = run('Weights & Biases')
    assert done.returncode == 0, done.stderr[-3000:]
    (kept,) = (folder / 'work_dirs/wandb_offline').rglob('run-*.wandb')
    assert kept.stat().st_size


def test_freezing(run, folder):
    run('Freezing', '--cfg-options', 'load_from=my.pth')
    before, after = weights(folder / 'my.pth'), weights(folder / 'work_dirs/frozen/epoch_1.pth')
    moved = {
        '.'.join(name.split('.')[1:3] if '.stages.' in name else name.split('.')[1:2])
        for name in before
        if name.startswith('backbone') and not torch.equal(before[name], after[name])
    }
    assert moved == {'stages.2', 'stages.3', 'norm1', 'norm2', 'norm3'}


def test_gradient_accumulation(run, folder):
    run('Gradient accumulation')
    states = weights(folder / 'work_dirs/accumulated/epoch_1.pth', 'optimizer')['state']
    assert {int(state['step']) for state in states.values()} == {1}  # two iterations, at the end


def test_rare_classes_seen_more_often(run, folder):
    # Of four images, those with a class that is not in all of them.
    rare = 'train_dataloader.dataset.oversample_thr=1'
    run('Rare classes, seen more often', '--cfg-options', rare)
    assert (folder / 'work_dirs/balanced/epoch_1.pth').exists()
    config = Config.fromfile(folder / 'work_dirs/balanced/balanced.py').train_dataloader.dataset
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = DATASETS.build(config)
    assert len(dataset) > len(dataset.dataset)


def test_rare_classes_weighted(run, folder):
    run('Rare classes, weighted')
    assert (folder / 'work_dirs/weighted/epoch_1.pth').exists()
    assert (folder / 'work_dirs/weighted_seg/iter_2.pth').exists()


@needs('peft')
def test_lora(run, folder):
    model = run('LoRA')[0]['model']
    assert isinstance(model.backbone, IViT)
    merged, plain = weights(folder / 'work_dirs/lora/merged.pth'), weights(folder / 'my.pth')
    assert merged.keys() == plain.keys()


def test_flips_and_scales(run, folder):
    run('Flips and scales for a detector', '--cfg-options', 'test_dataloader.dataset.indices=1')
    (log,) = (folder / 'work_dirs/tta').rglob('*.log')
    assert re.search(r'coco/bbox_mAP: \d', log.read_text())


def test_bf16_in_batches(run):
    (found,) = run('Batches, and bf16')
    assert len(found['predictions']) == 4
    image = torch.rand(1, 3, 64, 96)
    with torch.no_grad():
        for exact, rounded in zip(found['in_fp32'](image), found['in_bf16'](image)):
            assert rounded.dtype == torch.float32
            assert 0 < (exact - rounded).norm() < 0.05 * exact.norm()


def test_landmarks(run, folder):
    run('Landmarks', '--work-dir', 'landmarks')
    (log,) = (folder / 'landmarks').rglob('*.log')
    assert 'model.backbone.landmarks is 14 here, 7 in the checkpoint' in log.read_text()


@needs('pytorch_grad_cam')
def test_grad_cam(run, folder):
    (found,) = run('Grad-CAM')
    assert cv2.imread(str(folder / 'cam.jpg')).shape == found['photo'].shape
    model, images, target = found['model'], found['images'], found['target']
    kept, stage = [], found['segmentor'].backbone.stages[3]
    handle = stage.register_forward_hook(lambda *args: kept.append(args[2]))
    score = target(model(images)[0])
    handle.remove()
    (gradient,) = torch.autograd.grad(score, kept)
    heat = (gradient.mean((2, 3), keepdim=True) * kept[0]).sum(1).relu()[0].detach().numpy()
    heat = cv2.resize(heat, found['heat'].shape[::-1])
    heat = (heat - heat.min()) / (heat.max() - heat.min())  # as it draws them
    np.testing.assert_allclose(found['heat'], heat, atol=1e-3)

    reshape = re.search(r'reshape_transform=(lambda x: .*\))\)`', TEXT)[1]
    options = dict(reshape_transform=eval(reshape))
    with found['GradCAM'](model, [stage.blocks[-1]], **options) as cam:
        np.testing.assert_allclose(cam(images, [target])[0], found['heat'], atol=1e-6)


def trace(graph, path, outputs, channels, metadata, batch):
    """For one size, and in a tenth of the time; tests/export has the graphs for any size."""
    image = torch.rand(1, channels, SIDE, SIDE)
    names = dict(input_names=['image'], output_names=outputs)
    graph.eval()  # the exporter puts back the mode it finds
    with torch.no_grad(), graphs._BlockAverages():
        torch.onnx.export(graph, (image,), str(path), opset_version=18, dynamo=False, **names)
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata)
    onnx.save(model, path)


@pytest.fixture(scope='module')
def int8(run):
    if digit_version(torch.__version__) < digit_version('2.5.0'):
        pytest.skip('its exporter is too old')
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(targets, 'write_onnx', trace)
        patch.setattr(targets, 'SIZES', ((1, SIDE, SIDE),))  # of the exporter's own check
        run('int8 with onnxruntime')


def test_int8(int8, folder):
    paths = [folder / f'{name}.onnx' for name in ('my_seg_int8', 'my_seg')]
    assert paths[0].stat().st_size < 0.4 * paths[1].stat().st_size
    image = runtime.read_image(folder / 'photo.jpg')
    labels = [runtime.find_labels(runtime.Graph(path), image) for path in paths]
    assert 0.9 < (labels[0] == labels[1]).mean() < 1


@needs('openvino')
def test_openvino(int8, run):
    (found,) = run('OpenVINO')
    session = onnxruntime.InferenceSession('my_seg.onnx')
    (expected,) = session.run(['logits'], {'image': found['image']})
    np.testing.assert_allclose(found['logits'], expected, atol=1e-4 * np.abs(expected).max())


@needs('segmentation_models_pytorch')
def test_segmentation_models_pytorch(run):
    (found,) = run('segmentation_models_pytorch')
    assert found['logits'].shape == (2, 5, 128, 160)
    found['logits'].sum().backward()
    assert all(p.grad is not None for p in found['model'].parameters())


@needs('transformers')
def test_transformers(run):
    (found,) = run('Hugging Face transformers')
    found['loss'].backward()
    images, classifier = found['images'], found['classifier'].eval()
    assert torch.equal(classifier(images).logits, found['again'].eval()(images).logits)
    shapes = [(2, 32, 32, 40), (2, 64, 16, 20), (2, 128, 8, 10), (2, 256, 4, 5)]
    assert [tuple(y.shape) for y in found['maps']] == shapes
