"""From a finished run to a published version: ONNX graph, parity with torch, metrics, manifest, card."""
