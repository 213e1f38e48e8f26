"""mmseg's visualiser, for images as mmseg's own tools give them."""

from __future__ import annotations

from typing import Any

import numpy as np
from mmseg.visualization import SegLocalVisualizer

from mmivit.registry import VISUALIZERS


@VISUALIZERS.register_module()
class SegVisualizer(SegLocalVisualizer):
    """mmseg's, which passes the image's memory layout on to OpenCV.

    OpenCV draws on rows of pixels alone, and mmseg's ``browse_dataset.py`` gives views of another
    layout, so that with mmseg's own visualiser it fails (mmsegmentation#3405), whichever OpenCV.
    """

    def add_datasample(self, name: str, image: np.ndarray, *args: Any, **kwargs: Any) -> None:
        """Draw an image (H, W, 3) with its label maps; the rest as mmseg's."""
        super().add_datasample(name, np.ascontiguousarray(image), *args, **kwargs)
