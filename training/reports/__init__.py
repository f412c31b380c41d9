"""Tables and pictures of published models, from their ONNX files alone."""
