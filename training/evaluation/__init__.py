"""Metrics of exported models, measured from model.onnx alone. Knows nothing of torch."""
