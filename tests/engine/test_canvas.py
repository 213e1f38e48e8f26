"""Pictures of the quick canvas are those of MMEngine's, pixel by pixel."""

import numpy as np
import pytest
import torch
from mmdet.structures import DetDataSample
from mmdet.visualization import DetLocalVisualizer
from mmengine.registry import VISUALIZERS
from mmengine.structures import InstanceData, PixelData
from mmseg.structures import SegDataSample
from mmseg.visualization import SegLocalVisualizer

META = dict(classes=('one', 'two', 'three'), palette=[(220, 20, 60), (0, 140, 255), (9, 8, 7)])
SIZES = [(128, 128), (37, 61), (311, 207)]


def pictures(kind, stock, sample, image, **options):
    """What both visualisers draw, twice, for the second picture finds the first on the canvas."""
    own = VISUALIZERS.build(dict(type=f'mmivit.{kind}Visualizer', name='own'))
    for visualizer in (stock(), own):
        visualizer.dataset_meta = META
        np.random.seed(0)  # mmdet jitters the colours of masks
        for i in range(2):
            shown = image[::-1] if i else image
            visualizer.add_datasample('x', shown.copy(), sample, draw_gt=False, **options)
        yield visualizer.get_image()


@pytest.mark.parametrize('size', SIZES)
def test_detections(size):
    random, (height, width) = np.random.default_rng(0), size
    image = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
    corners = torch.from_numpy(np.sort(random.random((4, 2, 2)), 1)).float()
    corners[0] = torch.tensor([[0, 0], [1, 1]])  # the image's own border
    found = InstanceData(bboxes=(corners * torch.tensor([width, height])).flatten(1))
    found.scores, found.labels = torch.linspace(0.4, 0.99, 4), torch.tensor([0, 1, 2, 1])
    found.masks = torch.zeros(4, height, width, dtype=torch.bool)
    for mask, (x, y, right, bottom) in zip(found.masks, found.bboxes.long().tolist()):
        mask[y:bottom, x:right] = True
        mask[y + 3 : y + 5, x + 2 : x + 7] = False
    found.masks[3] = False
    sample = DetDataSample(pred_instances=found)
    stock, own = pictures('Det', DetLocalVisualizer, sample, image)
    assert own.shape == image.shape
    np.testing.assert_array_equal(own, stock)


@pytest.mark.parametrize('size', SIZES)
def test_label_maps(size):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (*size, 3), dtype=np.uint8)
    labels = random.choice([0, 2, 255], size)[None]
    sample = SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels)))
    stock, own = pictures('Seg', SegLocalVisualizer, sample, image, with_labels=False)
    assert own.shape == image.shape
    np.testing.assert_array_equal(own, stock)
