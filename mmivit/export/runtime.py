"""Predict from a graph that tools/export.py wrote: no torch, no mmdet, mmseg, mmcv or mmengine.

    python runtime.py detector.onnx photo.jpg folder/ --out predictions

Needs numpy, Pillow and onnxruntime or, for an ``.xml``, openvino, and is one file, so that it can
be copied to a device with the graph. Writes what tools/predict.py writes from a config.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp', '.ppm')
# Of images and videos as well, which are not predicted here.
OTHER_SUFFIXES = (
    *('.gif', '.heic', '.heif', '.avif', '.jxl', '.jp2', '.svg', '.dng'),
    *('.mp4', '.m4v', '.mov', '.avi', '.mkv', '.webm', '.mpg', '.mpeg', '.wmv', '.mts'),
)
MOST_PIXELS = 89_478_485  # of an image, where Pillow warns of a bomb
LEGIBLE = 480  # pixels; smaller images are enlarged for drawing
LONGEST = 4096  # pixels, up to which they are
OPACITY = 0.5  # of what is laid over a picture


class GraphError(Exception):
    """What whoever runs this can mend, in one line. (mmivit's other errors need mmivit.)"""


class Graph:
    """A graph with what its metadata say of it.

    Args:
        path: of an ``.onnx``, or of an ``.xml`` that OpenVINO's ovc made of it.
        threads: of the CPU, which alone is used then; if 0, of whatever there is.

    Raises:
        GraphError: a package is missing, or it is no graph of tools/export.py, or one whose images
            are prepared as only its config can.
    """

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self._run, self.meta = open_graph(path, threads)
        self.task = self.meta.get('task', 'features')
        if self.task not in ('detection', 'segmentation'):
            raise GraphError(
                f'{path} is no detector or segmentor of tools/export.py: its metadata name '
                f'{self.task!r} for a task'
            )
        if 'unprepared' in self.meta:
            raise GraphError(
                f'{path} cannot be fed from files: its config has {self.meta["unprepared"]}, '
                'which is not known here; python tools/predict.py CONFIG CHECKPOINT knows it'
            )
        self.classes: list[str] = json.loads(self.meta['classes'])
        self.palette: list = json.loads(self.meta['palette'])
        self.steps: list[dict] = json.loads(self.meta['prepare'])

    def __call__(self, image: np.ndarray) -> list[np.ndarray]:
        """What the graph gives for a prepared image, (H, W, C)."""
        return self._run(image.transpose(2, 0, 1)[None].astype(np.float32))


def open_graph(path: str | Path, threads: int = 0) -> tuple[Callable, dict[str, str]]:
    """A function from images (B, C, H, W) float32 to the graph's outputs, and its metadata.

    Arguments and errors as of :class:`Graph`, which says more of a whole model.
    """
    if not Path(path).is_file():
        raise GraphError(f'no file {path}, seen from {os.getcwd()}')
    engine, start = _ENGINES.get(Path(path).suffix, _ENGINES['.onnx'])
    try:
        return start(str(path), threads)
    except ImportError as error:
        raise GraphError(f'{error}: python -m pip install {engine}') from error
    except Exception as error:  # those of the engines have no base class of their own
        reason = str(error).strip() or type(error).__name__
        raise GraphError(f'{path}: {reason.splitlines()[-1]}') from error


def _start_onnxruntime(path: str, threads: int) -> tuple[Callable, dict[str, str]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its warnings are about how it orders the work
    options.intra_op_num_threads = threads
    providers = onnxruntime.get_available_providers()
    session = onnxruntime.InferenceSession(
        path, options, providers=['CPUExecutionProvider'] if threads else providers
    )
    meta = session.get_modelmeta().custom_metadata_map
    return lambda image: session.run(None, {'image': image}), meta


def _start_openvino(path: str, threads: int) -> tuple[Callable, dict[str, str]]:
    import openvino

    # In fp32, as the graph is; else some processors compute in bf16.
    options = {'INFERENCE_PRECISION_HINT': 'f32', 'INFERENCE_NUM_THREADS': threads}
    model = openvino.Core().read_model(path)
    compiled = openvino.compile_model(model, 'CPU', options)
    info = model.get_rt_info()
    # ovc keeps the metadata of an .onnx there.
    kept = dict(info.items()).get('framework', {})
    meta = {name: value.value for name, value in kept.items()}
    return lambda image: list(compiled({'image': image}).values()), meta


_ENGINES = {
    '.onnx': ('onnxruntime', _start_onnxruntime),
    '.xml': ('openvino', _start_openvino),
}


def read_image(path: Path, colors: str = 'color') -> np.ndarray:
    """An image as mmcv's loader decodes it: (H, W, 3) BGR or, of grey, (H, W, 1), uint8.

    Args:
        path: of the file.
        colors: the loader's ``color_type``.
    """
    kind, _, rest = colors.partition('_')
    if kind not in ('color', 'grayscale'):
        raise GraphError(f'the graph wants images of color_type={colors!r}, not known here')
    with Image.open(path) as image:
        if image.width * image.height > MOST_PIXELS:
            raise ValueError(f'{image.width} x {image.height} pixels, more than {MOST_PIXELS}')
        if kind == 'grayscale':
            image.draft('L', image.size)  # a JPEG's own luminance, as OpenCV takes it
        if rest != 'ignore_orientation':
            image = ImageOps.exif_transpose(image)
        if image.mode.startswith('I'):  # 16 bits
            values = np.asarray(image).astype(np.int64) >> 8
            image = Image.fromarray(values.clip(0, 255).astype(np.uint8))
        if kind == 'grayscale':
            return np.asarray(image.convert('L'))[..., None]
        return np.ascontiguousarray(np.asarray(image.convert('RGB'))[..., ::-1])


def prepare(image: np.ndarray, steps: Iterable[dict]) -> tuple[np.ndarray, np.ndarray]:
    """What a graph takes of an image (H, W, C) uint8, and how much it was enlarged, (x, y).

    Args:
        image: as it was read.
        steps: the metadata's ``prepare``.
    """
    scale = np.ones(2)
    for step in steps:
        height, width = image.shape[:2]
        if 'pad' in step:
            side_w, side_h = step['pad'] or (width, height)
            divisor = step['divisor']
            below = -(-max(side_h, height) // divisor) * divisor - height
            right = -(-max(side_w, width) // divisor) * divisor - width
            padded = np.empty((height + below, width + right, image.shape[2]), image.dtype)
            padded[:] = step['value']
            padded[:height, :width] = image
            image = padded
            continue
        if 'scale' in step:
            wanted = [int(side * x + 0.5) for side, x in zip((width, height), step['scale'])]
        else:
            wanted = step['resize']
        if step['keep_ratio']:
            factor = min(max(wanted) / max(height, width), min(wanted) / min(height, width))
            wanted = [int(width * factor + 0.5), int(height * factor + 0.5)]
        image = resize(image, wanted[1], wanted[0])
        scale = scale * (wanted[0] / width, wanted[1] / height)
    return image, scale


def resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    """Bilinearly, without a filter, as OpenCV does it: (H, W, C) uint8 -> (height, width, C).

    In OpenCV's whole numbers: weights of 11 bits, each axis' product rounded as its is; halves are
    means of four.
    """
    if image.shape[:2] == (height, width):
        return image
    if image.shape[:2] == (2 * height, 2 * width):
        fours = image.reshape(height, 2, width, 2, image.shape[2]).astype(np.int32)
        return (fours.sum((1, 3)) + 2 >> 2).astype(np.uint8)
    top, bottom, down = _taps(image.shape[0], height)
    left, right, across = _taps(image.shape[1], width)
    down, up = (np.rint(x * 2048).astype(np.int32) for x in (down, 1 - down))
    across, back = (np.rint(x * 2048).astype(np.int32) for x in (across, 1 - across))
    out = np.empty((height, width, image.shape[2]), np.uint8)
    for channel in range(image.shape[2]):
        plane = image[..., channel].astype(np.int32)
        rows = plane[:, left] * back + plane[:, right] * across
        upper, lower = rows[top] >> 4, rows[bottom] >> 4
        mixed = (up[:, None] * upper >> 16) + (down[:, None] * lower >> 16)
        out[..., channel] = np.clip((mixed + 2) >> 2, 0, 255)
    return out


def _taps(old: int, new: int, corners: bool = False) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each of ``new`` places the two of ``old`` around it, and the weight of the second.

    Beyond the ends both are the same place.
    """
    places = np.arange(new, dtype=np.float64)
    inner = (places + 0.5) * (old / new) - 0.5
    at = places * ((old - 1) / max(new - 1, 1)) if corners else inner
    at = at.astype(np.float32)
    first = np.floor(at)
    second = np.clip(first + 1, 0, old - 1).astype(np.int64)
    return first.clip(0, old - 1).astype(np.int64), second, at - first


def label_map(logits: np.ndarray, height: int, width: int, meta: dict[str, str]) -> np.ndarray:
    """The class of every pixel, (height, width) uint8: logits are enlarged, then compared.

    Args:
        logits: (classes, h, w).
        height: of the photograph, pixels.
        width: of the photograph.
        meta: the graph's metadata.
    """
    corners = json.loads(meta.get('align_corners', 'false'))
    best = np.full((height, width), -np.inf, np.float32)
    labels = np.zeros((height, width), np.uint8)
    for index, plane in enumerate(logits):
        plane = _enlarge(plane, height, width, corners)
        if len(logits) == 1:
            return (1 / (1 + np.exp(-plane)) > json.loads(meta['threshold'])).astype(np.uint8)
        better = plane > best
        labels[better] = index
        best[better] = plane[better]
    return labels


def _enlarge(plane: np.ndarray, height: int, width: int, corners: bool = False) -> np.ndarray:
    """(h, w) -> (height, width), bilinearly, as torch does it."""
    top, bottom, down = _taps(plane.shape[0], height, corners)
    left, right, across = _taps(plane.shape[1], width, corners)
    down, across = down.astype(np.float32)[:, None], across.astype(np.float32)
    plane = plane[:, left] * (1 - across) + plane[:, right] * across
    return plane[top] * (1 - down) + plane[bottom] * down


def lay_masks(
    masks: np.ndarray,
    boxes: np.ndarray,
    height: int,
    width: int,
    meta: dict[str, str],
    scale: Sequence[float] = (1, 1),
) -> Iterator[np.ndarray]:
    """A detector's masks in a picture, (height, width) bool, one after the other.

    Args:
        masks: as the graph gives them, (n, h, w).
        boxes: (n, 4) x1, y1, x2, y2, pixels of the picture.
        height: of the picture.
        width: of the picture.
        meta: the graph's metadata.
        scale: how much the picture was enlarged for the graph, (x, y).
    """
    least = json.loads(meta['test_cfg'])['mask_thr_binary']
    if 'mask_stride' not in meta:
        yield from (mask >= least for mask in paste(masks, boxes, height, width))
        return
    stride = json.loads(meta['mask_stride'])
    for logits in masks:  # of the whole picture, and of what it was padded with
        rows, columns = (stride * side for side in logits.shape)
        whole = _enlarge(logits, rows, columns)
        rows, columns = (int(np.ceil(x / y)) for x, y in zip((rows, columns), scale[::-1]))
        whole = _enlarge(whole, max(rows, height), max(columns, width))[:height, :width]
        with np.errstate(over='ignore'):  # of what is surely none
            yield 1 / (1 + np.exp(-whole)) >= least


def paste(masks: np.ndarray, boxes: np.ndarray, height: int, width: int) -> Iterator[np.ndarray]:
    """Probabilities laid over their boxes, one picture (height, width) float32 after the other.

    Args:
        masks: (n, h, w).
        boxes: (n, 4) x1, y1, x2, y2, pixels of the picture.
        height: of the picture.
        width: of the picture.
    """
    for mask, (x1, y1, x2, y2) in zip(masks, boxes.astype(np.float32)):
        picture = np.zeros((height, width), np.float32)
        rows = slice(max(int(np.floor(y1)) - 1, 0), min(int(np.ceil(y2)) + 1, height))
        columns = slice(max(int(np.floor(x1)) - 1, 0), min(int(np.ceil(x2)) + 1, width))
        down = _spread(mask.shape[0], rows, y1, y2)
        across = _spread(mask.shape[1], columns, x1, x2)
        picture[rows, columns] = down @ mask @ across.T
        yield picture


def _spread(cells: int, pixels: slice, low: np.float32, high: np.float32) -> np.ndarray:
    """(pixels, cells): how much of each cell of [low, high] is in each pixel, bilinearly."""
    centres = np.arange(pixels.start, pixels.stop, dtype=np.float32) + np.float32(0.5)
    at = (centres - low) / max(high - low, np.float32(1e-6)) * cells - np.float32(0.5)
    return np.maximum(0, 1 - np.abs(at[:, None] - np.arange(cells, dtype=np.float32)))


def run_lengths(mask: np.ndarray) -> dict:
    """A mask (H, W) bool in COCO's compressed run lengths."""
    pixels = mask.T.ravel()
    changes = np.flatnonzero(pixels[1:] != pixels[:-1]) + 1
    edges = np.concatenate([[0], changes, [pixels.size]])
    counts = np.diff(edges).tolist()
    if pixels.size and pixels[0]:
        counts.insert(0, 0)  # the first run is of zeros
    text = []
    for i, count in enumerate(counts):
        value = count - counts[i - 2] if i > 2 else count
        while True:
            bits, value = value & 31, value >> 5
            last = value == (-1 if bits & 16 else 0)
            text.append(chr(48 + (bits if last else bits | 32)))
            if last:
                break
    return dict(size=list(mask.shape), counts=''.join(text))


def detect(graph: Graph, image: np.ndarray, score_thr: float) -> tuple[Image.Image, dict]:
    """The picture and the record of a detector's boxes in an image (H, W, C) uint8."""
    detections, masks = find_objects(graph, image, score_thr)
    return _draw_boxes(graph, image, detections, masks), dict(detections=detections)


def find_objects(
    graph: Graph, image: np.ndarray, score_thr: float
) -> tuple[list[dict], list[np.ndarray]]:
    """A detector's boxes in an image (H, W, C) uint8: records, and of some masks (H, W) bool."""
    height, width = image.shape[:2]
    prepared, scale = prepare(image, graph.steps)
    boxes, scores, labels, *masks = graph(prepared)
    good = scores >= score_thr
    boxes = boxes[good] / np.tile(scale, 2).astype(np.float32)
    scores, labels = scores[good], labels[good]
    names = [graph.classes[label] for label in labels]
    detections = [
        dict(label=int(label), name=name, score=float(score), bbox=[float(x) for x in box])
        for label, name, score, box in zip(labels, names, scores, boxes)
    ]
    drawn = []
    if masks:
        drawn = list(lay_masks(masks[0][good], boxes, height, width, graph.meta, scale))
        for detection, mask in zip(detections, drawn):
            detection['mask'] = run_lengths(mask)
    return detections, drawn


def segment(graph: Graph, image: np.ndarray) -> tuple[Image.Image, dict, bytes]:
    """The picture, the record and the label map (a PNG) of an image (H, W, C) uint8."""
    labels = find_labels(graph, image)
    counts = np.bincount(labels.ravel(), minlength=len(graph.classes))
    order = [i for i in np.argsort(-counts, kind='stable') if counts[i]]
    shares = {graph.classes[i]: counts[i] / labels.size for i in order}
    png, buffer = Image.fromarray(labels), io.BytesIO()
    if graph.palette:
        png.putpalette(np.array(graph.palette, np.uint8).tobytes())
    png.save(buffer, 'PNG')
    record = dict(classes=graph.classes, shares=shares)
    return _draw_labels(graph, image, labels, order), record, buffer.getvalue()


def find_labels(graph: Graph, image: np.ndarray) -> np.ndarray:
    """The label map of a segmentor, (H, W) uint8, of an image (H, W, C) uint8."""
    height, width = image.shape[:2]
    (logits,) = graph(prepare(image, graph.steps)[0])
    return label_map(logits[0], height, width, graph.meta)


def _view(image: np.ndarray) -> tuple[np.ndarray, int]:
    """RGB (H, W, 3), small ones enlarged, and how many times."""
    height, width = image.shape[:2]
    factor = max(1, min(-(-LEGIBLE // min(height, width)), LONGEST // max(height, width)))
    rgb = np.broadcast_to(image[..., ::-1], (height, width, 3))
    size = (width * factor, height * factor)
    return np.array(Image.fromarray(np.ascontiguousarray(rgb)).resize(size)), factor


def _colour(graph: Graph, label: int) -> tuple[int, ...]:
    if len(graph.palette) > label:
        return tuple(graph.palette[label])
    turn = np.array([0, 1, 2]) / 3 + label * 0.618
    return tuple(int(x) for x in 127.5 + 127.5 * np.cos(2 * np.pi * turn))


def _draw_boxes(
    graph: Graph, image: np.ndarray, detections: list[dict], masks: list[np.ndarray]
) -> Image.Image:
    picture, factor = _view(image)
    for detection, mask in zip(detections, masks):
        large = mask.repeat(factor, 0).repeat(factor, 1)
        colour = np.array(_colour(graph, detection['label']))
        picture[large] = (1 - OPACITY) * picture[large] + OPACITY * colour
    drawn = Image.fromarray(picture)
    pen = ImageDraw.Draw(drawn)
    font = ImageFont.load_default(max(10, min(drawn.size) // 40))
    for detection in detections:
        x1, y1, x2, y2 = (factor * side for side in detection['bbox'])
        if x2 <= x1 or y2 <= y1:
            continue
        colour = _colour(graph, detection['label'])
        pen.rectangle((x1, y1, x2, y2), outline=colour, width=max(1, min(drawn.size) // 300))
        text = _latin(f'{detection["name"]}: {100 * detection["score"]:.1f}')
        pen.rectangle(pen.textbbox((x1, y1), text, font), fill=(0, 0, 0))
        pen.text((x1, y1), text, 'white', font)
    return drawn


def _draw_labels(
    graph: Graph, image: np.ndarray, labels: np.ndarray, order: Sequence[int]
) -> Image.Image:
    """The overlay beside a legend of the classes found, with their shares."""
    picture, factor = _view(image)
    colours = np.array([_colour(graph, i) for i in range(len(graph.classes))])
    large = labels.repeat(factor, 0).repeat(factor, 1)
    overlay = ((1 - OPACITY) * picture + OPACITY * colours[large]).astype(np.uint8)
    height, width = overlay.shape[:2]
    line = min(height / 12, (height - 8) / max(len(order), 1))
    font = ImageFont.load_default(max(6, 0.6 * line))
    shares = {i: (labels == i).mean() for i in order}
    texts = {i: _latin(f'{graph.classes[i]} {shares[i]:.1%}') for i in order}
    legend = int(2 * line + max(map(font.getlength, texts.values()), default=0))
    whole = Image.new('RGB', (width + legend, height), 'white')
    whole.paste(Image.fromarray(overlay))
    pen = ImageDraw.Draw(whole)
    for place, (i, text) in enumerate(texts.items()):
        left, top = width + 0.3 * line, 4 + place * line
        pen.rectangle((left, top, left + 0.7 * line, top + 0.7 * line), fill=_colour(graph, i))
        pen.text((left + line, top), text, 'black', font)
    return whole


def _latin(text: str) -> str:
    """Pillow's own font has no other letters; the records hold the names as they are."""
    return text.encode('latin-1', 'replace').decode('latin-1')


def find_images(inputs: Iterable[str | Path], out: Path) -> list[tuple[Path, Path]]:
    """The images of files and folders (searched recursively), each with its name in ``out``.

    Raises:
        GraphError: an input does not exist, or a folder holds no image.
    """
    found = []
    outputs = [(out / name).absolute() for name in ('pictures', 'labels')]
    for entry in map(Path, inputs):
        if entry.is_dir():
            left_out = [o for o in outputs if not entry.absolute().is_relative_to(o)]
            images = sorted(
                path
                for path in entry.rglob('*')
                if path.suffix.lower() in SUFFIXES
                and not path.name.startswith('._')
                and not path.is_dir()
                and not any(path.absolute().is_relative_to(folder) for folder in left_out)
            )
            if not images:
                raise GraphError(f'{entry} holds no image; looked for {", ".join(SUFFIXES)}')
            found += [(path, path.relative_to(entry)) for path in images]
        elif entry.exists():
            found.append((entry, Path(entry.name)))
        else:
            raise GraphError(f'no file or folder {entry}, seen from {os.getcwd()}')
    return found


def predict(
    path: str | Path,
    inputs: Iterable[str | Path],
    out: str | Path,
    score_thr: float = 0.3,
    force: bool = False,
) -> tuple[list[Path], dict[Path, str]]:
    """Predict on images and write ``out/pictures/NAME.jpg``, ``out/predictions/NAME.json``.

    For a segmentor also ``out/labels/NAME.png``, the label map with its palette.

    Args:
        path: the graph.
        inputs: images and folders.
        out: folder to write.
        score_thr: detections below this score are left out; nothing to a segmentor.
        force: replace what was written earlier.

    Returns:
        The images that were predicted, and the files that could not be, each with the reason.

    Raises:
        GraphError: the graph or an input is missing or unfit, or a file to be written exists.
    """
    graph, out = Graph(path), Path(out)
    segments = graph.task == 'segmentation'
    images = find_images(inputs, out)
    targets = [_targets(out, name, segments) for _, name in images]
    if len(set(targets)) < len(targets):
        raise GraphError('two inputs would both be written to one file; give their folder')
    existing = [file for files in targets for file in files if os.path.lexists(file)]
    if existing and not force:
        raise GraphError(
            f'{existing[0]} exists ({len(existing)} such files); name another --out, or replace '
            'them with --force'
        )
    written, failed = [], {}
    for (file, _), names in zip(images, targets):
        try:
            if not file.is_file():
                raise ValueError('a folder, pipe or device, not a file')
            image = read_image(file, graph.meta['colors'])
            picture, record, *labels = (
                segment(graph, image) if segments else detect(graph, image, score_thr)
            )
            height, width = image.shape[:2]
            record = dict(image=str(file), width=width, height=height, **record)
            buffer = io.BytesIO()
            picture.save(buffer, 'JPEG', quality=95)
            contents = [buffer.getvalue(), json.dumps(record, indent=1).encode(), *labels]
            for name, content in zip(names, contents):
                _write(name, content)
        except GraphError:
            raise
        except Exception as error:  # broken files make Pillow's readers raise almost anything
            failed[file] = (str(error).strip() or type(error).__name__).splitlines()[0]
            continue
        written.append(file)
    return written, failed


def _targets(out: Path, name: Path, segments: bool) -> tuple[Path, ...]:
    paths = (out / 'pictures' / f'{name}.jpg', out / 'predictions' / f'{name}.json')
    return (*paths, out / 'labels' / f'{name}.png') if segments else paths


def _write(path: Path, content: bytes) -> None:
    """A file, with the folders it needs, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f'.{path.name}.partial')
    partial.unlink(missing_ok=True)  # what lay there may have been a link
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None, page: Any = None) -> Any:
    """The command; what it returns is for sys.exit.

    Args:
        arguments: of the command; its own if not given.
        page: mmivit.utils.report_page where that is at hand, to write ``report.html``.
    """
    parser = argparse.ArgumentParser(description='Predict on images and folders from a graph.')
    parser.add_argument('path', metavar='graph', help='.onnx of tools/export.py, .xml')
    parser.add_argument('inputs', nargs='+', help='images and folders')
    parser.add_argument('--out', default='predictions', help='folder to write')
    parser.add_argument('--score-thr', type=float, default=0.3, help='least score shown')
    parser.add_argument('--force', action='store_true', help='replace what was written earlier')
    args = parser.parse_args(arguments)
    try:
        if page:
            page.check_replaceable(args.out)
        written, failed = predict(**vars(args))
        report = page.write_report(args.out, failed=failed) if page else None
    except (GraphError, OSError) as error:
        return f'predict: {error}'
    print(f'{len(written)} images: {args.out}/pictures, {args.out}/predictions')
    if report:
        print(f'all to look through: {report}')
    files = (file for entry in args.inputs for file in Path(entry).rglob('*'))
    others = sorted(file for file in files if file.suffix.lower() in OTHER_SUFFIXES)
    if others:
        print(f'{len(others)} files of formats that are not predicted, such as {others[0]}')
    if failed:
        lines = [f'  {path}: {reason}' for path, reason in failed.items()]
        return '\n'.join([f'{len(failed)} could not be predicted:', *lines])
    return 0


if __name__ == '__main__':
    sys.exit(main())
