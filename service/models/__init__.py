"""What a model is: its manifest, its tensors, the catalogue of those that are served."""
