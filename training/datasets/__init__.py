"""The images: IDX files fetched, verified, read and split. Knows nothing of torch."""
