"""mmdet's visualiser, for class names in any script and masks that can be seen through."""

from __future__ import annotations

from typing import Any

from mmdet.visualization import DetLocalVisualizer

from mmivit.registry import VISUALIZERS
from mmivit.utils.fonts import AnyScript


@VISUALIZERS.register_module()
class DetVisualizer(AnyScript, DetLocalVisualizer):
    """mmdet's, which draws with a single font, and boxes and masks with one opacity.

    Attributes:
        mask_alpha: opacity of masks, from 0 to 1; that of the boxes if None.
    """

    mask_alpha: float | None = None

    def draw_binary_masks(
        self, binary_masks: Any, colors: Any = 'g', alphas: float | list[float] = 0.8
    ) -> Any:
        """As MMEngine's, at the opacity of masks where there is one."""
        alphas = alphas if self.mask_alpha is None else self.mask_alpha
        return super().draw_binary_masks(binary_masks, colors, alphas)
