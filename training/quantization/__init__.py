"""From a published classifier to its int8 version. Knows nothing of torch."""
