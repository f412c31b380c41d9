"""What captions speak of, and the captions themselves. Knows nothing of torch or of models."""
