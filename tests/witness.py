"""Logits of a variant as onnxruntime computes them: witness.py GRAPH INPUTS OUTPUT

INPUTS holds float32 inputs of the graph's input shape one after another, OUTPUT gets the logits of
each, float32, in the same order.
"""
import sys

import numpy as np
import onnxruntime

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
(source,), (target,) = session.get_inputs(), session.get_outputs()
inputs = np.fromfile(sys.argv[2], "<f4").reshape(-1, *source.shape[1:])
logits = [session.run([target.name], {source.name: one[None]})[0] for one in inputs]
np.concatenate(logits).astype("<f4").tofile(sys.argv[3])
