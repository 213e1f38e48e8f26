"""What predicts from a graph without torch, against what it stands in for."""

import json
import math
import re
import shlex
import shutil
import subprocess
import sys

import cv2
import numpy as np
import onnx
import pytest
import torch
import torch.nn.functional as F
from mmdet.models.roi_heads.mask_heads.fcn_mask_head import _do_paste_mask
from mmengine.config import Config
from onnx import helper
from PIL import Image
from pycocotools import mask as coco

from mmivit.datasets.loaders import ImagePipeline
from mmivit.export import runtime
from mmivit.export.parity_detections import compare_detections
from mmivit.export.recipe import recipe
from tests.conftest import CONFIGS, ROOT
from tests.export.toys import two_boxes, write_constants

RNG = np.random.default_rng(0)
IMAGE = cv2.GaussianBlur(RNG.integers(0, 256, (97, 160, 3), np.uint8), (0, 0), 1)
# Nothing else needs to be on a device, and of the engines one.
ABSENT = ['torch', 'mmengine', 'mmcv', 'mmdet', 'mmseg', 'cv2', 'matplotlib', 'onnx', 'pandas']
ISOLATED = """
import json, runpy, sys

absent = json.loads(sys.argv.pop(1))

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition('.')[0] in absent:
            raise ImportError(name + ' is not there')

sys.meta_path.insert(0, Absent())
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name='__main__')
"""


@pytest.mark.parametrize('size', [(96, 160), (40, 33), (200, 333), (96, 161), (48, 80), (48, 79)])
def test_resize_is_opencvs_to_the_bit(size):
    image = IMAGE[:96]
    expected = cv2.resize(image, size[::-1])
    assert np.array_equal(runtime.resize(image, *size), expected)


def test_images_are_read_as_opencv_does(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    Image.fromarray(IMAGE).save(tmp_path / 'turned.jpg', exif=exif)
    cv2.imwrite(str(tmp_path / 'grey.png'), IMAGE[..., 0])
    cv2.imwrite(str(tmp_path / 'deep.png'), IMAGE[..., 0].astype(np.uint16) * 256)
    Image.fromarray(IMAGE).convert('RGBA').save(tmp_path / 'alpha.png')
    for path in tmp_path.iterdir():
        expected = cv2.imread(str(path))
        assert np.array_equal(runtime.read_image(path), expected), path
        expected = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)[..., None].astype(int)
        assert np.abs(runtime.read_image(path, 'grayscale') - expected).max() <= 1, path
    with pytest.raises(runtime.GraphError, match='unchanged'):
        runtime.read_image(path, 'unchanged')


@pytest.mark.parametrize(
    'steps',
    [
        [dict(type='Resize', scale=(128, 64), keep_ratio=True)],
        [dict(type='Resize', scale=(90, 70), keep_ratio=False)],
        [
            dict(type='Resize', scale=(80, 80), keep_ratio=True),
            dict(type='Pad', size=(80, 96), pad_val=dict(img=(114, 114, 114))),
        ],
        [dict(type='Resize', scale_factor=0.5), dict(type='Pad', size_divisor=32)],
    ],
)
def test_images_are_prepared_as_by_the_pipeline(steps, tmp_path):
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit_shapes.py')
    pipeline = cfg.test_dataloader.dataset.pipeline
    pipeline[1:2] = steps
    cv2.imwrite(str(tmp_path / 'image.png'), IMAGE)
    made = ImagePipeline(pipeline, 'mmdet')
    packed = made(made.load(tmp_path / 'image.png') | dict(img_id=0))
    facts = recipe(cfg)
    image, scale = runtime.prepare(
        runtime.read_image(tmp_path / 'image.png', facts['colors']), json.loads(facts['prepare'])
    )
    assert np.array_equal(image.transpose(2, 0, 1), packed['inputs'])
    assert scale == pytest.approx(packed['data_samples'].scale_factor)


@pytest.mark.parametrize(
    'step',
    [
        dict(type='Resize', scale=(64, 64), interpolation='area'),
        dict(type='CenterCrop', crop_size=8),
    ],
)
def test_what_else_a_pipeline_does_is_said(step):
    cfg = Config.fromfile(CONFIGS / 'mask_rcnn_ivit_shapes.py')
    cfg.test_dataloader.dataset.pipeline[1] = step
    assert recipe(cfg) == dict(unprepared=step['type'])


@pytest.mark.parametrize('corners', [False, True])
@pytest.mark.parametrize('classes', [1, 5])
def test_labels_are_taken_at_full_size(classes, corners):
    logits = RNG.normal(size=(classes, 21, 30)).astype(np.float32)
    meta = dict(align_corners=json.dumps(corners), threshold='0.4')
    large = F.interpolate(
        torch.from_numpy(logits)[None], (83, 71), mode='bilinear', align_corners=corners
    )[0]
    expected = large.argmax(0) if classes > 1 else large[0].sigmoid() > 0.4
    assert np.array_equal(runtime.label_map(logits, 83, 71, meta), expected)


def test_masks_are_pasted_as_mmdet_does():
    masks = RNG.random((4, 28, 28)).astype(np.float32)
    boxes = np.array([[3, 4, 50, 60], [-5, 2.5, 20.2, 99], [70, 80, 71, 81.5], [0, 0, 90, 90]])
    for mask, box, found in zip(masks, boxes, runtime.paste(masks, boxes, 90, 95)):
        expected = np.zeros((90, 95), np.float32)
        tensors = torch.from_numpy(mask)[None, None], torch.from_numpy(box)[None].float()
        pasted, place = _do_paste_mask(*tensors, 90, 95, skip_empty=True)
        expected[place] = pasted[0]
        np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize('scale', [(1, 1), (0.5, 0.5), (1.7, 1.3)])
def test_masks_of_the_whole_picture_are_laid_as_mmdet_does(scale):
    """As RTMDetInsHead does it, but for its taking of the horizontal scale for both."""
    logits, (height, width) = RNG.normal(size=(3, 9, 12)).astype(np.float32), (61, 83)
    prepared = round(height * scale[1]), round(width * scale[0])
    rows, columns = (-(-side // 32) * 4 for side in prepared)  # padded to 32, at stride 8
    masks = cv2.resize(logits.transpose(1, 2, 0), (columns, rows)).transpose(2, 0, 1)
    large = F.interpolate(torch.from_numpy(masks)[None], scale_factor=8, mode='bilinear')
    size = [math.ceil(side / x) for side, x in zip(large.shape[2:], scale[::-1])]
    large = F.interpolate(large, size, mode='bilinear')[0, :, :height, :width]
    meta = dict(test_cfg='{"mask_thr_binary": 0.4}', mask_stride='8')
    found = [*runtime.lay_masks(masks, np.zeros((3, 4)), height, width, meta, scale)]
    assert (np.stack(found) == (large.sigmoid() >= 0.4).numpy()).mean() > 0.999


def test_run_lengths_are_cocos():
    for i in range(9):
        mask = cv2.resize(RNG.random((5, 5)), (7 + 9 * i, 60)) > i / 8
        expected = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
        assert runtime.run_lengths(mask)['counts'] == expected['counts'].decode()
        assert runtime.run_lengths(mask)['size'] == expected['size']


def test_detections_that_differ_are_counted():
    boxes, scores = RNG.uniform(0, 90, (6, 4)), np.linspace(0.9, 0.4, 6)
    expected = (boxes, scores, np.arange(6))
    order = RNG.permutation(6)
    found = (boxes[order] + 0.01, scores[order], np.arange(6)[order])
    parity = compare_detections(expected, found, 100, 100)
    assert (parity.expected, parity.found, parity.matched) == (6, 6, 6)
    assert parity.boxes == pytest.approx(0.01)
    assert parity.iou is None
    parity = compare_detections(expected, (boxes, scores - 0.01, np.arange(6)), 100, 100)
    assert parity.matched == 0
    with pytest.raises(Exception, match='of 6 detections and its 6 only 0 are the same'):
        parity.check()


@pytest.fixture
def detector(tmp_path):
    """A graph that finds the same two boxes in every image."""
    meta = dict(
        task='detection',
        classes='["cat", "\\u72d7"]',
        palette='[]',
        colors='color',
        prepare='[{"resize": [320, 194], "keep_ratio": true}]',
        test_cfg='{"mask_thr_binary": 0.5}',
    )
    write_constants(tmp_path / 'graph.onnx', two_boxes(), meta)
    (tmp_path / 'photos').mkdir()
    cv2.imwrite(str(tmp_path / 'photos' / 'a.png'), IMAGE)
    (tmp_path / 'photos' / 'broken.jpg').write_bytes(b'no image')
    return tmp_path


def isolated(folder, absent, *args):
    """A script where nothing but what it needs can be imported."""
    absent = json.dumps([*ABSENT, *absent])
    command = [sys.executable, '-c', ISOLATED, absent, *args]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize('engine', ['onnxruntime', 'openvino'])
def test_a_folder_with_three_packages(detector, engine):
    name, other = 'graph.onnx', 'openvino'
    if engine == 'openvino':
        pytest.importorskip('openvino')
        line = re.search('^ovc .*$', (ROOT / 'docs' / 'export.md').read_text(), re.M)[0]
        arguments = shlex.split(line.replace('detector', 'graph'))[1:]
        convert = [sys.executable, '-m', 'openvino.tools.ovc', *arguments]
        subprocess.run(convert, cwd=detector, check=True, capture_output=True)
        name, other = 'graph.xml', 'onnxruntime'
        (detector / 'graph.onnx').unlink()
    command = ROOT / 'tools' / 'predict.py', name, 'photos', '--out', 'out'
    (detector / 'photos/clip.MP4').touch()
    done = isolated(detector, [other], *command)
    assert done.returncode == 1
    assert done.stdout == (
        '1 images: out/pictures, out/predictions\nall to look through: out/report.html\n'
        '1 files of formats that are not predicted, such as photos/clip.MP4\n'
    )
    assert done.stderr.startswith('1 could not be predicted:\n  photos/broken.jpg: cannot identify')
    assert 'pictures/a.png.jpg' in (detector / 'out/report.html').read_text()
    record = json.loads((detector / 'out/predictions/a.png.json').read_text())
    (found,) = record.pop('detections')
    assert record == dict(image='photos/a.png', width=160, height=97)
    assert found['name'] == '狗'
    assert found['bbox'] == pytest.approx([5, 10, 25, 30])  # the graph's image is twice as large
    assert coco.decode(found['mask'])[10:30, 5:25].all()
    assert Image.open(detector / 'out/pictures/a.png.jpg').size == (800, 485)
    done = isolated(detector, [other], *command)
    assert done.stderr.startswith('predict: out/pictures/a.png.jpg exists (2 such files)')
    (detector / 'out/report.html').write_text('mine')
    done = isolated(detector, [other], *command, '--force')
    assert done.stderr.startswith('predict: out/report.html is no report of mmivit')
    # On a device, of mmivit the one file.
    shutil.copy(runtime.__file__, detector)
    done = isolated(detector, [other, 'mmivit'], 'runtime.py', name, 'photos/a.png', '--out', 'b')
    assert done.stdout == '1 images: b/pictures, b/predictions\n'
    record['image'] = 'photos/a.png'
    assert json.loads((detector / 'b/predictions/a.png.json').read_text()) == record | dict(
        detections=[found]
    )
    done = isolated(detector, [engine], *command, '--out', 'c')
    assert done.stderr.endswith(f'is not there: python -m pip install {engine}\n')


def test_what_a_graph_is_refused_for(detector):
    model = onnx.load(detector / 'graph.onnx')
    for changes, reason in (
        (dict(task='features'), "name 'features' for a task"),
        (dict(task='detection', unprepared='CenterCrop'), 'its config has CenterCrop'),
    ):
        helper.set_model_props(model, changes)
        onnx.save(model, detector / 'other.onnx')
        with pytest.raises(runtime.GraphError, match=reason):
            runtime.Graph(detector / 'other.onnx')
    (detector / 'none.onnx').write_bytes(b'no graph')
    (detector / 'none.xml').write_text('<net></net>')
    for name in ('none.onnx', 'none.xml', 'absent.onnx'):
        done = isolated(detector, [], ROOT / 'tools' / 'predict.py', name, 'photos')
        assert done.returncode == 1
        # OpenVINO's readers of other formats say what they think of it.
        lines = [
            x for x in done.stderr.splitlines() if not re.match(r'E\d{4} |WARNING: All log', x)
        ]
        assert len(lines) == 1
        assert lines[0].startswith('predict: ')
