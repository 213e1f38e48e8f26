"""mmdet's and mmseg's inferencers and visualisers: an image in; a picture and a record out.

Images are loaded and prepared by the config's own test pipeline, as tools/test.py does it.
"""

from __future__ import annotations

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
from mmivit.apis.large_images import exceeds_memory, slide_labels, upsampled_labels
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
    """mmdet's inferencer: a loaded sample in, RGB picture and plain record out.

    Args:
        score_thr: detections below this score are left out.

    Raises:
        LaunchError, CheckpointError: as in :func:`load_inferencer`.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str | None, score_thr: float) -> None:
        self.inferencer, saved = load_inferencer(cfg, checkpoint, device)
        self.inferencer.show_progress = False
        self.model, self.pipeline = self.inferencer.model, self.inferencer.pipeline
        self.classes = names_and_colours(cfg, saved)['classes']
        # mmdet takes COCO's where the checkpoint names none.
        self.model.dataset_meta['classes'] = self.classes
        self.score_thr = score_thr

    def __call__(self, sample: dict) -> tuple[np.ndarray, dict]:
        found = self.inferencer(sample, return_datasamples=True)['predictions'][0]
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
        return self._draw(viewable(sample['img']), found), dict(detections=detections)

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
    """mmseg's inferencer: a loaded sample in; RGB picture, plain record and label map (PNG) out.

    Raises:
        LaunchError, CheckpointError: as in :func:`load_inferencer`; or there are too many classes.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str | None) -> None:
        self.inferencer, saved = load_inferencer(cfg, checkpoint, device)
        self.model, self.pipeline = self.inferencer.model, self.inferencer.pipeline
        if self.model.out_channels > MOST_CLASSES:
            most = f'label maps of 8 bits hold {MOST_CLASSES} classes at most'
            raise CheckpointError(f'{checkpoint}: {most}')
        meta = names_and_colours(cfg, saved)
        self.classes, self.palette = meta['classes'], meta['palette']
        self.inferencer.visualizer.dataset_meta = meta

    def __call__(self, sample: dict) -> tuple[np.ndarray, dict, bytes]:
        labels = self.label_map(sample)
        counts = np.bincount(labels.ravel(), minlength=len(self.classes))
        found = {
            self.classes[i]: counts[i] / labels.size
            for i in np.argsort(-counts, kind='stable')
            if counts[i]
        }
        record = dict(classes=list(self.classes), shares=found)
        picture = self._draw(viewable(sample['img']), labels, found)
        return picture, record, label_map_png(labels, self.palette)

    @torch.no_grad()
    def label_map(self, sample: dict) -> np.ndarray:
        """Class index of every pixel, (H, W) uint8, of a loaded sample."""
        model = self.model
        data = self.inferencer.collate_fn([self.pipeline(sample)])
        data = model.data_preprocessor(data, False)
        inputs, meta = data['inputs'], data['data_samples'][0].metainfo
        size = tuple(sample['img'].shape[:2])
        padding = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
        left, right, top, bottom = padding
        rows = slice(top, inputs.shape[2] - bottom)
        columns = slice(left, inputs.shape[3] - right)
        slides = model.test_cfg.get('mode') == 'slide'
        if slides and exceeds_memory(model, inputs):
            labels = slide_labels(model, inputs, meta)[rows, columns]
        else:
            logits = model.inference(inputs, [meta])[0, :, rows, columns]  # (classes, h, w)
            labels = upsampled_labels(logits, size, model)
        labels = labels.cpu().numpy().astype(np.uint8)
        if labels.shape != size:
            labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
        return labels

    def _draw(self, image: np.ndarray, labels: np.ndarray, found: dict) -> np.ndarray:
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
        return np.hstack([overlay, draw_legend(len(overlay), dict(zip(texts, colours)))])


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
