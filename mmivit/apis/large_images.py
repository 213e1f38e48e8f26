"""Label maps of images whose logits, all classes at full size, would not fit into memory.

150 classes at 4000 x 3000 take 7 GB, and mmseg holds several copies, so labels are taken before
the logits exist as a whole.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

MAX_LOGITS = 2**27  # elements, half a GiB in fp32; more are never held at once


def images_at_once(model: nn.Module, inputs: Tensor) -> int:
    """Of how many images of a batch (N, 3, H, W) all logits are within :data:`MAX_LOGITS`."""
    return MAX_LOGITS // (model.out_channels * inputs[0, 0].numel())


def slide_labels(model: nn.Module, inputs: Tensor, meta: dict) -> Tensor:
    """Labels of a large image by sliding windows, with the logits of one row of windows at a time.

    The same windows and the same mean over them as mmseg's ``slide_inference``, whose logits of
    the whole image need the memory this function spares.

    Args:
        model: mmseg's EncoderDecoder with ``test_cfg`` of mode 'slide'.
        inputs: one preprocessed image, (1, 3, H, W).
        meta: its meta information.

    Returns:
        Class indices, (H, W).
    """
    crop_h, crop_w = (min(a, b) for a, b in zip(model.test_cfg.crop_size, inputs.shape[2:]))
    stride_h, stride_w = model.test_cfg.stride
    height, width = inputs.shape[2:]
    tops = _window_starts(height, crop_h, stride_h)
    logits = inputs.new_zeros(model.out_channels, crop_h, width)  # rows from `top` on
    count = inputs.new_zeros(1, crop_h, width)
    labels = torch.empty(height, width, dtype=torch.long, device=inputs.device)
    progress = tqdm(tops, desc='sliding', leave=False)
    for top, next_top in zip(progress, [*tops[1:], height]):
        for left in _window_starts(width, crop_w, stride_w):
            window = inputs[:, :, top : top + crop_h, left : left + crop_w]
            meta = {**meta, 'img_shape': window.shape[2:]}  # a torch.Size tells mmseg of windows
            logits[:, :, left : left + crop_w] += model.encode_decode(window, [meta])[0]
            count[:, :, left : left + crop_w] += 1
        done = next_top - top  # rows that no later window touches
        labels[top:next_top] = _classes(logits[:, :done] / count[:, :done], model)
        for rows in (logits, count):
            rows[:, : crop_h - done] = rows[:, done:].clone()
            rows[:, crop_h - done :] = 0
    return labels


def upsampled_labels(logits: Tensor, size: tuple[int, int], model: nn.Module) -> Tensor:
    """Labels at a larger size, as from bilinearly resized logits, a few rows at a time.

    Args:
        logits: (classes, h, w).
        size: height and width of the labels, pixels.
        model: the segmentor, for its ``align_corners``.

    Returns:
        Class indices, size.
    """
    # A single channel is no maximum of several.
    if len(logits) == 1 or len(logits) * size[0] * size[1] <= MAX_LOGITS:
        return _classes(_resize(logits, size, model), model)
    best = torch.full(size, -torch.inf, device=logits.device)
    labels = torch.zeros(size, dtype=torch.long, device=logits.device)
    chunk = max(1, MAX_LOGITS // (size[0] * size[1]))  # classes at a time
    for first in range(0, len(logits), chunk):
        value, index = _resize(logits[first : first + chunk], size, model).max(0)
        better = value > best
        labels[better] = index[better] + first
        best = torch.maximum(best, value)
    return labels


def _resize(logits: Tensor, size: tuple[int, int], model: nn.Module) -> Tensor:
    resized = F.interpolate(logits[None], size, mode='bilinear', align_corners=model.align_corners)
    return resized[0]


def _classes(logits: Tensor, model: nn.Module) -> Tensor:
    """(classes, h, w) -> (h, w); a single channel is a threshold on its sigmoid."""
    if len(logits) == 1:
        return (logits[0].sigmoid() > model.decode_head.threshold).long()
    return logits.argmax(0)


def _window_starts(size: int, crop: int, stride: int) -> list[int]:
    """Where windows begin along a side: every stride, the last one flush with the end."""
    last = max(size - crop, 0)
    return [min(start, last) for start in range(0, last + stride, stride)]
