"""A model's folder, manifest and tensors, and the catalogue of the models that are served."""
