"""How a converted iViT stands beside the model with whole maps that its weights came from.

Landmarks summarise what whole maps see, so that features move when weights trained with MHSA are
converted: by how much tells whether they kept what they had learnt. No second file is needed, for
the projections of a converted model are MHSA's own.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mmivit.models.attention import MHSA
from mmivit.models.layers import Block
from mmivit.utils.modules import in_evaluation, recorded
from mmivit.utils.text import listed

SYNTHETIC = (2, 224)  # images for the log, and their side: a second or so on a CPU, at most


@dataclass(frozen=True)
class StageAgreement:
    """How far a stage's features are from another model's, |f - g| / |g| over a batch of images.

    Attributes:
        stage: its name in the backbone, such as 'stages.2'.
        blocks: the same after each of its blocks, in their order.
    """

    stage: str
    blocks: tuple[float, ...]

    @property
    def error(self) -> float:
        """After the last block: of the features that the stage hands on."""
        return self.blocks[-1]


def agreement(
    model: nn.Module, images: Tensor, reference: nn.Module | None = None
) -> list[StageAgreement]:
    """How far a model's features are from those of the model that its weights came from.

    Both compute in evaluation mode, and are left as they were, the stream of random numbers too.

    Args:
        model: an iViT backbone or classifier, or an mmdet or mmseg model, whose backbone alone
            runs.
        images: what the backbone takes, (B, C, H, W), on its device and normalised as in training.
        reference: what to compare with: any model whose blocks have the same names, such as timm's
            CAFormer. If not given, the same weights with ``attention='mhsa'``: right after a
            conversion that is the model which was converted, after training on it isn't.

    Returns:
        For every stage with attention, from the first.

    Raises:
        ValueError: the model has no attention of ours, or the reference other blocks.
    """
    model = getattr(model, 'backbone', model)
    blocks = [
        name
        for name, module in model.named_modules()
        if isinstance(module, Block) and isinstance(module.token_mixer, MHSA)
    ]
    if not blocks:
        raise ValueError(
            f'{type(model).__name__} has no attention to compare: expected an iViT with stage 3'
        )
    own = _features(model, images, blocks)
    if reference is None:
        others = _features(model, images, blocks, whole_maps=True)
    else:
        others = _features(getattr(reference, 'backbone', reference), images, blocks)
    stages: dict[str, list[float]] = {}
    for name in blocks:
        stages.setdefault(name.rpartition('.blocks.')[0], []).append(
            _relative_error(name, own[name], others[name])
        )
    return [StageAgreement(stage, tuple(errors)) for stage, errors in stages.items()]


def standing(model: nn.Module) -> str:
    """A line for the log: how a backbone that was just converted stands, on synthetic images."""
    weight = model.stem.conv.weight
    images = smooth_images(SYNTHETIC[0], weight.shape[1], SYNTHETIC[1]).to(weight)
    errors = [
        f'{found.error:.3f} in stage {int(found.stage.rpartition(".")[2]) + 1}'
        for found in agreement(model, images)
    ]
    return (
        f"Features against the same weights with attention='mhsa', relative error: "
        f'{", ".join(errors)} ({SYNTHETIC[0]} smooth synthetic images of {SYNTHETIC[1]} x '
        f'{SYNTHETIC[1]}; on your own: mmivit.analysis.agreement.agreement(backbone, images))'
    )


def smooth_images(count: int, channels: int, side: int) -> Tensor:
    """Images with the spectrum of photographs, whose amplitudes fall as 1 / frequency.

    The same at every call, from a generator of their own.

    Returns:
        (count, channels, side, side), every channel of mean 0 and deviation 1, in fp32.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(count, channels, side, side, generator=generator)
    rows, columns = torch.fft.fftfreq(side), torch.fft.rfftfreq(side)
    frequency = torch.hypot(rows.unsqueeze(1), columns).clamp_min(1 / side)
    images = torch.fft.irfft2(torch.fft.rfft2(noise) / frequency, s=(side, side))
    return F.instance_norm(images)


@torch.no_grad()
def _features(
    model: nn.Module, images: Tensor, blocks: Iterable[str], whole_maps: bool = False
) -> dict[str, Tensor]:
    """What blocks return, by their names, as (B, N, C)."""
    modules = dict(model.named_modules())
    missing = [name for name in blocks if name not in modules]
    if missing:
        raise ValueError(f'the reference, a {type(model).__name__}, has no {listed(missing)}')
    with ExitStack() as stack:
        stack.enter_context(in_evaluation(model))
        calls = stack.enter_context(recorded(model, blocks))
        for module in modules.values():
            if whole_maps and isinstance(module, MHSA):
                stack.enter_context(module.register_forward_hook(_with_whole_maps))
        model(images)
    # (B, H, W, C) or (B, N, C) -> (B, N, C)
    return {name: call.output.flatten(1, -2) for name, call in calls.items()}


def _with_whole_maps(module: MHSA, inputs: tuple[Tensor], _: Tensor) -> Tensor:
    """A forward hook: what the attention's projections give as MHSA."""
    q, k, v, *_landmarks = module.project(inputs[0])
    return module.merge_heads(F.scaled_dot_product_attention(q, k, v), inputs[0])


def _relative_error(name: str, features: Tensor, others: Tensor) -> float:
    if features.shape != others.shape:
        raise ValueError(
            f'{name} gives {tuple(features.shape)}, that of the reference {tuple(others.shape)}'
        )
    dtype = torch.promote_types(features.dtype, torch.float32)
    features, others = features.to(dtype), others.to(dtype)
    return ((features - others).norm() / others.norm()).item()
