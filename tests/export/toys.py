"""Graphs that give the same for every image."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def write_constants(path, values, meta):
    """Write a graph of an image whose outputs are arrays, by name, with metadata."""
    nodes = [
        helper.make_node('Constant', [], [name], value=numpy_helper.from_array(value))
        for name, value in values.items()
    ]
    sides = ['batch', 3, 'height', 'width']
    image = helper.make_tensor_value_info('image', TensorProto.FLOAT, sides)
    outputs = [
        helper.make_tensor_value_info(
            name, helper.np_dtype_to_tensor_dtype(value.dtype), value.shape
        )
        for name, value in values.items()
    ]
    graph = helper.make_graph(nodes, 'constants', [image], outputs)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10)
    helper.set_model_props(model, meta)
    onnx.save(model, path)


def two_boxes():
    """What a detector gives."""
    return dict(
        boxes=np.array([[10, 20, 50, 60], [0, 0, 30, 30]], np.float32),
        scores=np.array([0.9, 0.2], np.float32),
        labels=np.array([1, 0]),
        masks=np.ones((2, 28, 28), np.float32),
    )
