"""The HTTP routes, one module per protocol; none of them knows how a model is run."""
