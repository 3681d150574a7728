"""Logits of a variant as onnxruntime computes them: witness.py GRAPH INPUTS OUTPUT

INPUTS holds float32 inputs of the graph's input shape one after another, OUTPUT gets the logits of
each, float32, in the same order.
"""
import pathlib
import sys

import numpy as np
import onnx
import onnxruntime


def exact(path):
    """The graph with the weights of its quantized convolutions unsigned, 128 more, as their zero is.

    Where a processor has no VNNI, onnxruntime adds up two products of signed weights in 16 bits,
    which saturates; those of unsigned ones it widens before.
    """
    model = onnx.load(path)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "QLinearConv":
            for place in (3, 5):
                signed = onnx.numpy_helper.to_array(tensors[node.input[place]])
                name = f"{node.name}.{place}.unsigned"
                unsigned = (signed.astype(np.int16) + 128).astype(np.uint8)
                model.graph.initializer.append(onnx.numpy_helper.from_array(unsigned, name))
                node.input[place] = name
    return model.SerializeToString()


def saturates(path):
    processor = pathlib.Path("/proc/cpuinfo").read_text()
    return "avx2" in processor and "_vnni" not in processor and b"QLinearConv" in path.read_bytes()


graph = pathlib.Path(sys.argv[1])
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(
    exact(graph) if saturates(graph) else graph, options, providers=["CPUExecutionProvider"]
)
(source,), (target,) = session.get_inputs(), session.get_outputs()
inputs = np.fromfile(sys.argv[2], "<f4").reshape(-1, *source.shape[1:])
logits = [session.run([target.name], {source.name: one[None]})[0] for one in inputs]
np.concatenate(logits).astype("<f4").tofile(sys.argv[3])
