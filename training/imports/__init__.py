"""Networks that other programs exported to ONNX: made classifiers of pictures that the service takes."""
