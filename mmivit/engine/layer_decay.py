"""Layer-wise learning-rate decay: the deeper a layer, the nearer its rate to the head's."""

from __future__ import annotations

import logging
from typing import Any

from mmengine.logging import print_log
from mmengine.optim import DefaultOptimWrapperConstructor
from torch import nn

from mmivit.models.attention import undecayed
from mmivit.registry import OPTIM_WRAPPER_CONSTRUCTORS


@OPTIM_WRAPPER_CONSTRUCTORS.register_module()
class LayerDecayOptimWrapperConstructor(DefaultOptimWrapperConstructor):
    """mmengine's constructor with learning rates that fall from the head to the stem.

    A parameter of depth i out of n gets the rate lr * r^(n - 1 - i), everything outside the
    backbone lr. Both are what the backbone's own ``get_layer_depth(name)`` says, as mmpretrain's
    backbones do, so that any detector or segmentor will do. The attentions' interaction, content
    and locality have no weight decay. ``paramwise_cfg`` holds ``layer_decay_rate`` (r) beside
    mmengine's usual settings:

        optim_wrapper = dict(
            constructor='mmivit.LayerDecayOptimWrapperConstructor',
            paramwise_cfg=dict(layer_decay_rate=0.9, flat_decay_mult=0.0))

    Raises:
        ValueError: ``layer_decay_rate`` is missing or not in (0, 1], or the model has no backbone
            with ``get_layer_depth``.
    """

    def add_params(
        self, params: list[dict], module: nn.Module, prefix: str = '', **kwargs: Any
    ) -> None:
        """Append a group per parameter; called by mmengine, first for the whole model."""
        super().add_params(params, module, prefix=prefix, **kwargs)
        if prefix:  # a sub-module, within the call for the whole model
            return
        rate = self.paramwise_cfg.get('layer_decay_rate')
        if rate is None or not 0 < rate <= 1:
            raise ValueError(f'paramwise_cfg.layer_decay_rate={rate}: expected 0 < rate <= 1')
        scales, free = layer_scales(module, rate), set(undecayed(module).values())
        for group in params:
            (parameter,) = group['params']
            group.setdefault('lr', self.base_lr)
            group['lr'] *= scales[parameter]
            if parameter in free:
                group['weight_decay'] = 0.0
        print_log(
            f'Layer-wise learning rates: {self.base_lr * min(scales.values()):.3g} at the stem '
            f'to {self.base_lr:.3g} at the head',
            logger='current',
            level=logging.INFO,
        )


def layer_scales(model: nn.Module, rate: float) -> dict[nn.Parameter, float]:
    """Factor of the learning rate for every parameter of a model.

    Args:
        model: any model that contains a backbone with ``get_layer_depth``.
        rate: factor from one layer to the one below it.
    """
    scales = dict.fromkeys(model.parameters(), 1.0)
    backbones = [module for module in model.modules() if hasattr(module, 'get_layer_depth')]
    if not backbones:
        raise ValueError(
            f'{type(model).__name__} has no backbone that tells the depth of its layers; '
            "layer-wise decay needs one with get_layer_depth(name), such as 'mmivit.IViT'"
        )
    for backbone in backbones:
        for name, parameter in backbone.named_parameters():
            depth, depths = backbone.get_layer_depth(name)
            scales[parameter] = rate ** (depths - 1 - depth)
    return scales
