"""Detectors' graphs against mmdet's own predictions, and what is refused."""

import numpy as np
import onnxruntime
import pytest
import torch
import torchvision.ops  # noqa: F401 (before anything is exported)
from mmcv.ops import batched_nms
from mmdet.models import RetinaHead, RTMDetInsSepBNHead, SingleRoIExtractor
from mmdet.registry import MODELS
from mmengine.config import Config
from torch import nn

from mmivit.apis.models import build_model
from mmivit.errors import ExportError
from mmivit.export import write_onnx
from mmivit.export.benchmark import scatter
from mmivit.export.detectors import Candidates, pool, suppress
from mmivit.export.runtime import lay_masks
from mmivit.export.targets import DetectorTarget, find_target
from tests.conftest import CONFIGS

SIZES = ((31, 31), (112, 137), (64, 400), (224, 224), (333, 250))
HEADS = CONFIGS / 'examples' / 'heads'
FAMILIES = sorted(path.stem for path in HEADS.glob('*.py'))
WITH_MASKS = ('mask_rcnn', 'rtmdet_ins')


def config(kind):
    """A small detector's config."""
    return Config.fromfile(HEADS / f'{kind}.py')


def target_of(cfg):
    """Its weights are random, and so small in the heads that scores are not all 1."""
    torch.manual_seed(0)
    model = scatter(build_model(cfg))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'head.' in name:
                parameter.mul_(0.3)
    return find_target(model, cfg)


@pytest.mark.parametrize('kind', FAMILIES)
def test_detections_are_those_of_mmdet(kind):
    target = target_of(config(kind))
    assert isinstance(target, DetectorTarget)
    found = 0
    for size in SIZES:
        image = torch.randint(256, (1, 3, *size), generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            boxes, scores, labels, *masks = target.graph(image.float())
            expected = target.reference(image.float())
        found += len(boxes)
        torch.testing.assert_close(boxes, expected[0], rtol=1e-5, atol=1e-4)
        torch.testing.assert_close(scores, expected[1])
        assert labels.tolist() == expected[2].tolist()
        meta = {
            key: value for key, value in target.facts.items() if key.startswith(('test', 'mask'))
        }
        laid = [np.array([*lay_masks(part.numpy(), boxes.numpy(), *size, meta)]) for part in masks]
        assert len(laid) == (kind in WITH_MASKS)
        assert all((one == two.numpy()).mean() > 0.9999 for one, two in zip(laid, expected[3:]))
    assert found > 20
    assert target.graph.test_cfg['iou_threshold'] == 0.5


def test_nothing_found_and_one_class_for_all_overlaps():
    cfg = config('retinanet')
    cfg.model.test_cfg.nms.class_agnostic = True
    target = target_of(cfg)
    image = torch.randint(256, (1, 3, 112, 137)).float()
    with torch.no_grad():
        torch.testing.assert_close(list(target.graph(image)), list(target.reference(image)))
        target.model.bbox_head.test_cfg.score_thr = 1.0
        assert [len(part) for part in target.graph(image)] == [0, 0, 0]


@MODELS.register_module()
class OwnPredict(RetinaHead):
    """Predicts in its own way."""

    def _predict_by_feat_single(self, *args, **kwargs):
        return super()._predict_by_feat_single(*args, **kwargs)


@MODELS.register_module()
class OwnForward(RetinaHead):
    """Computes in its own way, and predicts as others do."""

    def forward_single(self, x):
        logits, deltas = super().forward_single(x)
        return logits + 1, deltas


@MODELS.register_module()
class OwnMasks(RTMDetInsSepBNHead):
    """Makes masks in its own way."""

    def _mask_predict_by_feat_single(self, *args, **kwargs):
        return -super()._mask_predict_by_feat_single(*args, **kwargs)


def test_a_head_is_known_by_how_it_predicts():
    cfg = config('retinanet')
    cfg.model.bbox_head.type = 'OwnForward'
    target_of(cfg)
    cfg.model.bbox_head.type = 'OwnPredict'
    with pytest.raises(ExportError, match='OwnPredict has a _predict_by_feat_single of its own'):
        target_of(cfg)
    cfg = config('rtmdet_ins')
    cfg.model.bbox_head.type = 'OwnMasks'
    with pytest.raises(ExportError, match='OwnMasks has a _mask_predict_by_feat_single of its own'):
        target_of(cfg)


def test_what_is_refused():
    cfg = config('mask_rcnn')
    cfg.model.test_cfg.rcnn.nms = dict(type='soft_nms', iou_threshold=0.5)
    with pytest.raises(ExportError, match=r'test_cfg.nms is soft_nms.*--backbone'):
        target_of(cfg)
    cfg = config('mask_rcnn')
    cfg.model.roi_head.mask_head.upsample_cfg = dict(type='carafe', scale_factor=2)
    with pytest.raises(ExportError, match=r"is mmcv's CARAFE.*, an operator that ONNX has not"):
        target_of(cfg)
    cfg = config('mask_rcnn')
    cfg.model.roi_head.bbox_head.loss_cls = dict(type='SeesawLoss', num_classes=5)
    with pytest.raises(ExportError, match="BBoxHead's scores are what its SeesawLoss makes"):
        target_of(cfg)
    model = build_model(config('retinanet'))
    model.bbox_head = nn.Identity()
    with pytest.raises(ExportError, match='neither proposals and heads on regions nor a dense'):
        find_target(model, config('retinanet'))


class Selection(nn.Module):
    """Boxes, scores and classes read off an image, selected, and what lies in them pooled."""

    def __init__(self):
        super().__init__()
        layer = dict(type='RoIAlign', output_size=7, sampling_ratio=0)
        self.extractor = SingleRoIExtractor(layer, 3, [1, 2], finest_scale=8)

    def candidates(self, image):
        """(1, 3, H, W), 0 to 255 -> maps and n candidates."""
        corner = image[0, :2].flatten(1).T[:200] / 16
        size = image[0, [2, 0]].flatten(1).T[:200] / 12 + 1
        sides = torch.tensor(image.shape[:1:-1] * 2)  # W, H, W, H: as detectors clip theirs
        boxes = torch.cat([corner, corner + size], 1).minimum(sides)
        scores = image[0, 1].flatten()[-200:] / 255
        groups = (image[0, 2].flatten()[-200:] / 100).long()
        return (image, image[..., ::2, ::2].contiguous()), Candidates(boxes, scores, groups)

    def forward(self, image):
        maps, found = self.candidates(image)
        kept = suppress(found, found.scores > 0.3, dict(iou_threshold=0.4), 40)
        return found.boxes[kept], found.scores[kept], pool(self.extractor, maps, found.boxes[kept])


def test_selection_and_pooling_in_onnxruntime_are_mmcvs(tmp_path):
    model = Selection().eval()
    write_onnx(model, tmp_path / 'graph.onnx', ['boxes', 'scores', 'pooled'], batch=1)
    session = onnxruntime.InferenceSession(str(tmp_path / 'graph.onnx'))
    for height, width in ((20, 31), (64, 40)):
        image = 255 * torch.rand(1, 3, height, width, generator=torch.Generator().manual_seed(1))
        maps, (boxes, scores, groups) = model.candidates(image)
        good = scores > 0.3
        nms = dict(type='nms', iou_threshold=0.4)
        boxes, _ = batched_nms(boxes[good], scores[good], groups[good], nms)
        rois = torch.cat([torch.zeros(len(boxes[:40]), 1), boxes[:40, :4]], 1)
        expected = boxes[:40, :4], boxes[:40, 4], model.extractor(maps, rois)
        assert len(set(model.extractor.map_roi_levels(rois, 2).tolist())) == 2
        found = session.run(None, dict(image=image.numpy()))
        assert len(found[0]) > 5
        for one, two in zip(found, expected):
            torch.testing.assert_close(torch.from_numpy(one), two, rtol=1e-4, atol=1e-3)
    image = np.zeros((1, 3, 33, 29), np.float32)
    assert [len(part) for part in session.run(None, dict(image=image))] == [0, 0, 0]
