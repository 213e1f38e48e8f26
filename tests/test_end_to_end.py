"""The demo's path with its own commands, then with stock mmdet's, on a few drawn images."""

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import cv2
import mmdet
import numpy as np
import pytest
import torch
from mmengine.config import Config

from mmivit.apis.inferencers import Detector
from mmivit.weights.checkpoint import read_checkpoint
from mmivit.weights.safe_globals import HAS_ALLOW_LIST
from tests.conftest import CONFIGS, TIMEOUT, prepared, run_tool, sample_of

CONFIG = CONFIGS / 'mask_rcnn_ivit_shapes.py'
IMAGES = 'data/shapes/images/validation'
MMDET_TOOLS = Path(mmdet.__file__).parent / '.mim' / 'tools'


def options(epochs, **more):
    settings = {
        'train_cfg.max_epochs': epochs,
        'train_dataloader.batch_size': 4,
        'model.test_cfg.rcnn.score_thr': 0.0,
        **more,
    }
    return ['--cfg-options', *(f'{key}={value}' for key, value in settings.items())]


@pytest.fixture(scope='session')
def trained(shapes):
    """Work dir of a demo config trained for one epoch of four iterations."""
    done = run_tool('train.py', CONFIG, '--work-dir', 'run', *options(1), cwd=shapes)
    assert done.returncode == 0, done.stderr[-3000:]
    # Four images a batch, while the learning rate is meant for eight.
    assert '--auto-scale-lr' in done.stdout + done.stderr
    return shapes / 'run'


@pytest.fixture(scope='session')
def checkpoint(trained):
    return trained / 'epoch_1.pth'


@pytest.mark.matrix('checkpoints')
def test_training_saves_a_checkpoint_that_loads_as_data(checkpoint):
    loaded = read_checkpoint(checkpoint)
    assert {'state_dict', 'optimizer', 'message_hub', 'meta', 'param_schedulers'} <= set(loaded)
    if HAS_ALLOW_LIST:
        assert set(torch.load(checkpoint, weights_only=True)) == set(loaded)


@pytest.mark.matrix('detection')
def test_evaluation(checkpoint, shapes):
    done = run_tool(
        'test.py', CONFIG, checkpoint, '--work-dir', 'tested', '--out', 'tested/out.pkl',
        '--show-dir', 'pictures', cwd=shapes,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'coco/bbox_mAP_50' in done.stdout
    assert 'coco/segm_mAP_50' in done.stdout
    assert 'other settings' not in done.stdout + done.stderr
    assert (shapes / 'tested/out.pkl').stat().st_size
    assert list((shapes / 'tested').rglob('*.jpg'))
    assert not (shapes / 'pictures').exists()  # beside the work dir nothing is written


def test_a_detector_from_before_content_and_locality_is_evaluated(checkpoint, shapes, tmp_path):
    loaded = read_checkpoint(checkpoint)
    own = [n for n in loaded['state_dict'] if n.endswith(('.content', '.locality'))]
    assert len(own) == 12
    for name in own:
        del loaded['state_dict'][name]
    torch.save(loaded, tmp_path / 'before.pth')
    done = run_tool(
        'test.py', CONFIG, tmp_path / 'before.pth', '--work-dir', tmp_path / 'tested', cwd=shapes
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'coco/bbox_mAP_50' in done.stdout
    assert 'WARNING - IViT' not in done.stdout + done.stderr  # nothing of it is missing


@pytest.fixture
def photos(tmp_path, shapes):
    """A folder as users have them: images of all kinds and files that are none."""
    folder = tmp_path / 'photos'
    (folder / 'deeper').mkdir(parents=True)
    drawn = cv2.imread(str(shapes / 'data/shapes/images/validation/000000.jpg'))
    cv2.imwrite(str(folder / 'drawn.jpg'), drawn)
    cv2.imwrite(str(folder / 'drawn.png'), drawn)
    cv2.imwrite(str(folder / 'deeper/grey.png'), drawn[..., 0])
    cv2.imwrite(str(folder / 'large.jpg'), cv2.resize(drawn, (900, 700)))
    (folder / 'broken.jpg').write_bytes((folder / 'drawn.jpg').read_bytes()[:200])
    (folder / 'empty.png').touch()
    (folder / 'notes.txt').write_text('no image')
    return folder


def test_prediction_goes_on_past_unreadable_files(checkpoint, photos, tmp_path):
    args = (CONFIG, checkpoint, photos, '--out', 'out', '--score-thr', 0.1, '--device', 'cpu')
    done = run_tool('predict.py', *args, cwd=tmp_path)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert '4 images: out/pictures, out/predictions' in done.stdout
    listed = done.stderr.split('2 could not be predicted:')[1]
    assert 'broken.jpg' in listed
    assert 'empty.png' in listed
    written = sorted(str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.*'))
    names = ['deeper/grey.png', 'drawn.jpg', 'drawn.png', 'large.jpg']
    assert written == sorted(
        [f'pictures/{name}.jpg' for name in names]
        + [f'predictions/{name}.json' for name in names]
        + ['report.html']
    )
    record = json.loads((tmp_path / 'out/predictions/large.jpg.json').read_text())
    assert (record['width'], record['height']) == (900, 700)
    for detection in record['detections']:
        assert detection['name'] in ('circle', 'square', 'triangle', 'star', 'cross')
        assert detection['mask']['size'] == [700, 900]
        assert detection['score'] >= 0.1
    assert cv2.imread(str(tmp_path / 'out/pictures/drawn.jpg.jpg')).shape[0] >= 480

    again = run_tool('predict.py', *args, cwd=tmp_path)
    assert again.returncode == 1
    assert '--force' in again.stderr


def test_a_small_image_is_drawn_enlarged_with_its_boxes_in_place(checkpoint):
    detector = Detector(Config.fromfile(CONFIG), str(checkpoint), 'cpu', 0.0)
    image = np.zeros((128, 128, 3), np.uint8)
    sample = detector.inferencer(sample_of(image), return_datasamples=True)['predictions'][0]
    sample.pred_instances = sample.pred_instances[:1]
    sample.pred_instances.bboxes = torch.tensor([[32.0, 32, 96, 96]])
    sample.pred_instances.masks = np.zeros((1, 128, 128), bool)
    sample.pred_instances.masks[:, 32:96, 32:96] = True
    painted = detector._draw(image, sample).max(-1) > 0
    assert painted.shape == (512, 512)
    assert painted[140:370, 140:370].mean() > 0.99
    assert not painted[:, 400:].any()


@pytest.mark.parametrize('opacity', [None, 0.0, 0.5])
def test_what_lies_under_a_mask_is_seen_as_is_asked_for(checkpoint, opacity):
    detector = Detector(Config.fromfile(CONFIG), str(checkpoint), 'cpu', 0.0, opacity)
    image = np.full((512, 512, 3), 100, np.uint8)
    batch = [prepared(detector.pipeline, image)]
    sample = detector.inferencer.forward(detector.inferencer.collate_fn([batch[0].data]))[0]
    sample.pred_instances = sample.pred_instances[:1]
    sample.pred_instances.bboxes = torch.tensor([[32.0, 32, 400, 400]])
    sample.pred_instances.masks = torch.zeros(1, 512, 512, dtype=torch.bool)
    sample.pred_instances.masks[:, 32:400, 32:400] = True
    drawn = detector._draw(image, sample)[300:350, 300:350].astype(float)
    colour = detector.inferencer.visualizer.dataset_meta['palette'][
        int(sample.pred_instances.labels[0])
    ]
    shift = np.abs(drawn - 100).mean() / np.abs(np.array(colour) - 100.0).mean()
    assert shift == pytest.approx(0.8 if opacity is None else opacity, abs=0.25)  # jitter of mmdet


def test_batches_of_detections_are_those_of_single_images(checkpoint, shapes):
    detector = Detector(Config.fromfile(CONFIG), str(checkpoint), 'cpu', 0.0)
    paths = sorted((shapes / 'data/shapes/images/validation').iterdir())[:3]
    images = [prepared(detector.pipeline, cv2.imread(str(path))) for path in paths]
    together = detector(images)
    for image, one in zip(images, together):
        alone, found = detector([image])[0].record['detections'], one.record['detections']
        assert len(alone) == len(found) > 0
        for a, b in zip(alone, found):
            assert a['score'] == pytest.approx(b['score'], abs=1e-4)


def test_classes_that_the_checkpoint_does_not_name_are_the_configs(checkpoint, tmp_path):
    state_dict = torch.load(checkpoint, weights_only=True)['state_dict']
    torch.save(dict(state_dict=state_dict, meta={}), tmp_path / 'x.pth')
    detector = Detector(Config.fromfile(CONFIG), str(tmp_path / 'x.pth'), 'cpu', 0.0)
    image = prepared(detector.pipeline, np.zeros((64, 64, 3), np.uint8))
    record = detector([image])[0].record
    assert record['detections'][0]['name'] in ('circle', 'square', 'triangle', 'star', 'cross')
    assert detector.inferencer.visualizer.dataset_meta['classes'] == detector.classes


@pytest.mark.matrix('checkpoints')
def test_hostile_and_foreign_checkpoints_are_one_line_errors(shapes, tmp_path):
    class Hostile:
        def __reduce__(self):
            return os.system, ('touch harmed',)

    torch.save(dict(state_dict={}, extra=Hostile()), tmp_path / 'hostile.pth')
    torch.save({'conv1.weight': torch.zeros(3)}, tmp_path / 'foreign.pth')
    (tmp_path / 'text.pth').write_text('hi')
    (tmp_path / 'empty.pth').touch()
    (tmp_path / 'pickle.pth').write_bytes(pickle.dumps(Hostile()))
    for name in ('hostile', 'foreign', 'text', 'empty', 'pickle'):
        done = run_tool('predict.py', CONFIG, tmp_path / f'{name}.pth', IMAGES, cwd=shapes)
        assert done.returncode == 1
        assert 'Traceback' not in done.stderr, name
        expected = 'none of the loaded tensors' if name == 'foreign' else 'was not loaded'
        assert expected in done.stderr, name
    hostile = tmp_path / 'hostile.pth'
    for command in (['test.py', CONFIG, hostile], ['train.py', CONFIG, '--resume', hostile]):
        done = run_tool(*command, cwd=shapes)
        assert done.returncode == 1
        assert 'Traceback' not in done.stderr, command
        assert 'was not loaded' in done.stderr, command
    assert not (shapes / 'harmed').exists()


@pytest.mark.matrix('inferencers')
def test_stock_det_inferencer_from_an_empty_folder(checkpoint, tmp_path):
    code = (
        'import numpy, sys\n'
        'from mmdet.apis import DetInferencer\n'
        "assert not any(m.startswith('mmivit') for m in sys.modules)\n"
        f'inferencer = DetInferencer(model={str(CONFIG)!r}, weights={str(checkpoint)!r}, '
        "device='cpu')\n"
        'image = numpy.random.default_rng(0).integers(0, 255, (100, 120, 3), numpy.uint8)\n'
        "prediction = inferencer(image)['predictions'][0]\n"
        "assert set(prediction) == {'labels', 'scores', 'bboxes', 'masks'}\n"
        "assert inferencer.model.dataset_meta['classes'][0] == 'circle'\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.matrix('detection')
def test_stock_mmdet_tools_run_the_demo_config(checkpoint, shapes):
    for command in (
        ['train.py', CONFIG, '--work-dir', 'stock', *options(1)],
        ['test.py', CONFIG, checkpoint, '--work-dir', 'stock'],
    ):
        done = subprocess.run(
            [sys.executable, str(MMDET_TOOLS / command[0]), *map(str, command[1:])],
            cwd=shapes,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        assert done.returncode == 0, done.stderr[-3000:]
    assert (shapes / 'stock/epoch_1.pth').exists()
