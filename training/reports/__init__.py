"""Tables and pictures of published classifiers, from their ONNX files alone."""
