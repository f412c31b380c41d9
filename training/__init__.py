"""Offline training of the shipped models, and their export to ONNX; never imported by the service."""
