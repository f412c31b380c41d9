"""The Open Inference Protocol over gRPC: a server beside HTTP's, over the same predictor."""
