"""Models as ONNX graphs, checked against torch: images go in as they were read.

What can be exported is a :class:`Target`; a further family of models is one more of them, in
:data:`TARGETS`.
"""

from __future__ import annotations

import importlib
import json
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.utils import digit_version
from torch import Tensor, nn
from torch.nn.modules.utils import _pair
from torch.overrides import TorchFunctionMode

from mmivit.apis.config import check_channels, read_config, tested_dataset
from mmivit.apis.models import load_model
from mmivit.datasets.loaders import decodes_as_stock, find_loaders, loading
from mmivit.errors import ExportError
from mmivit.export.parity import SIZES, Parity, check_parity
from mmivit.models.attention import average_blocks
from mmivit.utils.files import check_absent, whole
from mmivit.version import __version__

EXPORTED_SIZE = (2, 224, 288)  # what the exporter is shown: none of those a graph is checked with
OPSET = 18
MAPS = 'float32, batch x channels x height x width each, finest first'
PACKAGES = ('onnx', 'onnxscript', 'onnxruntime')


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


class _BlockAverages(TorchFunctionMode):
    """Adaptive pooling by averaging matrices: the exporter fixes it to the sizes it was shown."""

    def __torch_function__(
        self,
        function: Callable,
        types: Sequence[type],
        args: tuple = (),
        kwargs: dict | None = None,
    ) -> Any:
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


class Target(ABC):
    """Something to export: its graph, what that takes and gives, and torch's own answer to it.

    Attributes:
        what: is exported, a phrase.
        graph: takes images (B, channels, H, W), gives a tensor or a tuple of them.
        channels: of the image.
        outputs: names of what the graph gives.
        takes: the image: type, layout, content.
        gives: the outputs: type, layout.
    """

    what: str
    graph: nn.Module
    channels: int
    outputs: list[str]
    takes: str
    gives: str

    @abstractmethod
    def reference(self, images: Tensor) -> Sequence[Tensor]:
        """What the graph should give, as the model's own package computes it."""

    @property
    def description(self) -> dict[str, str]:
        """What the graph takes and gives, by name."""
        return {'image': self.takes, ', '.join(self.outputs): self.gives}

    def write(self, path: Path, classes: Sequence[str] = ()) -> None:
        """Write the graph with its description.

        Args:
            path: where to.
            classes: names of what the model tells apart.

        Raises:
            ExportError: torch cannot export it.
        """
        metadata = {**self.description, 'exported': self.what, 'classes': json.dumps(classes)}
        write_onnx(self.graph, path, self.outputs, self.channels, metadata)


class BackboneTarget(Target):
    """A backbone by itself, whose input is normalised.

    Args:
        backbone: an IViT.
        channels: of its input.
    """

    def __init__(self, backbone: nn.Module, channels: int = 3) -> None:
        self.what = type(backbone).__name__
        self.graph, self.channels = backbone, channels
        self.outputs = _map_names(len(backbone.out_channels))
        self.takes = f'float32, batch x {channels} x height x width, normalised'
        self.gives = MAPS

    def reference(self, images: Tensor) -> Sequence[Tensor]:
        return self.graph(images)


class ModelTarget(Target):
    """What the models of mmdet and mmseg have in common: a data preprocessor, in the graph too.

    Args:
        model: built from the config.
        cfg: its config.
    """

    def __init__(self, model: nn.Module, cfg: Config) -> None:
        self.model = model
        self.options = cfg.model.get('data_preprocessor') or {}
        self.channels = cfg.model.backbone.get('in_channels', 3)
        self.takes = (
            f'float32, batch x {self.channels} x height x width, {_content(cfg)}; '
            'normalised and padded inside'
        )

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        """Whether a model is of this kind."""
        return hasattr(model, 'extract_feat') and hasattr(model, 'backbone')


class SegmentorTarget(ModelTarget):
    """A segmentor of mmseg, whole."""

    def __init__(self, model: nn.Module, cfg: Config) -> None:
        super().__init__(model, cfg)
        test_cfg = self.options.get('test_cfg') or {}
        if set(test_cfg) - {'size_divisor'}:
            raise ExportError(
                f'data_preprocessor.test_cfg is {dict(test_cfg)}: only size_divisor can be '
                'exported, other padding is of one size'
            )
        divisor = test_cfg.get('size_divisor') or 1
        self.graph = SegmentorGraph(model, self.options, self.channels, divisor)
        self.outputs = ['logits']
        self.what = f'{type(model).__name__}, whole, at the size of the image (no sliding windows)'
        self.gives = 'float32, batch x classes x height x width, before softmax'

    @classmethod
    def fits(cls, model: nn.Module) -> bool:
        return super().fits(model) and hasattr(model, 'encode_decode')

    def reference(self, images: Tensor) -> Sequence[Tensor]:
        from mmseg.structures import SegDataSample

        height, width = images.shape[2:]
        samples = [SegDataSample(metainfo=dict(img_shape=(height, width))) for _ in images]
        data = dict(inputs=list(images), data_samples=samples)
        data = self.model.data_preprocessor(data, False)
        metas = [sample.metainfo for sample in data['data_samples']]
        return [self.model.encode_decode(data['inputs'], metas)[..., :height, :width]]


class DetectorTarget(ModelTarget):
    """Backbone and neck of a detector of mmdet."""

    def __init__(self, model: nn.Module, cfg: Config) -> None:
        super().__init__(model, cfg)
        divisor = self.options.get('pad_size_divisor', 1)
        self.graph = FeatureGraph(model, self.options, self.channels, divisor)
        with torch.no_grad():
            maps = self.graph(torch.zeros(1, self.channels, 64, 64))
        self.outputs = _map_names(len(maps))
        parts = 'backbone and neck' if model.with_neck else 'backbone'
        self.what = (
            f'{parts} of {type(model).__name__}; its heads select boxes by score and overlap, '
            'which is left to mmdet'
        )
        self.gives = MAPS

    def reference(self, images: Tensor) -> Sequence[Tensor]:
        inputs = self.model.data_preprocessor(dict(inputs=list(images)), False)['inputs']
        return self.model.extract_feat(inputs)


def _content(cfg: Config) -> str:
    """What images hold, as the loader of the config's test pipeline makes them."""
    pipeline = tested_dataset(cfg).get('pipeline') or []
    loader = find_loaders(pipeline, cfg.get('default_scope')).image
    content = ''
    if decodes_as_stock(loader):
        kind = loader.color_type.partition('_')[0]  # some end in _ignore_orientation
        content = dict(color='BGR, 0 to 255, ', grayscale='grey, 0 to 255, ').get(kind, '')
    return f'{content}as loaded by {loading(loader)}'


# The first that fits is taken: one for fewer models stands before one for more.
TARGETS: tuple[type[ModelTarget], ...] = (SegmentorTarget, DetectorTarget)


def _map_names(count: int) -> list[str]:
    return [f'map{i}' for i in range(count)]


def find_target(model: nn.Module, cfg: Config) -> ModelTarget:
    """What can be exported of a config's model.

    Raises:
        ExportError: nothing can.
    """
    for target in TARGETS:
        if target.fits(model):
            return target(model, cfg)
    raise ExportError(f'{type(model).__name__} has no backbone of its own to be exported')


class Export(NamedTuple):
    """What was exported: a phrase, what the graph takes and gives, and how it was checked."""

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
    graph is compared with torch at :data:`mmivit.export.parity.SIZES` before it gets its name.

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
        FileExistsError: the file exists and ``force`` is off.
    """
    check_packages()
    out = Path(out)
    if out.suffix != '.onnx':
        raise ExportError(f'{out}: the graph is written to a file that ends in .onnx')
    check_absent(out, force)
    cfg = read_config(config, cfg_options=cfg_options)
    check_channels(cfg)
    model, meta = load_model(cfg, checkpoint)
    target = find_target(model, cfg)
    print_log('torch makes the graph, a minute or more', logger='current')
    with whole(out) as partial_out:
        target.write(partial_out, list(meta.get('classes') or ()))
        parities = check_parity(partial_out, target.reference, target.channels, SIZES)
    return Export(target.what, target.description, parities)


def check_packages() -> None:
    """Raise ExportError if a package that exporting needs is missing or too old."""
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
