"""mmseg's visualiser, for images as mmseg's own tools give them and class names in any script."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from mmengine.structures import PixelData
from mmseg.visualization import SegLocalVisualizer

from mmivit.registry import VISUALIZERS
from mmivit.utils.canvas import QuickCanvas
from mmivit.utils.fonts import AnyScript

LEAST_TEXT = 8  # points


@VISUALIZERS.register_module()
class SegVisualizer(AnyScript, QuickCanvas, SegLocalVisualizer):
    """mmseg's, which passes the image's memory layout and the names of classes on to OpenCV.

    OpenCV draws on rows of pixels alone, and mmseg's ``browse_dataset.py`` gives views of another
    layout, so that with mmseg's own visualiser it fails (mmsegmentation#3405), whichever OpenCV.
    OpenCV 4 draws the letters of most scripts as question marks; here matplotlib draws them.
    """

    def add_datasample(self, name: str, image: np.ndarray, *args: Any, **kwargs: Any) -> None:
        """Draw an image (H, W, 3) with its label maps; the rest as mmseg's."""
        super().add_datasample(name, np.ascontiguousarray(image), *args, **kwargs)

    def _draw_sem_seg(
        self,
        image: np.ndarray,
        sem_seg: PixelData,
        classes: list,
        palette: list,
        with_labels: bool | None = True,
    ) -> np.ndarray:
        labels = np.asarray(sem_seg.cpu().data)[0].astype(int)  # (H, W)
        found = np.flatnonzero(np.bincount(labels.ravel())[: len(classes)])
        drawn = self._tinted(image, (0, 0, 0))  # what is of no class
        for label in found:
            where = (labels == label).view(np.uint8)
            cv2.copyTo(self._tinted(image, palette[label]), where, drawn)
        self.set_image(drawn)
        if not with_labels:
            return drawn
        places = [self._get_center_loc(labels == label) for label in found]
        colours = [tuple(int(part) for part in palette[label]) for label in found]
        self.draw_texts(
            [classes[label] for label in found],
            np.array(places).reshape(-1, 2),
            font_sizes=max(LEAST_TEXT, min(labels.shape) // 40),
            colors='w',
            bboxes=[
                dict(facecolor=[part / 255 for part in colour], edgecolor='black', pad=1)
                for colour in colours
            ],
        )
        return self.get_image()

    def _tinted(self, image: np.ndarray, colour: Sequence[int]) -> np.ndarray:
        """An image (H, W, 3) under a colour; its 256 values once, and not every pixel of it."""
        values = np.arange(256)[:, None] * (1 - self.alpha) + np.array(colour) * self.alpha
        return cv2.LUT(image, values.astype(np.uint8)[None])
