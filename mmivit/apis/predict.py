"""Predictions for images and folders, through mmdet's and mmseg's inferencers and visualisers."""

from __future__ import annotations

import errno
import io
import json
import os
import warnings
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import mmcv
import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.registry import DATASETS
from mmengine.structures import PixelData
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from mmivit.apis.config import innermost_datasets, read_config
from mmivit.apis.models import check_weights, read_loadable
from mmivit.datasets.images import MOST_PIXELS, check_image
from mmivit.errors import CheckpointError
from mmivit.utils.files import RefusedFile, check_regular, write_whole
from mmivit.utils.text import printable
from mmivit.weights.checkpoint import dataset_meta, naming

IMAGE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
MAX_LOGITS = 2**27  # elements, half a GiB in fp32; more are never held at once
MAX_JPEG = 65_500  # pixels a side, in OpenCV
LEGIBLE = 480  # pixels; smaller images are enlarged for drawing, so that labels can be read
LONGEST = 4096  # pixels, up to which they are


@dataclass
class PredictReport:
    """Which images were predicted, and which files could not be used and why."""

    written: list[Path] = field(default_factory=list)
    failed: dict[Path, str] = field(default_factory=dict)


def find_images(inputs: Iterable[str | Path], out: Path) -> list[tuple[Path, Path]]:
    """The images of files and folders, each with its name relative to what was asked for.

    Args:
        inputs: files, and folders that are searched recursively.
        out: the folder to write, whose pictures and label maps are not taken for inputs.

    Raises:
        FileNotFoundError: an input does not exist, or a folder holds no image.
    """
    found = []
    outputs = [out.absolute() / name for name in ('pictures', 'labels')]
    for entry in map(Path, inputs):
        if entry.is_dir():
            left_out = [o for o in outputs if not entry.absolute().is_relative_to(o)]
            named = (p for p in entry.rglob('*') if p.suffix.lower() in IMAGE_SUFFIXES)
            images = sorted(
                path
                for path in named
                if not path.is_dir()
                and not any(path.absolute().is_relative_to(folder) for folder in left_out)
            )
            if not images:
                raise FileNotFoundError(
                    f'{entry} holds no image; looked for {", ".join(IMAGE_SUFFIXES)}'
                )
            found += [(path, path.relative_to(entry)) for path in images]
        elif entry.exists():
            found.append((entry, Path(entry.name)))
        else:
            raise FileNotFoundError(f'no file or folder {entry}, seen from {os.getcwd()}')
    return found


def read_image(path: Path) -> np.ndarray:
    """An image as BGR, (H, W, 3) uint8, turned as its EXIF orientation says.

    Pillow goes first: what is enormous or, if a PNG, damaged is not decoded.

    Raises:
        RefusedFile: it is no image, or too large to decode.
        OSError: there is no such file, or it may not be read.
    """
    check_regular(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # about sizes that are refused here
            check_image(path)
    except Image.DecompressionBombError as error:
        limit = f'more than {MOST_PIXELS // 10**6} megapixels'
        raise RefusedFile(f'{limit}; cut it into tiles') from error
    except PermissionError:
        raise
    except Exception as error:  # broken headers make Pillow's readers raise almost anything
        raise RefusedFile('not an image that can be read') from error
    try:
        image = mmcv.imread(str(path))
    except cv2.error as error:
        raise RefusedFile(f'not decoded ({printable(error)})') from error
    if image is None:
        raise RefusedFile('not an image that can be read')
    return image


def predict(
    config: str,
    checkpoint: str,
    inputs: Iterable[str | Path],
    out: str | Path,
    device: str | None = None,
    score_thr: float = 0.3,
    force: bool = False,
) -> PredictReport:
    """Predict on images and write ``out/pictures/NAME.jpg`` and ``out/predictions/NAME.json``.

    For a segmentor also ``out/labels/NAME.png``, the label map with its palette. A file that
    cannot be read or predicted is reported and the others go on.

    Args:
        config: the model's config.
        checkpoint: its weights.
        inputs: images and folders (searched recursively).
        out: folder to write.
        device: 'cpu', 'cuda:0' and so on; the best available if not given.
        score_thr: detections below this score are left out; nothing to a segmentor.
        force: replace pictures and predictions written earlier.

    Raises:
        FileNotFoundError: an input is missing.
        LaunchError: the config or the checkpoint is missing, or the config cannot be read.
        FileExistsError: a file to be written exists and ``force`` is off.
        PermissionError: a symbolic link in ``out`` leads out of it.
        OSError: the disk is full.
        CheckpointError: the checkpoint is unsafe, unreadable, or of something else.
    """
    cfg = read_config(config)
    segments = cfg.get('default_scope') == 'mmseg'
    images = find_images(inputs, Path(out))
    targets = [_targets(Path(out), name, segments) for _, name in images]
    if len(set(targets)) < len(targets):
        twice = next(t for i, t in enumerate(targets) if t in targets[:i])
        raise FileExistsError(f'two inputs would both be written to {twice[0]}')
    _check_inside(Path(out), targets)
    existing = [path for paths in targets for path in paths if os.path.lexists(path)]
    if existing and not force:
        raise FileExistsError(
            f'{printable(existing[0])} exists ({len(existing)} such files); '
            'name another --out, or replace them with --force'
        )
    loaded = read_loadable(checkpoint, 'checkpoint')
    with naming(checkpoint):
        saved = dataset_meta(loaded or {})
    if segments:
        predictor = Segmentor(cfg, checkpoint, device, saved)
    else:
        predictor = Detector(cfg, checkpoint, device, saved, score_thr)
    check_weights(predictor.model, checkpoint, loaded)
    report = PredictReport()
    for (path, _), paths in zip(tqdm(images, unit='image'), targets):
        try:
            image = read_image(path)
            picture, record, *label_map = predictor(image)
            height, width = image.shape[:2]
            record = dict(image=str(path), width=width, height=height, **record)
            contents = [_jpeg(picture), json.dumps(record, indent=1).encode(), *label_map]
            for target, content in zip(paths, contents):
                write_whole(target, content)
        except (RefusedFile, ValueError, OSError, RuntimeError, cv2.error) as error:
            if getattr(error, 'errno', None) == errno.ENOSPC:
                raise
            report.failed[path] = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        report.written.append(path)
    return report


class Detector:
    """mmdet's inferencer: BGR image in, RGB picture and plain record out.

    Args:
        saved: the checkpoint's ``dataset_meta``, empty if it has none.
        score_thr: detections below this score are left out.
    """

    def __init__(
        self, cfg: Config, checkpoint: str, device: str | None, saved: dict, score_thr: float
    ) -> None:
        from mmdet.apis import DetInferencer

        self.inferencer = DetInferencer(cfg, checkpoint, device=device, show_progress=False)
        self.model = self.inferencer.model
        self.classes = _names_and_colours(cfg, saved)['classes']
        # mmdet takes COCO's where the checkpoint names none.
        self.model.dataset_meta['classes'] = self.classes
        self.score_thr = score_thr

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, dict]:
        sample = self.inferencer(image, return_datasamples=True)['predictions'][0]
        sample.pred_instances = sample.pred_instances[
            sample.pred_instances.scores >= self.score_thr
        ]
        record = self.inferencer.pred2dict(sample)  # bboxes x1, y1, x2, y2; masks as COCO RLE
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
        return self._draw(image, sample), dict(detections=detections)

    def _draw(self, image: np.ndarray, sample) -> np.ndarray:
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
    """mmseg's inferencer: BGR image in; RGB picture, plain record and label map (PNG) out.

    Logits of all classes at the photo's full size would not fit into memory (150 classes at
    4000 x 3000 take 7 GB, and mmseg holds several copies), so labels are taken before they exist.

    Args:
        saved: the checkpoint's ``dataset_meta``, empty if it has none.
    """

    def __init__(self, cfg: Config, checkpoint: str, device: str | None, saved: dict) -> None:
        from mmseg.apis import MMSegInferencer

        self.inferencer = MMSegInferencer(cfg, checkpoint, device=device)
        self.model = self.inferencer.model
        if self.model.out_channels > 256:
            raise CheckpointError(f'{checkpoint}: label maps of 8 bits hold 256 classes at most')
        meta = _names_and_colours(cfg, saved)
        self.classes, self.palette = meta['classes'], meta['palette']
        self.inferencer.visualizer.dataset_meta = meta

    def __call__(self, image: np.ndarray) -> tuple[np.ndarray, dict, bytes]:
        labels = self.label_map(image)
        counts = np.bincount(labels.ravel(), minlength=len(self.classes))
        found = {
            self.classes[i]: counts[i] / labels.size
            for i in np.argsort(-counts, kind='stable')
            if counts[i]
        }
        record = dict(classes=list(self.classes), shares=found)
        return self._draw(image, labels, found), record, self._png(labels)

    @torch.no_grad()
    def label_map(self, image: np.ndarray) -> np.ndarray:
        """Class index of every pixel, (H, W) uint8, of a BGR image."""
        model = self.model
        data = self.inferencer.collate_fn([self.inferencer.pipeline(image)])
        data = model.data_preprocessor(data, False)
        inputs, meta = data['inputs'], data['data_samples'][0].metainfo
        size = image.shape[:2]
        padding = meta.get('img_padding_size', meta.get('padding_size', [0] * 4))
        left, right, top, bottom = padding
        rows = slice(top, inputs.shape[2] - bottom)
        columns = slice(left, inputs.shape[3] - right)
        slides = model.test_cfg.get('mode') == 'slide'
        if slides and model.out_channels * inputs[0, 0].numel() > MAX_LOGITS:
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
        return np.hstack([overlay, self._legend(len(overlay), found)])

    def _legend(self, height: int, found: dict) -> np.ndarray:
        """(height, width, 3) RGB; text grows with the picture and shrinks for many classes."""
        line = min(height / 12, (height - 8) / max(len(found), 1))
        scale = line / 44
        lines = [f'{name} {share:.1%}' for name, share in found.items()]
        font = cv2.FONT_HERSHEY_SIMPLEX
        thick = max(1, round(scale * 1.5))
        text = max(cv2.getTextSize(entry, font, scale, thick)[0][0] for entry in lines)
        legend = np.full((height, int(text + 2.2 * line), 3), 255, np.uint8)
        for i, (name, entry) in enumerate(zip(found, lines)):
            top = int(4 + i * line)
            box = int(line * 0.7)
            colour = tuple(map(int, self.palette[self.classes.index(name)]))
            left = int(line * 0.3)
            cv2.rectangle(legend, (left, top), (left + box, top + box), colour, -1)
            base = (int(line * 1.4), top + int(box * 0.85))
            cv2.putText(legend, entry, base, font, scale, (0, 0, 0), thick, cv2.LINE_AA)
        return legend

    def _png(self, labels: np.ndarray) -> bytes:
        picture = Image.fromarray(labels, mode='P')
        picture.putpalette(np.array(self.palette, np.uint8).tobytes())
        buffer = io.BytesIO()
        picture.save(buffer, 'PNG')
        return buffer.getvalue()


def slide_labels(model: nn.Module, inputs: Tensor, meta: dict) -> Tensor:
    """Labels of a large image by sliding windows, with the logits of one row of windows at a time.

    The same windows and the same mean over them as mmseg's ``slide_inference``, whose logits of
    the whole image need the memory this function spares.

    Args:
        model: mmseg's EncoderDecoder with ``test_cfg`` of mode 'slide'.
        inputs: one preprocessed image, (1, 3, H, W).
        meta: its meta information.

    Returns:
        Class indices, (H, W).
    """
    crop_h, crop_w = (min(a, b) for a, b in zip(model.test_cfg.crop_size, inputs.shape[2:]))
    stride_h, stride_w = model.test_cfg.stride
    height, width = inputs.shape[2:]
    tops = _window_starts(height, crop_h, stride_h)
    logits = inputs.new_zeros(model.out_channels, crop_h, width)  # rows from `top` on
    count = inputs.new_zeros(1, crop_h, width)
    labels = torch.empty(height, width, dtype=torch.long, device=inputs.device)
    progress = tqdm(tops, desc='sliding', leave=False)
    for top, next_top in zip(progress, [*tops[1:], height]):
        for left in _window_starts(width, crop_w, stride_w):
            window = inputs[:, :, top : top + crop_h, left : left + crop_w]
            meta = {**meta, 'img_shape': window.shape[2:]}  # a torch.Size tells mmseg of windows
            logits[:, :, left : left + crop_w] += model.encode_decode(window, [meta])[0]
            count[:, :, left : left + crop_w] += 1
        done = next_top - top  # rows that no later window touches
        labels[top:next_top] = _classes(logits[:, :done] / count[:, :done], model)
        for rows in (logits, count):
            rows[:, : crop_h - done] = rows[:, done:].clone()
            rows[:, crop_h - done :] = 0
    return labels


def upsampled_labels(logits: Tensor, size: tuple[int, int], model: nn.Module) -> Tensor:
    """Labels at a larger size, as from bilinearly resized logits, a few rows at a time.

    Args:
        logits: (classes, h, w).
        size: height and width of the labels, pixels.
        model: the segmentor, for its ``align_corners``.

    Returns:
        Class indices, size.
    """
    if len(logits) * size[0] * size[1] <= MAX_LOGITS:
        return _classes(_resize(logits, size, model), model)
    best = torch.full(size, -torch.inf, device=logits.device)
    labels = torch.zeros(size, dtype=torch.long, device=logits.device)
    chunk = max(1, MAX_LOGITS // (size[0] * size[1]))  # classes at a time
    for first in range(0, len(logits), chunk):
        value, index = _resize(logits[first : first + chunk], size, model).max(0)
        better = value > best
        labels[better] = index[better] + first
        best = torch.maximum(best, value)
    return labels


def _resize(logits: Tensor, size: tuple[int, int], model: nn.Module) -> Tensor:
    resized = F.interpolate(logits[None], size, mode='bilinear', align_corners=model.align_corners)
    return resized[0]


def _classes(logits: Tensor, model: nn.Module) -> Tensor:
    """(classes, h, w) -> (h, w); a single channel is a threshold on its sigmoid."""
    if len(logits) == 1:
        return (logits[0].sigmoid() > model.decode_head.threshold).long()
    return logits.argmax(0)


def _window_starts(size: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along a side: every stride, the last one flush with the end."""
    last = max(size - crop, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]


def _names_and_colours(cfg: Config, saved: dict) -> dict:
    """Classes and palette: those saved in the checkpoint, else those of the config's data set.

    Without either, mmdet names any model's classes as COCO's, mmseg as Cityscapes'.
    """
    meta = {key: saved.get(key) for key in ('classes', 'palette')}
    node = next(innermost_datasets(cfg.get('test_dataloader')), None)
    if node and not all(meta.values()):
        dataset = dict(node, pipeline=[], lazy_init=True, _scope_=cfg.default_scope)
        own = DATASETS.build(dataset).metainfo
        meta = {key: value or own.get(key) for key, value in meta.items()}
    if not meta['classes']:
        raise CheckpointError('neither the checkpoint nor the config names the classes')
    return meta


def _targets(out: Path, name: Path, segments: bool) -> tuple[Path, ...]:
    """What is written for an image; its own suffix stays, so that a.png and a.jpg differ."""
    paths = (out / 'pictures' / f'{name}.jpg', out / 'predictions' / f'{name}.json')
    return (*paths, out / 'labels' / f'{name}.png') if segments else paths


def _check_inside(out: Path, targets: Iterable[tuple[Path, ...]]) -> None:
    """Refuse to write through a link that someone left in ``out``."""
    root = out.resolve()
    for folder in {path.parent for paths in targets for path in paths}:
        if not folder.resolve().is_relative_to(root):
            raise PermissionError(f'{folder} is a link out of {out}, where all files belong')


def _enlargement(height: int, width: int) -> int:
    """How many times an image is enlarged for drawing; the long side stays within bounds."""
    needed = -(-LEGIBLE // min(height, width))
    return max(1, min(needed, LONGEST // max(height, width)))


def _jpeg(picture: np.ndarray) -> bytes:
    if max(picture.shape[:2]) > MAX_JPEG:
        raise ValueError(f'a JPEG has {MAX_JPEG} pixels a side at most, not {picture.shape[:2]}')
    return cv2.imencode('.jpg', mmcv.rgb2bgr(picture))[1].tobytes()
