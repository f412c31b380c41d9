"""One model on one device; the only package that imports onnxruntime.

session: opens a session on a provider. engine: runs batches. buffers: the tensors that a session runs on.
cuda: CUDA's libraries and pinned memory. streams: CUDA's streams, events and asynchronous copies.
"""
