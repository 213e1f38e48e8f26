"""Models as graphs that run without torch."""

from mmivit.export.graphs import export, write_onnx

__all__ = ['export', 'write_onnx']
