"""One model on one device. The only importer of onnxruntime."""
