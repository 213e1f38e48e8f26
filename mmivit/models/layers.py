"""The layers of iViT, from the activation to the stage.

CAFormer's (MetaFormer Baselines, arXiv 2210.13452), by the names that timm gives its sub-modules.
Within a stage everything is channels last, (B, H, W, C): linear layers and norms need no permutes.
Stem and stages themselves take and give (B, C, H, W), of which (B, H, W, C) is a view, so that
whoever taps a stage gets the usual order.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.utils.checkpoint import checkpoint

from mmivit.models.memory import cached, in_pieces, is_eager, recomputed


def star_relu(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
    """s * relu(x)^2 + b, for scalars s and b of shape (1,)."""
    if is_eager(x):
        return _StarReLU.apply(x, scale, bias)
    return torch.addcmul(bias, scale, F.relu(x).square())


class _StarReLU(torch.autograd.Function):
    """Keeps x alone, and passes over memory once where autograd's own would several times."""

    @staticmethod
    def forward(ctx: FunctionCtx, x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, scale)
        ctx.save_for_forward(x, scale)
        y = torch.empty_like(x)
        for part, out in cached(x, y):
            torch.clamp_min(part, 0, out=out)
            if x.device.type == 'cpu':  # where a number is at hand, and saves a pass
                torch.addcmul(bias, out, out, value=scale.item(), out=out)
            else:
                out.mul_(out).mul_(scale).add_(bias)
        return y

    @staticmethod
    def backward(ctx: FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, scale = ctx.saved_tensors
        if torch.is_grad_enabled():  # to be differentiated once more
            y = F.relu(x)
            slope = grad * y
            return 2 * scale * slope, (slope * y).sum().view(1), grad.sum().view(1)
        x_grad = torch.empty_like(x)
        twice = (2 * scale).view(())
        of_scale, of_bias = [], []
        for part, grad_part, out in cached(x, grad, x_grad):
            y = part.clamp_min(0)
            torch.mul(grad_part, y, out=out)
            of_scale.append(torch.dot(out.flatten(), y.flatten()))
            of_bias.append(grad_part.sum(dtype=scale.dtype))
            out.mul_(twice)
        scale_grad, bias_grad = (torch.stack(parts).sum().view(1) for parts in (of_scale, of_bias))
        return x_grad, scale_grad.to(scale.dtype), bias_grad

    @staticmethod
    def jvp(
        ctx: FunctionCtx, x_tangent: Tensor, scale_tangent: Tensor, bias_tangent: Tensor
    ) -> Tensor:
        x, scale = ctx.saved_tensors
        y = F.relu(x)
        return 2 * scale * y * x_tangent + scale_tangent * y.square() + bias_tangent


class StarReLU(nn.Module):
    """s * relu(x)^2 + b with learned scalars s and b, as in MetaFormer Baselines."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return star_relu(x, self.scale, self.bias)


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
        return self.pwconv2(self._mix_tokens(self.pwconv1(x)))

    @recomputed
    def _mix_tokens(self, hidden: Tensor) -> Tensor:
        """What follows the first linear layer, (B, H, W, 2 C) -> same."""
        return self.dwconv(self.act1(hidden))


class Mlp(nn.Module):
    """Two linear layers with a StarReLU, hidden width 4 C. (B, H, W, C) -> same."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim, bias=False)
        self.act = StarReLU()
        self.fc2 = nn.Linear(4 * dim, dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self._contract(self.fc1(x))

    @recomputed
    def _contract(self, hidden: Tensor) -> Tensor:
        """What follows the first linear layer, (B, H, W, 4 C) -> (B, H, W, C)."""
        return self.fc2(self.act(hidden))


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
        return self._mix_channels(x)

    @in_pieces(lambda x: 4 * x.shape[2] * x.shape[3])  # the hidden layer's
    def _mix_channels(self, x: Tensor) -> Tensor:
        return _add_residual(self.drop_path(self.mlp(self.norm2(x))), x, self.res_scale2)


class Stem(nn.Module):
    """7x7 stride-4 convolution and norm. (B, C_in, H, W) -> (B, C, H / 4, W / 4)."""

    def __init__(self, in_channels: int, dim: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(in_channels, dim, 7, stride=4, padding=2)
        self.norm = layer_norm(dim)

    def forward(self, x: Tensor) -> Tensor:
        # Channels last in memory; not by its name, which vmap does not know.
        x = self.conv(x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
        return self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # over channels, (B, H, W, C)


class Downsampling(nn.Module):
    """Norm and 3x3 convolution. (B, H, W, C) -> (B, ceil(H / stride), ceil(W / stride), C')."""

    def __init__(self, dim: int, out_dim: int, stride: int = 2) -> None:
        super().__init__()
        self.norm = layer_norm(dim)
        self.conv = ChannelsLastConv2d(dim, out_dim, 3, stride, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.norm(x))


class Stage(nn.Module):
    """Downsampling (none in stage 1) and blocks. (B, C, H, W) -> (B, C', H', W')."""

    def __init__(self, downsample: nn.Module, blocks: Sequence[Block]) -> None:
        super().__init__()
        self.downsample = downsample
        self.blocks = nn.ModuleList(blocks)
        self.with_cp = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x.permute(0, 2, 3, 1))  # (B, C, H, W) -> (B, H', W', C')
        for block in self.blocks:
            if self.with_cp and self.training:
                x = checkpoint(block, x, use_reentrant=False)
            else:
                x = block(x)
        return x.permute(0, 3, 1, 2)  # (B, H', W', C') -> (B, C', H', W')


def layer_norm(dim: int) -> nn.LayerNorm:
    """The norm used throughout: over channels, without a bias."""
    return nn.LayerNorm(dim, eps=1e-6, bias=False)


def _add_residual(branch: Tensor, x: Tensor, scale: Tensor | None) -> Tensor:
    return x + branch if scale is None else torch.addcmul(branch, x, scale)
