"""mmdet's visualiser, for class names in any script and masks that can be seen through."""

from __future__ import annotations

import cv2
import numpy as np
from mmdet.visualization import DetLocalVisualizer

from mmivit.registry import VISUALIZERS
from mmivit.utils.canvas import QuickCanvas
from mmivit.utils.fonts import AnyScript


@VISUALIZERS.register_module()
class DetVisualizer(AnyScript, QuickCanvas, DetLocalVisualizer):
    """mmdet's, which draws with a single font, and boxes and masks with one opacity.

    Attributes:
        mask_alpha: opacity of masks, from 0 to 1; that of the boxes if None.
    """

    mask_alpha: float | None = None

    def draw_binary_masks(
        self,
        binary_masks: np.ndarray,
        colors: list[tuple[int, int, int]],
        alphas: float = 0.8,
    ) -> DetVisualizer:
        """As MMEngine's, at the opacity of masks where there is one, and each mask within its box.

        Args:
            binary_masks: (N, H, W), bool.
            colors: red, green, blue of each.
            alphas: opacity, from 0 to 1.
        """
        alpha = alphas if self.mask_alpha is None else self.mask_alpha
        image = self.get_image()
        for mask, color in zip(binary_masks, colors):
            x, y, width, height = cv2.boundingRect(mask.view(np.uint8))
            if width:
                within = np.s_[y : y + height, x : x + width]
                part, inside = image[within], mask[within]
                tinted = cv2.addWeighted(part, 1 - alpha, np.full_like(part, color), alpha, 0)
                part[inside] = tinted[inside]
        self.ax_save.imshow(image, extent=(0, self.width, self.height, 0))
        return self
