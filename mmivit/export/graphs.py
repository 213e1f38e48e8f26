"""Models as ONNX graphs, checked against torch: images go in as they were read."""

from __future__ import annotations

import copy
import importlib
import json
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.model import revert_sync_batchnorm
from mmengine.registry import MODELS, DefaultScope
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode
from tqdm import tqdm

from mmivit.analysis.benchmark import compare
from mmivit.apis.launch import check_channels, read_config
from mmivit.errors import ExportError
from mmivit.models.attention import average_blocks
from mmivit.models.ivit import ARCHITECTURES, IViT
from mmivit.models.loading import check_fits
from mmivit.utils.files import check_absent, whole
from mmivit.version import __version__
from mmivit.weights.checkpoint import dataset_meta, find_state_dict, naming, read_checkpoint

# Batch, height, width of the images a graph is checked with: the smallest, odd sides, a landmark
# grid that is clamped on one side alone, a batch, and a large one.
SIZES = ((1, 31, 31), (2, 112, 137), (1, 64, 400), (4, 224, 224), (1, 800, 1333))
EXPORTED_SIZE = (2, 224, 288)  # what the exporter is shown, none of them
TOLERANCE = 1e-4
OPSET = 18
SECONDS = 2.0  # spent on timing each size, about
PARITY_HEADER = (
    '| model | batch x height x width | largest difference | torch, ms | onnxruntime, ms |\n'
    '|---|---|---:|---:|---:|'
)
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


class Parity(NamedTuple):
    """How a graph compares with torch at one size."""

    batch: int
    height: int  # pixels
    width: int
    difference: float  # the largest absolute one, in units of the largest value
    torch_seconds: float  # medians of a batch
    onnx_seconds: float


class Export(NamedTuple):
    """What was exported: a sentence, what the graph takes and gives, and how it was checked."""

    what: str
    description: dict[str, str]
    parities: list[Parity]


def export(
    config: str,
    checkpoint: str,
    out: str | Path,
    force: bool = False,
    cfg_options: dict | None = None,
) -> Export:
    """Write a segmentor, or a detector's backbone and neck, as an ONNX graph.

    Batch, height and width are dynamic. Normalisation and padding are part of the graph. The
    graph is compared with torch at :data:`SIZES` before it gets its name.

    Args:
        config: path of an mmdet or mmseg config.
        checkpoint: path of the weights.
        out: the ``.onnx`` file to write.
        force: replace an existing file.
        cfg_options: what to override in the config, by dotted key.

    Raises:
        ExportError: a package is missing, the model is none that can be exported, or the graph
            differs from torch; nothing is written then.
        LaunchError, CheckpointError: the config or the checkpoint is missing or does not fit.
        OSError: the checkpoint is missing, or the file exists and ``force`` is off.
    """
    _check_packages()
    out = Path(out)
    if out.suffix != '.onnx':
        raise ExportError(f'{out}: the graph is written to a file that ends in .onnx')
    check_absent(out, force)
    cfg = read_config(config, cfg_options=cfg_options)
    check_channels(cfg)
    model, classes = _load(cfg, checkpoint)
    print_log('torch makes the graph, a minute or more', logger='current')
    with whole(out) as partial_out:
        return _export_model(model, cfg, partial_out, classes, SECONDS)


def _check_packages() -> None:
    missing = []
    for name in PACKAGES:
        try:
            importlib.import_module(name)
        except ImportError:
            missing.append(name)
    if missing:
        raise ExportError(
            f'{", ".join(missing)} cannot be imported: python -m pip install {" ".join(PACKAGES)}'
        )
    if digit_version(torch.__version__) < digit_version('2.5.0'):
        raise ExportError(
            f'torch {torch.__version__} has no exporter for dynamic sizes; 2.5 or newer has'
        )


def _load(cfg: Config, checkpoint: str) -> tuple[nn.Module, list[str]]:
    """A config's model with a checkpoint's weights, all of them, and the classes' names."""
    loaded = read_checkpoint(checkpoint)
    with naming(checkpoint):
        weights = find_state_dict(loaded)
        classes = dataset_meta(loaded).get('classes') or ()
        model = build(cfg)
        check_fits(model, weights)
    model.load_state_dict(weights, strict=False)
    return model, list(classes)


def build(cfg: Config) -> nn.Module:
    """A config's model for inference, its weights as they are initialised."""
    scope = cfg.get('default_scope')
    if scope not in ('mmdet', 'mmseg'):
        raise ExportError(f'default_scope is {scope!r}; it must be mmdet or mmseg')
    with DefaultScope.overwrite_default_scope(scope):
        model = revert_sync_batchnorm(MODELS.build(copy.deepcopy(cfg.model)))
    if not hasattr(model, 'extract_feat') or not hasattr(model, 'backbone'):
        raise ExportError(f'{type(model).__name__} has no backbone of its own to be exported')
    return model.eval()


def _export_model(
    model: nn.Module, cfg: Config, path: Path, classes: list[str], seconds: float
) -> Export:
    """Write the graph of a built model to ``path`` and check it."""
    options = cfg.model.get('data_preprocessor') or {}
    channels = cfg.model.backbone.get('in_channels', 3)
    if cfg.default_scope == 'mmseg':
        test_cfg = options.get('test_cfg') or {}
        if set(test_cfg) - {'size_divisor'}:
            raise ExportError(
                f'data_preprocessor.test_cfg is {dict(test_cfg)}: only size_divisor can be '
                'exported, other padding is of one size'
            )
        graph = SegmentorGraph(model, options, channels, test_cfg.get('size_divisor') or 1)
        reference = partial(_segmentor_reference, model)
        outputs = ['logits']
        what = f'{type(model).__name__}, whole, at the size of the image (no sliding windows)'
        given = 'float32, batch x classes x height x width, before softmax'
    else:
        graph = FeatureGraph(model, options, channels, options.get('pad_size_divisor', 1))
        reference = partial(_detector_reference, model)
        with torch.no_grad():
            maps = len(graph(torch.zeros(1, channels, 64, 64)))
        outputs = [f'map{i}' for i in range(maps)]
        parts = 'backbone and neck' if model.with_neck else 'backbone'
        what = (
            f'{parts} of {type(model).__name__}; its heads select boxes by score and overlap, '
            'which is left to mmdet'
        )
        given = 'float32, batch x channels x height x width each, finest first'
    order = 'BGR' if options.get('bgr_to_rgb') else 'RGB' if options.get('rgb_to_bgr') else ''
    description = {
        'image': f'float32, batch x {channels} x height x width, '
        + (f'{order}, 0 to 255' if order and options.get('mean') else 'as the pipeline packs it')
        + '; normalised and padded inside',
        ', '.join(outputs): given,
    }
    metadata = {**description, 'exported': what, 'classes': json.dumps(classes)}
    write_onnx(graph, path, outputs, channels, metadata)
    return Export(what, description, check_parity(path, reference, channels, SIZES, seconds))


class FeatureGraph(nn.Module):
    """What a data preprocessor does to images, then a backbone and its neck.

    Args:
        model: a detector or segmentor of OpenMMLab.
        options: the config of its data preprocessor.
        channels: of the image.
        divisor: the normalised image is padded with zeros to multiples of this, right and below.
    """

    def __init__(self, model: nn.Module, options: dict, channels: int, divisor: int) -> None:
        super().__init__()
        self.model = model
        self.swaps = bool(options.get('bgr_to_rgb') or options.get('rgb_to_bgr')) and channels == 3
        self.divisor = divisor
        self.pad_value = options.get('pad_value', options.get('pad_val', 0))
        mean, std = options.get('mean') or [0.0], options.get('std') or [1.0]
        self.register_buffer('mean', torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer('std', torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> maps (B, C_i, H_i, W_i)."""
        return tuple(self.model.extract_feat(self.preprocess(image)))

    def preprocess(self, image: Tensor) -> Tensor:
        """(B, C, H, W), 0 to 255 -> normalised and padded."""
        if self.swaps:
            image = image.flip(1)
        x = (image - self.mean) / self.std
        height, width = x.shape[2:]
        padding = (0, -width % self.divisor, 0, -height % self.divisor)
        return F.pad(x, padding, value=self.pad_value) if self.divisor > 1 else x


class SegmentorGraph(FeatureGraph):
    """The same with the heads of a segmentor behind it."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes, H, W)."""
        x = self.preprocess(image)
        logits = self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
        return logits[..., : image.shape[2], : image.shape[3]]


def _detector_reference(model: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """What mmdet itself computes."""
    inputs = model.data_preprocessor(dict(inputs=list(images)), False)['inputs']
    return model.extract_feat(inputs)


def _segmentor_reference(model: nn.Module, images: Tensor) -> Sequence[Tensor]:
    """What mmseg itself computes."""
    from mmseg.structures import SegDataSample

    height, width = images.shape[2:]
    samples = [SegDataSample(metainfo=dict(img_shape=(height, width))) for _ in images]
    data = model.data_preprocessor(dict(inputs=list(images), data_samples=samples), False)
    metas = [sample.metainfo for sample in data['data_samples']]
    return [model.encode_decode(data['inputs'], metas)[..., :height, :width]]


class _BlockAverages(TorchFunctionMode):
    """Adaptive pooling by averaging matrices: the exporter fixes it to the sizes it was shown."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is F.adaptive_avg_pool2d:
            function = _adaptive_avg_pool2d
        return function(*args, **(kwargs or {}))


def _adaptive_avg_pool2d(input: Tensor, output_size: int | Sequence[int | None]) -> Tensor:
    # None keeps a side.
    height, width = (bins or side for bins, side in zip(_pair(output_size), input.shape[2:]))
    return average_blocks(input.permute(0, 2, 3, 1), (height, width)).permute(0, 3, 1, 2)


def write_onnx(
    graph: nn.Module,
    path: Path,
    outputs: Sequence[str],
    channels: int = 3,
    metadata: dict[str, str] | None = None,
) -> None:
    """Write a module as an ONNX graph with dynamic batch, height and width.

    Args:
        graph: takes images (B, channels, H, W), gives a tensor or a tuple of them.
        path: where to, one file.
        outputs: names of what it gives; what it takes is named ``image``.
        channels: of the image.
        metadata: kept in the file's ``metadata_props``.

    Raises:
        ExportError: torch cannot export it.
    """
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    image = torch.rand(EXPORTED_SIZE[0], channels, *EXPORTED_SIZE[1:])
    with warnings.catch_warnings(), torch.no_grad(), _BlockAverages():
        warnings.simplefilter('ignore')  # of the exporter's own making
        try:
            program = torch.onnx.export(
                graph,
                (image,),
                input_names=['image'],
                output_names=outputs,
                dynamic_shapes=({0: 'batch', 2: 'height', 3: 'width'},),
                opset_version=OPSET,
                dynamo=True,
                verbose=False,
            )
        except torch.onnx.errors.OnnxExporterError as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise ExportError(f'torch cannot export {type(graph).__name__}: {reason}') from error
    ClearMetadataAndDocStringPass()(program.model)  # stack traces with paths of this machine
    program.model.producer_name, program.model.producer_version = 'mmivit', __version__
    program.model.metadata_props.update(metadata or {})
    program.save(path, external_data=False)


def check_parity(
    path: Path,
    reference: Callable[[Tensor], Sequence[Tensor]],
    channels: int,
    sizes: Sequence[tuple[int, int, int]],
    seconds: float,
) -> list[Parity]:
    """Compare a graph in onnxruntime with torch on noise, and time both in turn.

    Args:
        path: the graph.
        reference: what the graph should compute: images (B, channels, H, W), whole numbers 0 to
            255, to what it gives.
        channels: of the image.
        sizes: batch, height, width.
        seconds: spent on timing each size, about.

    Raises:
        ExportError: they differ by more than :data:`TOLERANCE`, or onnxruntime fails.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=['CPUExecutionProvider'])
    generator = torch.Generator().manual_seed(0)
    parities = []
    for batch, height, width in tqdm(sizes, desc='checking in onnxruntime', unit='size'):
        shape = (batch, channels, height, width)
        images = torch.randint(256, shape, generator=generator).float()
        functions = dict(
            torch=torch.no_grad()(partial(reference, images)),
            onnx=partial(session.run, None, dict(image=images.numpy())),
        )
        expected = functions['torch']()
        try:
            difference = _difference(expected, functions['onnx']())
        except Exception as error:  # onnxruntime's have no base class of their own
            raise ExportError(
                f'onnxruntime cannot run the graph at {batch} x {channels} x {height} x {width}: '
                f'{error}'
            ) from error
        if not difference <= TOLERANCE:  # neither is NaN
            raise ExportError(
                f'the graph differs from torch by {difference:.1e} at {batch} x {channels} x '
                f'{height} x {width}, more than {TOLERANCE:.0e}; nothing was written'
            )
        times = compare(functions, 'cpu', seconds)
        medians = (times[name]['seconds'] for name in ('torch', 'onnx'))
        parities.append(Parity(batch, height, width, difference, *medians))
    return parities


def _difference(expected: Sequence[Tensor], found: Sequence[np.ndarray]) -> float:
    """The largest over the outputs, each in units of its largest value."""
    if [tuple(y.shape) for y in expected] != [y.shape for y in found]:
        return float('inf')
    return max(
        float(np.abs(y.numpy() - z).max() / np.abs(y.numpy()).max())
        for y, z in zip(expected, found)
    )


def benchmark_export(
    models: Sequence[str], seconds: float, folder: Path
) -> Iterator[tuple[str, list[Parity]]]:
    """Compare and time the graphs of backbones and of whole segmentors.

    Weights are random: nothing is read.

    Args:
        models: names of architectures, for the backbone alone, or paths of segmentors' configs.
        seconds: spent on timing each size, about.
        folder: where the graphs lie meanwhile.

    Yields:
        The model's name, and what was compared at each of :data:`SIZES`.

    Raises:
        ExportError: a package is missing, or a graph differs from torch.
        LaunchError: there is no such config.
    """
    _check_packages()
    for model in models:
        path = folder / 'graph.onnx'
        if model in ARCHITECTURES:
            backbone = scatter(IViT(model)).eval()
            write_onnx(backbone, path, [f'map{i}' for i in range(len(backbone.out_channels))])
            yield f'backbone {model}', check_parity(path, backbone, 3, SIZES, seconds)
        else:
            cfg = read_config(model)
            exported = _export_model(scatter(build(cfg)), cfg, path, [], seconds)
            yield Path(model).stem, exported.parities


def scatter(model: nn.Module) -> nn.Module:
    """Move every parameter from its initial value, as training does, and give the model back.

    At the start interactions are the identity, scales one and biases zero, and whatever a graph
    did with them would look right.
    """
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    return model


def parity_rows(model: str, parities: Sequence[Parity]) -> str:
    """Rows of Markdown, one for each size, to stand under :data:`PARITY_HEADER`."""
    return '\n'.join(
        f'| {model} | {p.batch} x {p.height} x {p.width} | {p.difference:.1e} '
        f'| {1e3 * p.torch_seconds:.1f} | {1e3 * p.onnx_seconds:.1f} |'
        for p in parities
    )
