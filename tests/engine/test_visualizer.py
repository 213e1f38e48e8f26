"""mmseg's and mmdet's own tools that show a data set, on the drawn one; names in any script."""

from importlib import import_module
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample

from mmivit.utils import fonts
from tests.conftest import CONFIGS, TIMEOUT
from tests.forked import Forked


@pytest.mark.parametrize(
    ('package', 'config'),
    [('mmseg', 'upernet_ivit_shapes.py'), ('mmdet', 'mask_rcnn_ivit_shapes.py')],
)
def test_browse_dataset(package, config, shapes, tmp_path):
    tools = Path(import_module(package).__file__).parent / '.mim/tools/analysis_tools'
    command = (CONFIGS / config, '--output-dir', tmp_path, '--not-show')
    done = Forked(tools / 'browse_dataset.py', command, shapes, {}).wait(TIMEOUT)
    assert done.returncode == 0, done.stderr[-3000:]
    drawn = sorted(tmp_path.glob('*.jpg'))
    assert len(drawn) == 16
    picture = cv2.imread(str(drawn[0]))
    image = cv2.imread(str(shapes / 'data/shapes/images/training' / drawn[0].name))
    assert abs(cv2.resize(image, picture.shape[1::-1]).astype(int) - picture).mean() > 10


@pytest.mark.parametrize('kind', ['Seg', 'Det'])
def test_names_are_drawn_with_what_has_their_letters(kind, monkeypatch):
    texts = []

    def draw(text, size):
        texts.append(text)
        return np.full((20, 30), 255, np.uint8)

    monkeypatch.setattr(fonts, 'opencv_text', draw)
    monkeypatch.setattr(fonts, '_opencv_has', lambda character: True)
    monkeypatch.setattr(fonts, 'find_families', lambda text: ((), frozenset('圆')))
    visualizer = VISUALIZERS.build(dict(type=f'mmivit.{kind}Visualizer', name=f'{kind} names'))
    visualizer.dataset_meta = dict(classes=('фон', '圆'), palette=[(0, 0, 0), (0, 0, 255)])
    if kind == 'Seg':
        labels = torch.zeros(1, 90, 90, dtype=torch.long)
        labels[:, 20:60, 20:60] = 1
        sample = SegDataSample(pred_sem_seg=PixelData(data=labels))
    else:
        found = InstanceData(bboxes=torch.tensor([[20.0, 20, 60, 60]]))
        found.labels, found.scores = torch.tensor([1]), torch.tensor([0.5])
        sample = DetDataSample(pred_instances=found)
    visualizer.add_datasample('x', np.zeros((90, 90, 3), np.uint8), sample, draw_gt=False)
    assert texts == ['圆' if kind == 'Seg' else '圆: 50.0']
    assert 400 < (visualizer.get_image().min(-1) > 150).sum() < 900  # the block in its place
