"""mmdet's visualiser, for class names in any script."""

from __future__ import annotations

from mmdet.visualization import DetLocalVisualizer

from mmivit.registry import VISUALIZERS
from mmivit.utils.fonts import AnyScript


@VISUALIZERS.register_module()
class DetVisualizer(AnyScript, DetLocalVisualizer):
    """mmdet's, which draws with a single font."""
