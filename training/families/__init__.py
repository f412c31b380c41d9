"""The model families: one file each, from hyperparameters to export, and what they share."""
