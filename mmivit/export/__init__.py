"""Models as graphs that run without torch."""

from mmivit.export.command import export
from mmivit.export.graphs import write_onnx

__all__ = ['export', 'write_onnx']
