"""Training runs: devices, seeds, checkpoints, metrics, and the folder that holds them."""
