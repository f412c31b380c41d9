"""inkserve and other model servers under the same load, on the same ONNX file."""
