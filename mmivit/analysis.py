"""What a model costs."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from mmivit.models.ivit import ARCHITECTURES, IViT


class Cost(NamedTuple):
    """Parameters, and multiply-accumulates of one forward pass."""

    parameters: int
    macs: int


def count_cost(model: nn.Module, forward: Callable[[], object]) -> Cost:
    """Count what a forward pass costs, attention included.

    Matrix products and convolutions count, elementwise work does not, as is the custom. Fused
    attention is split into its products meanwhile, because counters see nothing in it.

    Args:
        model: the module whose parameters count.
        forward: runs it once.
    """
    model.eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), counter:
        forward()
    parameters = sum(p.numel() for p in model.parameters())
    return Cost(parameters, counter.get_total_flops() // 2)


def architecture_costs(size: tuple[int, int], **options) -> dict[str, Cost]:
    """Cost of every architecture's backbone for one image of (height, width) pixels.

    Counted on the meta device: nothing is computed.

    Args:
        size: height and width in pixels.
        options: further arguments of :class:`IViT`.
    """
    costs = {}
    with torch.device('meta'):
        for arch in ARCHITECTURES:
            model = IViT(arch, **options)
            image = torch.empty(1, 3, *size)
            costs[arch] = count_cost(model, lambda model=model, image=image: model(image))
    return costs
