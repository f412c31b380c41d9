"""Metrics, logs, request ids and trace context. Knows nothing of requests' contents."""
