"""Several published classifiers as one graph. Needs no torch."""
