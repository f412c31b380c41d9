"""HTTP in front of a predictor. Knows nothing of engines, queues or devices."""
