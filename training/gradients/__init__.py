"""Graphs of gradients: reverse-mode differentiation of a classifier's ONNX graph. Knows nothing of torch."""
