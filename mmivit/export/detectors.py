"""Whole detectors of mmdet as graphs: an image in; boxes, scores, labels and masks out.

mmdet's own heads compute logits, priors and boxes. What it does with them afterwards, to lists of
samples with branches on how many boxes there are, stands here once more as tensors alone, so that
one graph holds for any size and any number of boxes. A family of heads is recognised by *how it
predicts*: heads whose prediction is the stock code fit whatever their name, one that overrides it
does not, and is refused before anything is exported.
"""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmivit.errors import ExportError
from mmivit.export.features import ImageGraph

NMS_OPTIONS = {'type', 'iou_threshold', 'class_agnostic', 'split_thr'}


class Candidates(NamedTuple):
    """Boxes (n, 4) x1, y1, x2, y2, pixels of the image; scores (n,); classes or levels (n,)."""

    boxes: Tensor
    scores: Tensor
    groups: Tensor


class DetectorGraph(ImageGraph):
    """What the families have in common.

    Args:
        model: a detector of mmdet.
        options: the config of its data preprocessor.
        channels: of the image.
        divisor: the normalised image is padded with zeros to multiples of this, right and below.
    """

    with_masks = False
    mask_stride: int | None = None  # of masks that cover the image; None: those of the boxes

    def __init__(self, *args: Any) -> None:
        # torch's exporter knows its operators if they are there before the graph is traced.
        import torchvision.ops  # noqa: F401

        super().__init__(*args)

    @property
    @abstractmethod
    def test_cfg(self) -> dict[str, float]:
        """What boxes were selected by: ``score_thr``, ``iou_threshold`` and so on."""

    @classmethod
    @abstractmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether a detector is of this family by its modules."""

    @classmethod
    @abstractmethod
    def obstacles(cls, model: nn.Module) -> Iterator[str]:
        """Why a detector of this family cannot be exported, a phrase each."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(1, C, H, W) -> boxes (n, 4), scores (n,), labels (n,), of some also masks (n, h, w).

        Masks are probabilities to be laid over the boxes, or, with a :attr:`mask_stride`, logits
        of every pixel of the padded image that is a multiple of it.
        """
        maps = self.model.extract_feat(self.preprocess(image))
        sides = [torch.full((), side, dtype=torch.float32) for side in image.shape[2:]]
        return self.detect(maps, torch.stack(sides)[None])

    @abstractmethod
    def detect(self, maps: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, ...]:
        """The same from the maps of backbone and neck.

        Args:
            maps: (1, C_i, H_i, W_i).
            limits: height and width of the image, (1, 2), pixels.
        """


class DenseGraph(DetectorGraph):
    """Heads that score every place of their maps: RetinaNet, ATSS, FCOS, RTMDet and others.

    Anchors or points, deltas or distances: that is in the head's prior generator and box coder.
    """

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

        return isinstance(getattr(model, 'bbox_head', None), BaseDenseHead)

    @classmethod
    def obstacles(cls, model: nn.Module) -> Iterator[str]:
        from mmdet.models import SingleStageDetector
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

        stock = ('predict', 'predict_by_feat', '_predict_by_feat_single', '_bbox_post_process')
        yield from overridden(model, SingleStageDetector, ('predict', '_forward'))
        yield from overridden(model.bbox_head, BaseDenseHead, stock)
        yield from _score_obstacles(model.bbox_head)
        yield from _nms_obstacles(model.bbox_head.test_cfg)

    @property
    def test_cfg(self) -> dict[str, float]:
        return _selection(self.model.bbox_head.test_cfg, self.with_masks)

    def detect(self, maps: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, ...]:
        head = self.model.bbox_head
        logits, codes, *factors = head(maps)
        factors = [[_flat(y, 1) for y in levels] for levels in factors]
        found, factors = dense_candidates(head, logits, codes, limits, factors)
        good = found.scores > head.test_cfg.get('score_thr', 0)
        if factors:
            found = found._replace(scores=found.scores * factors[0][:, 0].sigmoid())
        kept = self.keep(found, good)
        return found.boxes[kept], found.scores[kept], found.groups[kept]

    def keep(self, found: Candidates, good: Tensor) -> Tensor:
        """Which of n candidates, of those that are ``good`` (n,), the config keeps, indices."""
        cfg = self.model.bbox_head.test_cfg
        return suppress(found, good & _large(found.boxes, cfg), cfg.nms, cfg.max_per_img)


class DynamicMaskGraph(DenseGraph):
    """RTMDet-Ins: a dense head that says of every place also by which kernels its mask is made."""

    with_masks = True

    def __init__(self, model: nn.Module, *args: Any) -> None:
        super().__init__(model, *args)
        self.mask_stride = model.bbox_head.prior_generator.strides[0][0]

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        from mmdet.models import RTMDetInsHead

        return isinstance(getattr(model, 'bbox_head', None), RTMDetInsHead)

    @classmethod
    def obstacles(cls, model: nn.Module) -> Iterator[str]:
        from mmdet.models import RTMDetInsHead, SingleStageDetector
        from mmdet.models.dense_heads.base_dense_head import BaseDenseHead

        stock = (
            'predict_by_feat',
            '_predict_by_feat_single',
            '_bbox_mask_post_process',
            '_mask_predict_by_feat_single',
            'parse_dynamic_params',
        )
        yield from overridden(model, SingleStageDetector, ('predict', '_forward'))
        yield from overridden(model.bbox_head, BaseDenseHead, ('predict',))
        yield from overridden(model.bbox_head, RTMDetInsHead, stock)
        yield from _score_obstacles(model.bbox_head)
        yield from _nms_obstacles(model.bbox_head.test_cfg)

    def detect(self, maps: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, ...]:
        head = self.model.bbox_head
        logits, codes, kernels, prototypes = head(maps)
        priors = head.prior_generator.grid_priors(
            [y.shape[-2:] for y in logits], device=logits[0].device, with_stride=True
        )
        others = [[_flat(y, head.num_gen_params) for y in kernels], priors]
        found, others = dense_candidates(head, logits, codes, limits, others)
        kept = self.keep(found, found.scores > head.test_cfg.get('score_thr', 0))
        masks = self.draw(prototypes[0], *(part[kept] for part in others))
        return found.boxes[kept], found.scores[kept], found.groups[kept], masks

    def draw(self, prototypes: Tensor, kernels: Tensor, priors: Tensor) -> Tensor:
        """Masks: what small networks, one for each, make of prototypes and of where it is.

        Args:
            prototypes: (C, h, w), at the stride of the finest map.
            kernels: of the networks, all their weights before all their biases, (n, parameters).
            priors: x, y, stride, stride of the places that were found, (n, 4), pixels.

        Returns:
            Logits (n, h, w).
        """
        head = self.model.bbox_head
        height, width = prototypes.shape[1:]
        grid = head.prior_generator.single_level_grid_priors((height, width), 0, device='cpu')
        offsets = (priors[:, None, :2] - grid) / (8 * priors[:, None, 2:3])  # (n, h w, 2)
        common = prototypes.flatten(1).expand(priors.shape[0], -1, -1)
        x = torch.cat([offsets.transpose(1, 2), common], dim=1)  # (n, 2 + C, h w)
        layers = len(head.weight_nums)
        parameters = kernels.split([*head.weight_nums, *head.bias_nums], dim=1)
        for i, (weight, bias) in enumerate(zip(parameters[:layers], parameters[layers:])):
            # A convolution of 1 x 1 in groups, written as a product, for n may be 0.
            weight = weight.reshape(-1, head.bias_nums[i], weight.shape[1] // head.bias_nums[i])
            x = weight @ x + bias[..., None]
            x = x.relu() if i < layers - 1 else x
        return x.reshape(-1, height, width)


class TwoStageGraph(DetectorGraph):
    """Region proposals and a head on each: Faster R-CNN, and Mask R-CNN with masks."""

    def __init__(self, model: nn.Module, *args: Any) -> None:
        super().__init__(model, *args)
        self.with_masks = model.roi_head.with_mask

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return hasattr(model, 'rpn_head') and hasattr(model, 'roi_head')

    @classmethod
    def obstacles(cls, model: nn.Module) -> Iterator[str]:
        from mmdet.models import (
            BBoxHead,
            FCNMaskHead,
            RPNHead,
            SingleRoIExtractor,
            StandardRoIHead,
            TwoStageDetector,
        )

        roi_head = model.roi_head
        predict = ('predict', 'predict_by_feat', '_predict_by_feat_single')
        yield from overridden(model, TwoStageDetector, ('predict',))
        yield from overridden(model.rpn_head, RPNHead, (*predict, '_bbox_post_process'))
        stages = ('predict', 'predict_bbox', 'predict_mask', '_bbox_forward', '_mask_forward')
        yield from overridden(roi_head, StandardRoIHead, stages)
        if isinstance(roi_head, StandardRoIHead):
            yield from overridden(roi_head.bbox_head, BBoxHead, predict[1:])
            yield from _score_obstacles(roi_head.bbox_head)
            extractors = [roi_head.bbox_roi_extractor]
            if roi_head.with_mask:
                yield from overridden(roi_head.mask_head, FCNMaskHead, predict[1:])
                extractors += (
                    [roi_head.mask_roi_extractor] if not roi_head.share_roi_extractor else []
                )
            for extractor in extractors:
                yield from overridden(extractor, SingleRoIExtractor, ('forward', 'map_roi_levels'))
                yield from _roi_layer_obstacles(extractor)
            if roi_head.with_shared_head:
                yield 'roi_head has a shared_head'
            yield from _nms_obstacles(roi_head.test_cfg)
        yield from _nms_obstacles(model.rpn_head.test_cfg)

    @property
    def test_cfg(self) -> dict[str, float]:
        return _selection(self.model.roi_head.test_cfg, self.with_masks)

    def detect(self, maps: Sequence[Tensor], limits: Tensor) -> tuple[Tensor, ...]:
        head = self.model.roi_head
        boxes, scores, labels = self.classify(maps, self.propose(maps, limits), limits)
        if not self.with_masks:
            return boxes, scores, labels
        logits = head.mask_head(pool(head.mask_roi_extractor, maps, boxes))  # (n, classes, 28, 28)
        if head.mask_head.class_agnostic:
            masks = logits[:, 0]
        else:
            index = labels[:, None, None, None].expand(-1, 1, *logits.shape[2:])
            masks = logits.gather(1, index)[:, 0]
        return boxes, scores, labels, masks.sigmoid()

    def propose(self, maps: Sequence[Tensor], limits: Tensor) -> Tensor:
        """Regions that may hold objects, (n, 4), the likeliest first."""
        head = self.model.rpn_head
        cfg = head.test_cfg
        logits, codes = head(maps)
        found, _ = dense_candidates(head, logits, codes, limits, by_level=True)
        kept = suppress(found, _large(found.boxes, cfg), cfg.nms, cfg.max_per_img)
        return found.boxes[kept]

    def classify(
        self, maps: Sequence[Tensor], regions: Tensor, limits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What regions (n, 4) hold: boxes (m, 4), scores (m,), labels (m,)."""
        head = self.model.roi_head.bbox_head
        cfg = self.model.roi_head.test_cfg
        extractor = self.model.roi_head.bbox_roi_extractor
        logits, deltas = head(pool(extractor, maps, regions))
        scores = logits.softmax(-1)[:, :-1]  # (n, classes), without the background
        boxes = decode(head, regions, deltas, limits)
        boxes = boxes.reshape(regions.shape[0], -1, 4).expand(-1, head.num_classes, 4)
        labels = torch.arange(head.num_classes).expand_as(scores)
        found = Candidates(boxes.reshape(-1, 4), scores.reshape(-1), labels.reshape(-1))
        kept = suppress(found, found.scores > cfg.score_thr, cfg.nms, cfg.max_per_img)
        return found.boxes[kept], found.scores[kept], found.groups[kept]


FAMILIES: tuple[type[DetectorGraph], ...] = (TwoStageGraph, DynamicMaskGraph, DenseGraph)


def find_family(model: nn.Module) -> type[DetectorGraph]:
    """The family of a detector.

    Raises:
        ExportError: it is of none, or has a part of its own.
    """
    way_out = '--backbone exports its backbone'
    for family in FAMILIES:
        if family.fits(model):
            for obstacle in family.obstacles(model):
                raise ExportError(
                    f'{type(model).__name__} cannot be exported whole: {obstacle}; {way_out}'
                )
            return family
    raise ExportError(
        f'{type(model).__name__} cannot be exported whole: it has neither proposals and heads on '
        f'regions nor a dense head; {way_out}'
    )


def dense_candidates(
    head: nn.Module,
    logits: Sequence[Tensor],
    codes: Sequence[Tensor],
    limits: Tensor,
    others: Sequence[Sequence[Tensor]] = (),
    by_level: bool = False,
) -> tuple[Candidates, list[Tensor]]:
    """The best places of a dense head, and what else it says of them.

    Args:
        head: one of mmdet's; its ``test_cfg.nms_pre`` is how many are taken of a level.
        logits: of each level, (1, k * classes, H, W), as all that follows.
        codes: of boxes.
        limits: height and width of the image, to which boxes are clipped, (1, 2), pixels.
        others: each of the same levels, (H * W * k, channels).
        by_level: group by level, not by class.

    Returns:
        The candidates, and of each of ``others`` (n, channels).
    """
    priors = head.prior_generator.grid_priors(
        [y.shape[-2:] for y in logits], device=logits[0].device
    )
    most = head.test_cfg.get('nms_pre', -1)
    found: list[list[Tensor]] = []
    for level, prior in enumerate(priors):
        scores = _flat(logits[level], head.cls_out_channels)  # (places, classes)
        scores = scores.sigmoid() if head.use_sigmoid_cls else scores.softmax(-1)[:, :-1]
        classes = scores.shape[1]
        scores = scores.reshape(-1)
        count = torch.sym_min(most, scores.shape[0]) if most > 0 else scores.shape[0]
        scores, index = scores.topk(count)
        place = index // classes
        groups = torch.full_like(index, level) if by_level else index % classes
        code = _flat(codes[level], head.bbox_coder.encode_size)
        found.append(
            [scores, groups, *(x[place] for x in (prior, code, *(y[level] for y in others)))]
        )
    scores, groups, prior, code, *rest = (torch.cat(parts) for parts in zip(*found))
    return Candidates(decode(head, prior, code, limits), scores, groups), rest


def decode(head: nn.Module, priors: Tensor, codes: Tensor, limits: Tensor) -> Tensor:
    """Boxes (n, 4 k) of priors (n, 4 or 2) and codes (n, 4 k), by mmdet's own coder.

    In three dimensions that asks nothing of how many there are, and takes limits as a tensor.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # that way is deprecated
        return head.bbox_coder.decode(priors[None], codes[None], max_shape=limits)[0]


def suppress(found: Candidates, good: Tensor, nms: dict, most: int) -> Tensor:
    """Which candidates are left, indices (m,), the best first: none overlaps a better of its group.

    Args:
        found: n candidates.
        good: those that are considered, (n,) bool.
        nms: mmdet's config of it.
        most: left at most.
    """
    from torchvision.ops import nms as non_maximum_suppression

    boxes, scores, groups = found
    if not nms.get('class_agnostic', False):
        # Groups are moved apart, as mmcv does it.
        boxes = boxes + (groups * (boxes.max() + 1))[:, None]
    index = good.nonzero()[:, 0]
    kept = non_maximum_suppression(boxes[index], scores[index], nms['iou_threshold'])
    return index[kept[:most]]


def pool(extractor: nn.Module, maps: Sequence[Tensor], boxes: Tensor) -> Tensor:
    """What maps hold in boxes (n, 4), each from the level of its size: (n, C, h, w)."""
    from torchvision.ops import roi_align

    layers = extractor.roi_layers
    regions = torch.cat([torch.zeros_like(boxes[:, :1]), boxes], dim=1)  # of the only image
    levels = extractor.map_roi_levels(regions, len(layers))
    size = (boxes.shape[0], extractor.out_channels, *layers[0].output_size)
    pooled = torch.zeros(size, dtype=boxes.dtype, device=boxes.device)
    for level, (layer, features) in enumerate(zip(layers, maps)):
        index = (levels == level).nonzero()[:, 0]
        aligned = roi_align(
            features,
            regions[index],
            layer.output_size,
            layer.spatial_scale,
            layer.sampling_ratio,
            layer.aligned,
        )
        pooled = pooled.index_put((index,), aligned)
    return pooled


def foreign_operators(model: nn.Module) -> Iterator[str]:
    """Operators of mmcv's own that a model computes with and ONNX has not, a phrase each."""
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith('mmcv.ops') and kind.__name__ != 'RoIAlign':
            yield f"{name} is mmcv's {kind.__name__}, an operator that ONNX has not"


def overridden(part: nn.Module, stock: type, methods: Sequence[str]) -> Iterator[str]:
    """Which of a stock class's methods a part of a model has not got, a phrase each."""
    name = type(part).__name__
    if not isinstance(part, stock):
        yield f'{name} is no {stock.__name__}'
        return
    for method in methods:
        if getattr(type(part), method) is not getattr(stock, method):
            yield f'{name} has a {method} of its own, not that of {stock.__name__}'


def _score_obstacles(head: nn.Module) -> Iterator[str]:
    """Scores are sigmoid or softmax of logits, unless the loss brings a way of its own."""
    if getattr(head.loss_cls, 'custom_cls_channels', False):
        yield f"{type(head).__name__}'s scores are what its {type(head.loss_cls).__name__} makes"


def _nms_obstacles(cfg: dict) -> Iterator[str]:
    nms = cfg.get('nms') or {}
    kind = nms.get('type', 'nms')
    if not nms:
        yield 'test_cfg has no nms'
    elif kind != 'nms' and getattr(kind, '__name__', '') != 'nms':
        yield f'test_cfg.nms is {kind}: ONNX has no operator for any but nms'
    elif set(nms) - NMS_OPTIONS:
        yield f'test_cfg.nms has {", ".join(sorted(set(nms) - NMS_OPTIONS))}'


def _roi_layer_obstacles(extractor: nn.Module) -> Iterator[str]:
    layer = extractor.roi_layers[0]
    if type(layer).__name__ != 'RoIAlign' or layer.pool_mode != 'avg':
        yield f'{type(extractor).__name__} pools by {layer}: only RoIAlign by means can be exported'


def _selection(cfg: dict, masks: bool) -> dict[str, float]:
    names = ('score_thr', 'max_per_img', *(['mask_thr_binary'] if masks else []))
    found = {name: cfg[name] for name in names if name in cfg}
    return {**found, 'iou_threshold': cfg['nms']['iou_threshold']}


def _large(boxes: Tensor, cfg: dict) -> Tensor:
    """Which boxes (n, 4) are as large as a config wants them, (n,) bool."""
    least = cfg.get('min_bbox_size', -1)
    if least < 0:
        return torch.ones_like(boxes[:, 0], dtype=torch.bool)
    return ((boxes[:, 2:] - boxes[:, :2]) > least).all(1)


def _flat(x: Tensor, channels: int) -> Tensor:
    """(1, k * channels, H, W) -> (H * W * k, channels)."""
    return x[0].permute(1, 2, 0).reshape(-1, channels)
