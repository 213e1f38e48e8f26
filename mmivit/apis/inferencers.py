"""mmdet's and mmseg's inferencers and visualisers: images in; pictures and records out.

Images are loaded and prepared by the config's own test pipeline, as tools/test.py does it.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import cv2
import mmcv
import numpy as np
import torch
from mmengine.config import Config
from mmengine.infer import BaseInferencer
from mmengine.registry import DATASETS
from mmengine.structures import BaseDataElement, PixelData

from mmivit.apis.config import check_scope, set_test_data, tested_dataset
from mmivit.apis.images import viewable
from mmivit.apis.large_images import images_at_once, slide_labels, upsampled_labels
from mmivit.apis.models import check_weights, read_loadable
from mmivit.apis.pictures import draw_legend, set_visualizer
from mmivit.apis.runner import warn
from mmivit.apis.settings import differing_settings
from mmivit.datasets.loaders import ImagePipeline
from mmivit.engine.label_maps import MOST_CLASSES, label_map_png
from mmivit.errors import CheckpointError, LaunchError
from mmivit.weights.checkpoint import dataset_meta, naming

LEGIBLE = 480  # pixels; smaller images are enlarged for drawing, so that labels can be read
LONGEST = 4096  # pixels, up to which they are


class Prepared(NamedTuple):
    """An image before its prediction.

    Attributes:
        sample: as the config's loader makes it, with ``img``, (height, width, ...).
        data: what the rest of the test pipeline makes of it, for the model.
    """

    sample: dict
    data: dict

    @property
    def shape(self) -> tuple:
        """Of the image and of what the model gets; images of one shape make a batch."""
        return self.sample['img'].shape, getattr(self.data.get('inputs'), 'shape', None)


class Prediction(NamedTuple):
    """What was found in an image.

    Attributes:
        picture: the image with it, (height, width, 3) uint8, RGB.
        record: plain values, for JSON.
        labels: of a segmentor, the label map as PNG.
    """

    picture: np.ndarray
    record: dict
    labels: bytes | None = None


def load_inferencer(
    cfg: Config, checkpoint: str, device: str | None = None
) -> tuple[BaseInferencer, dict]:
    """mmdet's or mmseg's inferencer with a checkpoint's weights, all of them.

    Its ``pipeline`` is an :class:`~mmivit.datasets.loaders.ImagePipeline`, so it takes samples
    which that has loaded.

    Args:
        cfg: a config of mmdet or mmseg.
        checkpoint: path or URL of a ``.pth`` file.
        device: 'cpu', 'cuda:0' and so on; the best available if not given.

    Returns:
        The inferencer, and the checkpoint's ``dataset_meta``, empty if it has none.

    Raises:
        LaunchError: there is no such file, the config's default_scope is neither mmdet nor mmseg,
            it has no test pipeline that can be built, or that loads images by pickle.
        CheckpointError: the checkpoint is unsafe, unreadable, or of another model.
    """
    inferencer_class = _inferencer_class(check_scope(cfg))
    set_test_data(cfg)
    loaded = read_loadable(checkpoint, 'checkpoint')
    doubts = differing_settings(cfg, checkpoint, loaded)  # inferencers change the config
    set_visualizer(cfg)
    with naming(checkpoint):
        saved = dataset_meta(loaded or {})
        inferencer = inferencer_class(cfg, checkpoint, device=device)
    check_weights(inferencer.model, checkpoint, loaded)
    warn(doubts)
    return inferencer, saved


class _AsTested:
    """An inferencer with the whole test pipeline: the stock ones put a loader of theirs into it."""

    def _init_pipeline(self, cfg: Config) -> ImagePipeline:
        pipeline = ImagePipeline(tested_dataset(cfg).get('pipeline') or [], cfg.default_scope)
        if getattr(pipeline.loader, 'decode_backend', None) == 'pickle':
            raise LaunchError(
                f"{type(pipeline.loader).__name__}(decode_backend='pickle') runs what a file says, "
                "and images may be anyone's: set another decode_backend"
            )
        return pipeline


def _inferencer_class(scope: str) -> type[BaseInferencer]:
    if scope == 'mmdet':
        from mmdet.apis import DetInferencer as Stock
    else:
        from mmseg.apis import MMSegInferencer as Stock
    return type(Stock.__name__, (_AsTested, Stock), {})


class Detector:
    """mmdet's inferencer: prepared images in; RGB pictures and plain records out.

    Args:
        score_thr: detections below this score are left out.
        opacity: of masks in pictures, from 0 to 1; that of the config's visualiser if not given.

    Raises:
        LaunchError, CheckpointError: as in :func:`load_inferencer`.
    """

    def __init__(
        self,
        cfg: Config,
        checkpoint: str,
        device: str | None,
        score_thr: float,
        opacity: float | None = None,
    ) -> None:
        self.inferencer, saved = load_inferencer(cfg, checkpoint, device)
        self.model, self.pipeline = self.inferencer.model, self.inferencer.pipeline
        self.classes = names_and_colours(cfg, saved)['classes']
        # mmdet takes COCO's where the checkpoint names none.
        self.model.dataset_meta['classes'] = self.classes
        self.score_thr = score_thr
        self.inferencer.visualizer.mask_alpha = opacity

    def __call__(self, batch: Sequence[Prepared], steady: bool = False) -> list[Prediction]:
        """Predict on images of one shape; their pictures are of that size in any case."""
        data = self.inferencer.collate_fn([image.data for image in batch])
        samples = self.inferencer.forward(data)
        return [self._told(image.sample, found) for image, found in zip(batch, samples)]

    def _told(self, sample: dict, found: BaseDataElement) -> Prediction:
        found.pred_instances = found.pred_instances[found.pred_instances.scores >= self.score_thr]
        record = self.inferencer.pred2dict(found)  # bboxes x1, y1, x2, y2; masks as COCO RLE
        if max(record['labels'], default=0) >= len(self.classes):
            raise CheckpointError(f'it predicts more classes than the {len(self.classes)} named')
        detections = []
        for i, label in enumerate(record['labels']):
            detection = dict(
                label=label,
                name=self.classes[label],
                score=record['scores'][i],
                bbox=record['bboxes'][i],
            )
            if 'masks' in record:
                detection['mask'] = record['masks'][i]
            detections.append(detection)
        picture = self._draw(viewable(sample['img']), found)
        return Prediction(picture, dict(detections=detections))

    def _draw(self, image: np.ndarray, sample: BaseDataElement) -> np.ndarray:
        factor = _enlargement(*image.shape[:2])
        instances = sample.pred_instances
        if factor > 1:
            image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
            instances.bboxes = instances.bboxes * factor
            if 'masks' in instances:
                instances.masks = torch.as_tensor(instances.masks)
                instances.masks = instances.masks.repeat_interleave(factor, 1)
                instances.masks = instances.masks.repeat_interleave(factor, 2)
        visualizer = self.inferencer.visualizer
        visualizer.add_datasample(
            'prediction', mmcv.bgr2rgb(image), sample, draw_gt=False, pred_score_thr=0
        )
        return visualizer.get_image()


class Segmentor:
    """mmseg's inferencer: prepared images in; RGB pictures, plain records and label maps out.

    Args:
        opacity: of the classes' colours in pictures, from 0 to 1; that of the config's visualiser
            if not given.

    Raises:
        LaunchError, CheckpointError: as in :func:`load_inferencer`; or there are too many classes.
    """

    def __init__(
        self, cfg: Config, checkpoint: str, device: str | None, opacity: float | None = None
    ) -> None:
        self.inferencer, saved = load_inferencer(cfg, checkpoint, device)
        self.model, self.pipeline = self.inferencer.model, self.inferencer.pipeline
        if self.model.out_channels > MOST_CLASSES:
            most = f'label maps of 8 bits hold {MOST_CLASSES} classes at most'
            raise CheckpointError(f'{checkpoint}: {most}')
        meta = names_and_colours(cfg, saved)
        self.classes, self.palette = meta['classes'], meta['palette']
        self.inferencer.visualizer.dataset_meta = meta
        if opacity is not None:
            self.inferencer.visualizer.alpha = opacity

    def __call__(self, batch: Sequence[Prepared], steady: bool = False) -> list[Prediction]:
        """Predict on images of one shape.

        Args:
            batch: the images.
            steady: all pictures are as wide as the longest name of a class needs, as the frames
                of a video have to be.
        """
        return [
            self._told(image.sample, labels, steady)
            for image, labels in zip(batch, self.label_maps(batch))
        ]

    def _told(self, sample: dict, labels: np.ndarray, steady: bool) -> Prediction:
        counts = np.bincount(labels.ravel(), minlength=len(self.classes))
        found = {
            self.classes[i]: counts[i] / labels.size
            for i in np.argsort(-counts, kind='stable')
            if counts[i]
        }
        record = dict(classes=list(self.classes), shares=found)
        picture = self._draw(viewable(sample['img']), labels, found, steady)
        return Prediction(picture, record, label_map_png(labels, self.palette))

    @torch.no_grad()
    def label_maps(self, batch: Sequence[Prepared]) -> list[np.ndarray]:
        """Class index of every pixel of each image, (H, W) uint8."""
        model = self.model
        data = self.inferencer.collate_fn([image.data for image in batch])
        data = model.data_preprocessor(data, False)
        inputs, metas = data['inputs'], [sample.metainfo for sample in data['data_samples']]
        # Of one shape, all images are padded alike.
        padding = metas[0].get('img_padding_size', metas[0].get('padding_size', [0] * 4))
        left, right, top, bottom = padding
        rows = slice(top, inputs.shape[2] - bottom)
        columns = slice(left, inputs.shape[3] - right)
        size = tuple(batch[0].sample['img'].shape[:2])
        at_once = images_at_once(model, inputs)
        maps: list[torch.Tensor] = []
        for first in range(0, len(batch), max(at_once, 1)):
            part = slice(first, first + max(at_once, 1))
            if model.test_cfg.get('mode') == 'slide' and not at_once:
                maps.append(slide_labels(model, inputs[part], metas[first])[rows, columns])
            else:
                logits = model.inference(inputs[part], metas[part])[:, :, rows, columns]
                maps += [upsampled_labels(each, size, model) for each in logits]
        return [_sized(labels.cpu().numpy().astype(np.uint8), size) for labels in maps]

    def _draw(self, image: np.ndarray, labels: np.ndarray, found: dict, steady: bool) -> np.ndarray:
        """The overlay beside a legend of the classes found, with their shares."""
        factor = _enlargement(*image.shape[:2])
        if factor > 1:
            image = cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_CUBIC)
            labels = labels.repeat(factor, 0).repeat(factor, 1)
        from mmseg.structures import SegDataSample

        sample = SegDataSample(pred_sem_seg=PixelData(data=torch.from_numpy(labels)[None]))
        visualizer = self.inferencer.visualizer
        visualizer.add_datasample(
            'prediction', mmcv.bgr2rgb(image), sample, draw_gt=False, with_labels=False
        )
        overlay = visualizer.get_image()
        colours = (tuple(self.palette[self.classes.index(name)]) for name in found)
        texts = (f'{name} {share:.1%}' for name, share in found.items())
        legend = draw_legend(len(overlay), dict(zip(texts, colours)))
        if steady:
            width = self._widest(len(overlay))
            legend = np.pad(legend, ((0, 0), (0, width), (0, 0)), constant_values=255)[:, :width]
        return np.hstack([overlay, legend])

    @cache  # noqa: B019 - there is one segmentor, to the end of the program
    def _widest(self, height: int) -> int:
        """Width of a legend of any classes, pixels."""
        longest = sorted(self.classes, key=len)[-3:]
        return draw_legend(height, {f'{name} 100.0%': (0, 0, 0) for name in longest}).shape[1]


def names_and_colours(cfg: Config, saved: dict) -> dict:
    """Classes and palette: those saved in the checkpoint, else those of the config's data set.

    Without either, mmdet names any model's classes as COCO's, mmseg as Cityscapes'.
    """
    meta = {key: saved.get(key) for key in ('classes', 'palette')}
    node = tested_dataset(cfg)
    if node and not all(meta.values()):
        dataset = dict(node, pipeline=[], lazy_init=True, _scope_=cfg.default_scope)
        own = DATASETS.build(dataset).metainfo
        meta = {key: value or own.get(key) for key, value in meta.items()}
    if not meta['classes']:
        raise CheckpointError('neither the checkpoint nor the config names the classes')
    return meta


def _enlargement(height: int, width: int) -> int:
    """How many times an image is enlarged for drawing; the long side stays within bounds."""
    needed = -(-LEGIBLE // min(height, width))
    return max(1, min(needed, LONGEST // max(height, width)))


def _sized(labels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map at its image's size, height and width."""
    if labels.shape == size:
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
