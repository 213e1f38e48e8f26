"""iViT as an ImageNet classifier in timm: ``timm.create_model('ivit_tiny')``.

The trunk is the backbone's, with the same parameter names; timm provides the head, the registry
and the way features are taken. There are no pretrained weights to offer.
"""

from contextlib import nullcontext
from typing import Any

import torch
from timm.layers import NormMlpClassifierHead
from timm.models import (
    build_model_with_cfg,
    generate_default_cfgs,
    register_model,
    register_notrace_module,
)
from timm.models._features import feature_take_indices
from torch import Tensor, nn

from mmivit.models.attention import ATTENTIONS, undecayed
from mmivit.models.ivit import ARCHITECTURES, build_trunk, read_arch, stage_strides
from mmivit.registry import MODELS

# Landmarks depend on sizes, which torch.fx cannot follow: attentions are leaves of its graphs.
for _attention in ATTENTIONS.values():
    register_notrace_module(_attention)


@MODELS.register_module()
class IViTClassifier(nn.Module):
    """iViT's trunk with timm's head (pool, norm, linear), and the methods timm's models have.

    Args:
        arch: as in :class:`mmivit.models.IViT`, like ``attention``, ``landmarks``,
            ``interaction``, ``head_dim`` and ``drop_path_rate``.
        in_chans: channels of the input image.
        num_classes: classes; 0 leaves the classifier out.
        global_pool: timm's name of the pooling, '' for none.
        output_stride: 32, 16 or 8.
        drop_rate: dropout before the classifier.
        device: where parameters are created.
        dtype: their type.
    """

    def __init__(
        self,
        arch: str | dict = 'tiny',
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = 'avg',
        output_stride: int = 32,
        attention: str = 'imhsa',
        landmarks: int = 7,
        interaction: str = 'post',
        head_dim: int = 32,
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        _, widths = read_arch(arch)
        self.in_chans = in_chans
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = widths[-1]
        self.feature_info = [
            dict(num_chs=width, reduction=stride, module=f'stages.{i}')
            for i, (width, stride) in enumerate(zip(widths, stage_strides(output_stride)))
        ]
        with nullcontext() if device is None else torch.device(device):
            self.stem, self.stages = build_trunk(
                arch=arch,
                in_channels=in_chans,
                attention=attention,
                landmarks=landmarks,
                interaction=interaction,
                head_dim=head_dim,
                drop_path_rate=drop_path_rate,
                output_stride=output_stride,
            )
            self.head = NormMlpClassifierHead(
                self.num_features, num_classes, pool_type=global_pool, drop_rate=drop_rate
            )
            if num_classes > 0:
                nn.init.trunc_normal_(self.head.fc.weight, std=0.02)
                nn.init.zeros_(self.head.fc.bias)
        self.to(dtype)

    def forward(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> logits (B, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def forward_features(self, x: Tensor) -> Tensor:
        """Images (B, in_chans, H, W) -> the last stage's map (B, C, ~H / 32, ~W / 32)."""
        return self.stages(self.stem(x))

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """(B, C, H, W) -> logits, or with ``pre_logits`` pooled and normed features (B, C)."""
        return self.head(x, pre_logits=True) if pre_logits else self.head(x)

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = 'NCHW',
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """The maps of stages, and unless ``intermediates_only`` the final map before them.

        Args:
            x: images, (B, in_chans, H, W).
            indices: stages by index, the last n, or all.
            norm: has no effect: stages have no norm of their own.
            stop_early: leave out the stages after the last that is asked for.
            output_fmt: 'NCHW' or 'NHWC', of the stages' maps.
            intermediates_only: return the stages' maps alone.
        """
        if output_fmt not in ('NCHW', 'NHWC'):
            raise ValueError(f"output_fmt={output_fmt!r}: expected 'NCHW' or 'NHWC'")
        take, last = feature_take_indices(len(self.stages), indices)
        x = self.stem(x)
        intermediates = []
        for i, stage in enumerate(self.stages[: last + 1] if stop_early else self.stages):
            x = stage(x)
            if i in take:
                intermediates.append(x if output_fmt == 'NCHW' else x.permute(0, 2, 3, 1))
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Remove the stages after the last that is asked for, and the head."""
        take, last = feature_take_indices(len(self.stages), indices)
        pruned = last < len(self.stages) - 1
        self.stages = self.stages[: last + 1]
        if pruned:
            self.num_features = self.head_hidden_size = self.feature_info[last]['num_chs']
        if pruned or prune_head:
            self.num_classes = 0
            self.head.reset(0, '', reset_other=True, in_features=self.num_features)
        return take

    def get_classifier(self) -> nn.Module:
        """The last linear layer."""
        return self.head.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new classifier; ``global_pool`` as before if not given."""
        self.num_classes = num_classes
        self.head.reset(num_classes, global_pool)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute blocks in the backward pass to save memory."""
        for stage in self.stages:
            stage.with_cp = enable

    def group_matcher(self, coarse: bool = False) -> dict:
        """Layers for timm's layer-wise decay: a downsampling goes with the block it feeds."""
        block = r'^stages\.(\d+)' if coarse else r'^stages\.(\d+)\.blocks\.(\d+)'
        downsample = [] if coarse else [(r'^stages\.(\d+)\.downsample', (0,))]
        return dict(stem=r'^stem', blocks=[*downsample, (block, None), (r'^head\.norm', (99999,))])

    def no_weight_decay(self) -> set[str]:
        """Interaction, content and locality."""
        return set(undecayed(self))


default_cfgs = generate_default_cfgs(
    {
        f'ivit_{arch}': dict(
            url='',
            num_classes=1000,
            input_size=(3, 224, 224),
            pool_size=(7, 7),
            crop_pct=0.9,
            interpolation='bicubic',
            mean=(0.485, 0.456, 0.406),
            std=(0.229, 0.224, 0.225),
            classifier='head.fc',
            first_conv='stem.conv',
            license='apache-2.0',
        )
        for arch in ARCHITECTURES
    }
)


def _create(arch: str, pretrained: bool, **options: Any) -> IViTClassifier:
    return build_model_with_cfg(
        IViTClassifier,
        f'ivit_{arch}',
        pretrained,
        arch=arch,
        feature_cfg=dict(out_indices=(0, 1, 2, 3), feature_cls='getter', flatten_sequential=True),
        **options,
    )


@register_model
def ivit_nano(pretrained: bool = False, **options: Any) -> IViTClassifier:
    """iViT-Nano, 32 to 256 channels."""
    return _create('nano', pretrained, **options)


@register_model
def ivit_tiny(pretrained: bool = False, **options: Any) -> IViTClassifier:
    """iViT-Tiny, the size of CAFormer-S18."""
    return _create('tiny', pretrained, **options)


@register_model
def ivit_small(pretrained: bool = False, **options: Any) -> IViTClassifier:
    """iViT-Small, the size of CAFormer-S36."""
    return _create('small', pretrained, **options)


@register_model
def ivit_medium(pretrained: bool = False, **options: Any) -> IViTClassifier:
    """iViT-Medium, the size of CAFormer-M36."""
    return _create('medium', pretrained, **options)


@register_model
def ivit_base(pretrained: bool = False, **options: Any) -> IViTClassifier:
    """iViT-Base, the size of CAFormer-B36."""
    return _create('base', pretrained, **options)
