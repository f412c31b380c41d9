"""The seam `Predictor` between HTTP and inference, and the predictor of this process."""
