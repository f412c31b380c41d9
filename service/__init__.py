"""inkserve's HTTP service: batches rows across requests and runs ONNX models on one device."""
