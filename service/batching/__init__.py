"""Which rows run next, and when. Knows nothing of HTTP, ONNX or metrics."""
