"""iViT: a hierarchical vision transformer whose deeper stages use iMHSA.

The attention is the paper's (arXiv 2402.17507). Its macro-architecture is not published; here it
is CAFormer's (MetaFormer Baselines, arXiv 2210.13452): a 7x7 stride-4 stem, separable
convolutions as token mixer in stages 1-2, attention in stages 3-4, StarReLU MLPs, bias-free norms
and linear layers, a learned scale on the residual in stages 3-4. Sub-modules carry the names timm
gives CAFormer's, so that its public ImageNet weights map onto them.

Everything between the stem and the outputs is channels last, (B, H, W, C): linear layers and
norms need no permutes, and a permuted view is what convolutions call a channels-last tensor.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from mmivit.models.attention import DecomposedMHSA, build_attention
from mmivit.models.loading import report_loading
from mmivit.models.memory import in_pieces, is_eager, recompute
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


def squared_relu(x: Tensor) -> Tensor:
    """relu(x)^2."""
    if torch.jit.is_scripting() or not is_eager(x):
        return F.relu(x).square()
    return _SquaredReLU.apply(x)


class _SquaredReLU(torch.autograd.Function):
    """relu(x)^2 that keeps x alone, and passes over memory half as often as autograd's own."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        y = x.clamp_min(0)
        return y.mul_(y)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        y = x.clamp_min(0)
        return torch.addcmul(y.new_zeros(()), y, grad, value=2, out=y)


class StarReLU(nn.Module):
    """s * relu(x)^2 + b with learned scalars s and b, as in MetaFormer Baselines."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.addcmul(self.bias, self.scale, squared_relu(x))


class DropPath(nn.Module):
    """Stochastic depth: drops a residual branch per sample, with probability ``rate``."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        mask = x.new_empty([x.shape[0]] + [1] * (x.ndim - 1)).bernoulli_(keep)
        return x * (mask / keep)


class ChannelsLastConv2d(nn.Conv2d):
    """Convolution of (B, H, W, C), which is a channels-last NCHW view. -> (B, H', W', C')."""

    def forward(self, x: Tensor) -> Tensor:
        x = F.conv2d(
            x.permute(0, 3, 1, 2),
            self.weight,
            self.bias,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
        )
        return x.permute(0, 2, 3, 1)


class SepConv(nn.Module):
    """Inverted separable convolution, the token mixer of stages 1 and 2. (B, H, W, C) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.pwconv1 = nn.Linear(dim, 2 * dim, bias=False)
        self.act1 = StarReLU()
        self.dwconv = ChannelsLastConv2d(2 * dim, 2 * dim, 7, padding=3, groups=2 * dim, bias=False)
        self.pwconv2 = nn.Linear(2 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if self.training and not torch.jit.is_scripting():
            x = recompute(self._mix_tokens, self.pwconv1(x))
        elif torch.jit.is_scripting():
            x = self.dwconv(self._expand(x))
        else:
            x = self.dwconv(in_pieces(self._expand, x, x.shape[2] * self.pwconv1.out_features))
        return self.pwconv2(x)

    def _expand(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, 2 C)."""
        return self.act1(self.pwconv1(x))

    def _mix_tokens(self, hidden: Tensor) -> Tensor:
        """(B, H, W, 2 C) -> same, what follows the first linear layer."""
        return self.dwconv(self.act1(hidden))


class Mlp(nn.Module):
    """Two linear layers with a StarReLU, hidden width 4 C. (B, H, W, C) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim, bias=False)
        self.act = StarReLU()
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.fc1(x)
        if self.training and not torch.jit.is_scripting():
            return recompute(self._contract, hidden)
        return self._contract(hidden)

    def _contract(self, hidden: Tensor) -> Tensor:
        """fc2(act(hidden)), (B, H, W, 4 C) -> (B, H, W, C)."""
        # fc2(s r^2 + b) = (s W) r^2 + b W 1 for r = relu(hidden): scalars go into the weights, of
        # which there are far fewer than activations.
        weight = self.fc2.weight
        return F.linear(
            squared_relu(hidden), self.act.scale * weight, self.act.bias * weight.sum(1)
        )


class Block(nn.Module):
    """Token mixer and MLP, each pre-norm with a residual. (B, H, W, C) -> same.

    Args:
        dim: channels C.
        token_mixer: module on (B, H, W, C).
        drop_path: probability of dropping a branch.
        res_scale: learn a per-channel scale on the residual.
    """

    def __init__(self, dim: int, token_mixer: nn.Module, drop_path: float, res_scale: bool) -> None:
        super().__init__()
        self.norm1 = layer_norm(dim)
        self.token_mixer = token_mixer
        self.norm2 = layer_norm(dim)
        self.mlp = Mlp(dim)
        self.drop_path = DropPath(drop_path)
        self.res_scale1 = nn.Parameter(torch.ones(dim)) if res_scale else None
        self.res_scale2 = nn.Parameter(torch.ones(dim)) if res_scale else None

    def forward(self, x: Tensor) -> Tensor:
        x = _add_residual(self.drop_path(self.token_mixer(self.norm1(x))), x, self.res_scale1)
        # A mask of stochastic depth is drawn for whole images.
        if torch.jit.is_scripting() or self.training:
            return self._mix_channels(x)
        return in_pieces(self._mix_channels, x, x.shape[2] * self.mlp.fc1.out_features)

    def _mix_channels(self, x: Tensor) -> Tensor:
        return _add_residual(self.drop_path(self.mlp(self.norm2(x))), x, self.res_scale2)


def wrap_blocks(module: nn.Module, recurse: bool, nonwrapped_numel: int) -> bool:
    """FSDP's ``auto_wrap_policy`` that makes every block a unit (docs/scaling.md)."""
    return recurse or isinstance(module, Block)


class Stem(nn.Module):
    """7x7 stride-4 convolution and norm. (B, C_in, H, W) -> (B, H/4, W/4, C)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 7, stride=4, padding=2)
        self.norm = layer_norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x.contiguous(memory_format=torch.channels_last))
        return self.norm(x.permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H, W, C)


class Downsampling(nn.Module):
    """Norm and 3x3 convolution. (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C')."""

    def __init__(self, dim: int, out_dim: int, stride: int = 2) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.conv = ChannelsLastConv2d(dim, out_dim, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class Stage(nn.Module):
    """Downsampling (none in stage 1) and blocks. (B, H, W, C) -> (B, H', W', C')."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        for block in self.blocks:
            if self.with_cp and self.training and not torch.jit.is_scripting():
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x


def build_trunk(
    arch: str | dict,
    in_channels: int = 3,
    attention: str = 'imhsa',
    landmarks: int = 7,
    interaction: str = 'post',
    head_dim: int = 32,
    drop_path_rate: float = 0.0,
    num_stages: int = NUM_STAGES,
    output_stride: int = 32,
) -> tuple[Stem, nn.ModuleList]:
    """Stem and stages, initialised: what the backbone and the classifier have in common.

    Args:
        num_stages: how many of the stages are built, from the first.
        output_stride: 32, or 16 or 8 to keep later stages from downsampling. Other arguments as
            in :class:`IViT`.

    Raises:
        ValueError: an argument has a value that is not allowed; the message names those that are.
    """
    depths, widths = read_arch(arch)
    _check_widths(widths, head_dim)
    if in_channels < 1:
        raise ValueError(f'in_channels={in_channels}: expected at least 1')
    if not 0 <= drop_path_rate < 1:
        raise ValueError(f'drop_path_rate={drop_path_rate}: expected 0 <= rate < 1')
    if output_stride not in OUTPUT_STRIDES:
        raise ValueError(f'output_stride={output_stride}: expected one of {OUTPUT_STRIDES}')

    def token_mixer(stage: int) -> nn.Module:
        dim = widths[stage]
        if stage not in ATTENTION_STAGES:
            return SepConv(dim)
        return build_attention(attention, dim, dim // head_dim, landmarks, interaction)

    last = max(sum(depths) - 1, 1)
    drop_path = (drop_path_rate * i / last for i in range(sum(depths)))
    stem, stages = Stem(in_channels, widths[0]), nn.ModuleList()
    for i, (depth, dim) in enumerate(zip(depths[:num_stages], widths)):
        stride = 2 if 4 * 2**i <= output_stride else 1
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
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.out_indices = _check_out_indices(out_indices)
        if frozen_stages not in range(-1, NUM_STAGES + 1):
            raise ValueError(f'frozen_stages={frozen_stages}: expected -1 to {NUM_STAGES}')
        self.frozen_stages = frozen_stages
        _, widths = read_arch(arch)
        self.out_channels = [widths[i] for i in self.out_indices]
        self.out_strides = [4 * 2**i for i in self.out_indices]
        self.stem, self.stages = build_trunk(
            arch,
            in_channels,
            attention,
            landmarks,
            interaction,
            head_dim,
            drop_path_rate,
            # Stages that nobody sees cost time and leave DDP with parameters without gradient.
            num_stages=self.out_indices[-1] + 1,
        )
        for i in self.out_indices:
            self.add_module(f'norm{i}', layer_norm(widths[i]))

        self.with_cp = with_cp
        self._freeze()

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

    @property
    def num_layers(self) -> int:
        """Number of blocks, the deepest layer that :meth:`layer_depth` counts."""
        return sum(len(stage.blocks) for stage in self.stages)

    def layer_depth(self, name: str) -> int:
        """Depth of a parameter, for layer-wise learning-rate decay.

        Args:
            name: the parameter's name within the backbone.

        Returns:
            0 for the stem, 1 to ``num_layers`` for the blocks (a downsampling counts with the
            block it feeds), ``num_layers + 1`` for the output norms, which belong to the
            downstream task like the head.
        """
        parts = name.split('.')
        if parts[0] == 'stem':
            return 0
        if parts[0] != 'stages':
            return self.num_layers + 1
        stage = int(parts[1])
        block = int(parts[3]) if parts[2] == 'blocks' else 0
        return 1 + sum(len(self.stages[i].blocks) for i in range(stage)) + block

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
                y = getattr(self, f'norm{i}')(x)
                outputs.append(y.permute(0, 3, 1, 2).contiguous())  # (B, H, W, C) -> (B, C, H, W)
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

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args) -> None:
        # Called by torch's and mmengine's loaders alike, whoever's tool does the loading.
        report_loading(self, state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def layer_norm(dim: int) -> nn.LayerNorm:
    """The norm used throughout: over channels, without a bias."""
    return nn.LayerNorm(dim, eps=1e-6, bias=False)


def _add_residual(branch: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
    return x + branch if scale is None else torch.addcmul(branch, x, scale)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


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
