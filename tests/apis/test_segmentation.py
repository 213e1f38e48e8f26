"""Segmentation with its own commands and with stock mmseg."""

import json
import subprocess
import sys
from pathlib import Path

import cv2
import mmseg
import numpy as np
import pytest
from mmengine.config import Config
from PIL import Image

from mmivit.apis.inferencers import Segmentor
from mmivit.apis.videos import Video, written_video
from tests.conftest import CONFIGS, TIMEOUT, prepared, run_tool, sample_of

CONFIG = CONFIGS / 'upernet_ivit_shapes.py'


def train(folder, iterations, *more):
    done = run_tool(
        'train.py', CONFIG, '--work-dir', 'seg', *more, '--cfg-options',
        f'train_cfg.max_iters={iterations}', 'train_cfg.val_interval=4',
        'default_hooks.checkpoint.interval=2', 'train_dataloader.batch_size=2', cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return done


@pytest.fixture(scope='session')
def checkpoint(shapes):
    """A demo segmentor trained for four steps."""
    train(shapes, 4)
    return shapes / 'seg/iter_4.pth'


@pytest.mark.matrix('segmentation')
@pytest.mark.parametrize('tta', [False, True])
def test_evaluation(checkpoint, shapes, tta):
    done = run_tool(
        'test.py', CONFIG, checkpoint, '--work-dir', 'seg_test', '--out', 'seg_test/maps',
        *(['--tta'] if tta else []), cwd=shapes,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert 'mIoU' in done.stdout
    assert 'other settings' not in done.stdout + done.stderr
    assert len(list((shapes / 'seg_test/maps').glob('*.png'))) == 4


@pytest.mark.matrix('segmentation')
def test_training_goes_on_from_a_checkpoint(checkpoint, shapes):
    done = train(shapes, 6, '--resume', checkpoint)
    assert 'resumed epoch: 0, iter: 4' in done.stdout + done.stderr
    assert (shapes / 'seg/iter_6.pth').exists()


def test_prediction(checkpoint, shapes, tmp_path):
    frames = tmp_path / 'frames'  # a video is a folder of frames
    frames.mkdir()
    drawn = cv2.imread(str(shapes / 'data/shapes/images/validation/000000.jpg'))
    cv2.imwrite(str(frames / '0001.png'), drawn)
    cv2.imwrite(str(frames / '0002.png'), cv2.resize(drawn, (300, 200)))
    (frames / '0003.png').write_bytes(b'no image')
    done = run_tool('predict.py', CONFIG, checkpoint, frames, '--out', 'out', cwd=tmp_path)
    assert done.returncode == 1
    assert 'Traceback' not in done.stderr
    assert '0003.png' in done.stderr.split('could not be predicted:')[1]
    record = json.loads((tmp_path / 'out/predictions/0002.png.json').read_text())
    assert sum(record['shares'].values()) == pytest.approx(1)
    labels = Image.open(tmp_path / 'out/labels/0002.png.png')
    assert labels.mode == 'P'
    assert labels.size == (300, 200)
    cfg = Config.fromfile(CONFIG)
    values, counts = np.unique(np.array(labels), return_counts=True)
    shares = {cfg.metainfo.classes[v]: c / 60000 for v, c in zip(values, counts)}
    assert record['shares'] == pytest.approx(shares)
    palette = np.array(labels.getpalette()).reshape(-1, 3)[: len(cfg.metainfo.palette)]
    assert (palette == np.array(cfg.metainfo.palette)).all()
    picture = cv2.imread(str(tmp_path / 'out/pictures/0002.png.jpg'))
    assert picture.shape[0] >= 480
    assert picture.shape[1] > picture.shape[0] * 300 / 200  # the legend stands beside the image


def test_batches_and_processes_predict_the_same(checkpoint, shapes, tmp_path):
    """Frames of a video as well; images of two shapes are in turn."""
    photos = tmp_path / 'photos'
    photos.mkdir()
    drawn = [
        cv2.imread(str(path)) for path in sorted((shapes / 'data/shapes/images').rglob('*.jpg'))
    ]
    for i, image in enumerate(drawn[:5]):
        cv2.imwrite(str(photos / f'{i}.png'), image if i % 2 else cv2.resize(image, (150, 100)))
    with written_video(photos / 'clip.mp4', 5) as writer:
        for image in drawn[5:8]:
            writer.write(image[..., ::-1])
    for name, options in dict(
        one=(), three=('--batch-size', 3), two=('--processes', 2, '--batch-size', 2)
    ).items():
        done = run_tool(
            'predict.py', CONFIG, checkpoint, photos, '--out', name, *options, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert '5 images, 1 videos of 3 frames: ' in done.stdout
        assert 'Failed to search registry' not in done.stdout + done.stderr
    files = [sorted(path.relative_to(tmp_path / n) for path in (tmp_path / n).rglob('*.*'))
             for n in ('one', 'three', 'two')]  # fmt: skip
    assert files[0] == files[1] == files[2]
    assert Path('labels/clip.mp4/000002.png') in files[0]
    maps = [path for path in files[0] if path.parts[0] == 'labels' and path.suffix == '.png']
    assert len(maps) == 8
    for path in maps:
        one, *others = (np.array(Image.open(tmp_path / n / path)) for n in ('one', 'three', 'two'))
        for other in others:
            assert (one == other).mean() > 0.999  # near-ties may fall either way
    frames = list(Video(tmp_path / 'one/videos/clip.mp4.mp4'))
    assert len(frames) == 3
    assert frames[0].shape[1] > frames[0].shape[0]  # the legend stands beside the frame


@pytest.mark.matrix('segmentation')
def test_labels_equal_stock_inference(checkpoint, shapes):
    segmentor = Segmentor(Config.fromfile(CONFIG), str(checkpoint), 'cpu')
    image = cv2.imread(str(shapes / 'data/shapes/images/validation/000001.jpg'))
    image = cv2.resize(image, (201, 130))
    stock = segmentor.inferencer(sample_of(image), return_datasamples=True)
    expected = stock.pred_sem_seg.data[0].cpu().numpy()
    labels = segmentor.label_maps([prepared(segmentor.pipeline, image)])[0]
    assert (labels == expected).all()


@pytest.mark.matrix('inferencers')
def test_stock_mmseg_from_an_empty_folder(checkpoint, tmp_path):
    code = (
        'import numpy, sys\n'
        'from mmseg.apis import MMSegInferencer, inference_model, init_model\n'
        "assert not any(m.startswith('mmivit') for m in sys.modules)\n"
        'image = numpy.random.default_rng(0).integers(0, 255, (100, 120, 3), numpy.uint8)\n'
        f'inferencer = MMSegInferencer(model={str(CONFIG)!r}, weights={str(checkpoint)!r}, '
        "device='cpu')\n"
        "assert inferencer(image)['predictions'].shape == (100, 120)\n"
        f"model = init_model({str(CONFIG)!r}, {str(checkpoint)!r}, device='cpu')\n"
        'assert inference_model(model, image).pred_sem_seg.data.shape == (1, 100, 120)\n'
        "assert model.dataset_meta['classes'][1] == 'circle'\n"
    )
    done = subprocess.run(
        [sys.executable, '-c', code], cwd=tmp_path, capture_output=True, text=True, timeout=TIMEOUT
    )
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.matrix('segmentation')
def test_stock_mmseg_tools_run_the_demo_config(checkpoint, shapes):
    tool = Path(mmseg.__file__).parent / '.mim/tools/test.py'
    done = subprocess.run(
        [sys.executable, str(tool), str(CONFIG), str(checkpoint), '--work-dir', 'seg_stock'],
        cwd=shapes,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, done.stderr[-3000:]


METRICS = """
_base_ = CONFIG

from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module(force=True)
class OddMetric(BaseMetric):
    def process(self, data_batch, data_samples):
        self.results.append(0)

    def compute_metrics(self, results):
        import numpy as np

        return dict(per_class=np.array([0.5, 0.25], np.float16), nothing=None, text='good')


test_evaluator = dict(_delete_=True, type='OddMetric')
del BaseMetric, METRICS, OddMetric
"""


def test_metrics_that_are_no_numbers(checkpoint, shapes, tmp_path):
    config = tmp_path / 'odd.py'
    config.write_text(METRICS.replace('CONFIG', repr(str(CONFIG))))
    done = run_tool('test.py', config, checkpoint, '--work-dir', tmp_path, cwd=shapes)
    assert done.returncode == 0, done.stderr[-3000:]
    printed = done.stdout.splitlines()[-3:]
    assert [' '.join(line.split()) for line in printed] == [
        'per_class [0.5 0.25]',
        'nothing None',
        'text good',
    ]
