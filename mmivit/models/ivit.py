"""iViT: a hierarchical vision transformer whose deeper stages use iMHSA.

The attention is the paper's (arXiv 2402.17507). Its macro-architecture is not published; here it
is CAFormer's (MetaFormer Baselines, arXiv 2210.13452): a 7x7 stride-4 stem, separable
convolutions as token mixer in stages 1-2, attention in stages 3-4, StarReLU MLPs, bias-free norms
and linear layers, a learned scale on the residual in stages 3-4. Sub-modules carry the names timm
gives CAFormer's, so that its public ImageNet weights map onto them.

This file: the table of architectures, the trunk that backbone and classifier share, the backbone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn

from mmivit.models.attention import DecomposedMHSA, build_attention
from mmivit.models.layers import Block, Downsampling, SepConv, Stage, Stem, layer_norm
from mmivit.models.loading import report_loading
from mmivit.models.optimisers import watch_optimiser
from mmivit.registry import MODELS

ARCHITECTURES = {
    'nano': dict(depths=(2, 2, 4, 2), widths=(32, 64, 128, 256)),
    'tiny': dict(depths=(3, 3, 9, 3), widths=(64, 128, 320, 512)),
    'small': dict(depths=(3, 12, 18, 3), widths=(64, 128, 320, 512)),
    'medium': dict(depths=(3, 12, 18, 3), widths=(96, 192, 384, 576)),
    'base': dict(depths=(3, 12, 18, 3), widths=(128, 256, 512, 768)),
}
NUM_STAGES = 4
OUTPUT_STRIDES = (8, 16, 32)
ATTENTION_STAGES = (2, 3)  # the deeper half, counted from 0
MIN_INPUT = 31  # pixels; the stem then leaves 8 x 8 tokens and stage 4 one


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy`` that makes every block a unit (docs/scaling.md)."""
    return recurse or isinstance(module, Block)


def build_trunk(
    *,
    arch: str | dict,
    in_channels: int,
    attention: str,
    landmarks: int,
    interaction: str,
    head_dim: int,
    drop_path_rate: float,
    output_stride: int,
    num_stages: int = NUM_STAGES,
) -> tuple[Stem, nn.Sequential]:
    """Stem and stages, initialised: what the backbone and the classifier have in common.

    Args:
        num_stages: how many of the stages are built, from the first. Other arguments as in
            :class:`IViT`.

    Raises:
        ValueError: an argument has a value that is not allowed; the message names those that are.
    """
    depths, widths = read_arch(arch)
    _check_widths(widths, head_dim)
    if in_channels < 1:
        raise ValueError(f'in_channels={in_channels}: expected at least 1')
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f'drop_path_rate={drop_path_rate}: expected 0 <= rate < 1')

    def token_mixer(stage: int) -> nn.Module:
        dim = widths[stage]
        if stage not in ATTENTION_STAGES:
            return SepConv(dim)
        return build_attention(attention, dim, dim // head_dim, landmarks, interaction)

    last = max(sum(depths) - 1, 1)
    drop_path = (drop_path_rate * i / last for i in range(sum(depths)))
    strides = stage_strides(output_stride)
    stem, stages = Stem(in_channels, widths[0]), nn.Sequential()
    for i, (depth, dim) in enumerate(zip(depths[:num_stages], widths)):
        stride = strides[i] // strides[i - 1]
        downsample = Downsampling(widths[i - 1], dim, stride) if i else nn.Identity()
        blocks = [
            Block(dim, token_mixer(i), next(drop_path), res_scale=i in ATTENTION_STAGES)
            for _ in range(depth)
        ]
        stages.append(Stage(downsample, blocks))
    stem.apply(_init_weights)
    stages.apply(_init_weights)
    return stem, stages


@MODELS.register_module()
class IViT(BaseModule):
    """The iViT backbone.

    Args:
        arch: 'nano', 'tiny', 'small', 'medium', 'base', or a dict with ``depths`` and ``widths``,
            four integers each.
        in_channels: channels of the input image.
        out_indices: stages whose maps are returned, 0 to 3, ascending. Later stages are not built.
        attention: token mixer of stages 3 and 4: 'imhsa', or for comparison 'mhsa',
            'decomposed', 'interactive' (the paper's Fig. 2).
        landmarks: side of the landmark grid, L = landmarks^2. No parameter depends on it, and it
            may be set on a built model: ``model.landmarks = 14``.
        interaction: where heads are mixed: 'post' (after the softmax), 'pre' or 'both'.
        head_dim: width of a head; the widths of stages 3 and 4 are multiples of it.
        drop_path_rate: stochastic depth of the last block, growing linearly from 0.
        frozen_stages: -1 freezes nothing, 0 the stem, i the stem and the first i stages. Output
            norms stay trainable: they belong to the downstream task. Applied at construction, so
            DDP never sees the frozen parameters, and again by :meth:`train`.
        with_cp: recompute blocks in the backward pass to save memory.
        output_stride: 32, or 16 or 8 to keep the last or the last two stages from downsampling,
            as segmentation heads such as PSPNet's and OCRNet's expect.
        init_cfg: mmengine's initialisation config.

    Attributes:
        out_channels: channels of the returned maps, what a neck takes as ``in_channels``.
        out_strides: their strides in pixels.

    Raises:
        ValueError: an argument has a value that is not allowed; the message names those that are.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_channels: int = 3,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        attention: str = 'imhsa',
        landmarks: int = 7,
        interaction: str = 'post',
        head_dim: int = 32,
        drop_path_rate: float = 0.0,
        frozen_stages: int = -1,
        with_cp: bool = False,
        output_stride: int = 32,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = _check_out_indices(out_indices)
        if frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ValueError(f'frozen_stages={frozen_stages}: expected -1 to {NUM_STAGES}')
        self.frozen_stages = frozen_stages
        _, widths = read_arch(arch)
        self.out_channels = [widths[i] for i in self.out_indices]
        self.out_strides = [stage_strides(output_stride)[i] for i in self.out_indices]
        self.stem, self.stages = build_trunk(
            arch=arch,
            in_channels=in_channels,
            attention=attention,
            landmarks=landmarks,
            interaction=interaction,
            head_dim=head_dim,
            drop_path_rate=drop_path_rate,
            output_stride=output_stride,
            # Stages that nobody sees cost time and leave DDP with parameters without gradient.
            num_stages=self.out_indices[-1] + 1,
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', layer_norm(widths[i]))

        self.with_cp = with_cp
        self._freeze()
        watch_optimiser(self)

    @property
    def landmarks(self) -> int | None:
        """Side of the landmark grid; None for an attention that has none."""
        return next((module.landmarks for module in self._landmark_modules()), None)

    @landmarks.setter
    def landmarks(self, value: int) -> None:
        modules = self._landmark_modules()
        if not modules:
            raise ValueError(
                "only attention='imhsa' and 'decomposed' have landmarks, in stages 3 and 4"
            )
        for module in modules:
            module.landmarks = value

    @property
    def with_cp(self) -> bool:
        """Whether blocks are recomputed in the backward pass."""
        return self.stages[0].with_cp

    @with_cp.setter
    def with_cp(self, value: bool) -> None:
        for stage in self.stages:
            stage.with_cp = value

    def get_layer_depth(self, param_name: str, prefix: str = '') -> tuple[int, int]:
        """Depth of a parameter, for layer-wise learning-rate decay, as mmpretrain's backbones say.

        Args:
            param_name: the parameter's name.
            prefix: what it begins with before the name within the backbone.

        Returns:
            The depth, and the number of depths there are: 0 for the stem, from 1 for the blocks (a
            downsampling counts with the block it feeds), the last one for the output norms, which
            belong to the downstream task like the head.
        """
        parts = param_name.removeprefix(prefix).split('.')
        depths = [len(stage.blocks) for stage in self.stages]
        count = sum(depths) + 2
        if parts[0] == 'stem':
            return 0, count
        if parts[0] != 'stages':
            return count - 1, count
        block = int(parts[3]) if parts[2] == 'blocks' else 0
        return 1 + sum(depths[: int(parts[1])]) + block, count

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of an image batch.

        Args:
            x: images, (B, in_channels, H, W), H and W at least 31 and of any parity.

        Returns:
            Maps (B, out_channels[i], ~H / out_strides[i], ~W / out_strides[i]), contiguous:
            mmcv's operators (RoIAlign among them) read memory as NCHW whatever the strides say.

        Raises:
            ValueError: the input is smaller than 31 pixels on a side.
        """
        if min(x.shape[-2:]) < MIN_INPUT:
            raise ValueError(
                f'input of {x.shape[-2]} x {x.shape[-1]} pixels: expected at least '
                f'{MIN_INPUT} x {MIN_INPUT}; resize or pad it'
            )
        x = self.stem(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if i in self.out_indices:
                y = getattr(self, f'norm{i}')(x.permute(0, 2, 3, 1))  # (B, H, W, C)
                outputs.append(y.permute(0, 3, 1, 2).contiguous())  # (B, C, H, W)
        return tuple(outputs)

    def train(self, mode: bool = True) -> IViT:
        """Set the mode as usual, with frozen stages kept in evaluation mode."""
        super().train(mode)
        self._freeze()
        return self

    def _freeze(self) -> None:
        if self.frozen_stages < 0:
            return
        for module in (self.stem, *self.stages[: self.frozen_stages]):
            module.eval()
            module.requires_grad_(False)

    def _landmark_modules(self) -> list[DecomposedMHSA]:
        return [module for module in self.modules() if isinstance(module, DecomposedMHSA)]

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # Called by torch's and mmengine's loaders alike, whoever's tool does the loading.
        report_loading(self, state_dict, prefix, lambda shapes: name_arch(read_sizes(shapes)))
        super()._load_from_state_dict(state_dict, prefix, *args)


def _init_weights(module: nn.Module) -> None:
    """Truncated normal that keeps variances (LeCun's, 1 / fan in), as docs/evidence.md tells.

    MetaFormer's 0.02 at any width leaves next to nothing of a branch's signal in narrow models: a
    depthwise 7x7 passes 0.14 of it, StarReLU squares what is left.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        std = module.weight[0].numel() ** -0.5  # (C', C / groups, k, k) or (C', C): fan in
        nn.init.trunc_normal_(module.weight, std=std, a=-2 * std, b=2 * std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


def stage_strides(output_stride: int) -> list[int]:
    """Strides of the four stages' maps in pixels, none above ``output_stride``."""
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f'output_stride={output_stride}: expected one of {OUTPUT_STRIDES}')
    return [min(4 * 2**i, output_stride) for i in range(NUM_STAGES)]


def read_arch(arch: str | dict) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Depths and widths of the four stages, of an architecture's name or its dict."""
    if isinstance(arch, str):
        if arch not in ARCHITECTURES:
            raise ValueError(
                f'arch={arch!r}: expected one of {tuple(ARCHITECTURES)}, '
                "or a dict with 'depths' and 'widths'"
            )
        arch = ARCHITECTURES[arch]
    if set(arch) != {'depths', 'widths'}:
        raise ValueError(f"arch has the keys {sorted(arch)}: expected 'depths' and 'widths'")
    for name, values in arch.items():
        if len(values) != NUM_STAGES or not all(isinstance(v, int) and v > 0 for v in values):
            raise ValueError(f'{name}={values}: expected {NUM_STAGES} positive integers')
    return tuple(arch['depths']), tuple(arch['widths'])


def read_sizes(shapes: Mapping[str, Sequence[int]]) -> dict[str, tuple[int, ...]]:
    """Depths and widths of an iViT's stages, as far as its tensors go, from the first.

    Args:
        shapes: of the tensors, by their names in the backbone.
    """
    depths, widths = [], []
    for i in range(NUM_STAGES):
        norm = shapes.get(f'stages.{i}.blocks.0.norm1.weight')
        if norm is None:
            break
        blocks = (re.match(rf'stages\.{i}\.blocks\.(\d+)\.', name) for name in shapes)
        depths.append(len({match[1] for match in blocks if match}))
        widths.append(math.prod(norm))
    return dict(depths=tuple(depths), widths=tuple(widths))


def name_arch(sizes: dict[str, tuple[int, ...]]) -> str:
    """The architecture's name, several if fewer than four stages leave it open, else the sizes.

    Without any stage it is ''.

    Args:
        sizes: as :func:`read_sizes` gives them.
    """
    depths, widths = sizes['depths'], sizes['widths']
    count = len(depths)
    if not count:
        return ''
    names = [
        name
        for name in ARCHITECTURES
        if tuple(part[:count] for part in read_arch(name)) == (depths, widths)
    ]
    return ' or '.join(names) if names else f'{depths}, {widths}'


def _check_widths(widths: Sequence[int], head_dim: int) -> None:
    for stage in ATTENTION_STAGES:
        if head_dim < 1 or widths[stage] % head_dim:
            divisors = [d for d in range(1, widths[stage] + 1) if widths[stage] % d == 0]
            raise ValueError(
                f'head_dim={head_dim}: the width {widths[stage]} of stage {stage + 1} needs one '
                f'of {divisors}'
            )


def _check_out_indices(out_indices: Sequence[int]) -> tuple[int, ...]:
    indices = (out_indices,) if isinstance(out_indices, int) else tuple(out_indices)
    if not indices or list(indices) != sorted(set(indices) & set(range(NUM_STAGES))):
        raise ValueError(
            f'out_indices={indices}: expected ascending stages out of {tuple(range(NUM_STAGES))}'
        )
    return indices
