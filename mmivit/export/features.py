"""What a data preprocessor of OpenMMLab does to images, within a graph."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class ImageGraph(nn.Module):
    """A model's graph, which begins with what the data preprocessor does to images.

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

    def preprocess(self, image: Tensor) -> Tensor:
        """(B, C, H, W), 0 to 255 -> normalised and padded."""
        if self.swaps:
            image = image.flip(1)
        x = (image - self.mean) / self.std
        height, width = x.shape[2:]
        padding = (0, -width % self.divisor, 0, -height % self.divisor)
        return F.pad(x, padding, value=self.pad_value) if self.divisor > 1 else x


class FeatureGraph(ImageGraph):
    """The backbone behind it."""

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """(B, C, H, W) -> maps (B, C_i, H_i, W_i)."""
        return tuple(self.model.backbone(self.preprocess(image)))


class SegmentorGraph(ImageGraph):
    """A segmentor of mmseg behind it."""

    def forward(self, image: Tensor) -> Tensor:
        """(B, C, H, W) -> logits (B, classes, H, W)."""
        x = self.preprocess(image)
        logits = self.model.encode_decode(x, [dict(img_shape=x.shape[2:])])
        return logits[..., : image.shape[2], : image.shape[3]]
