"""Differentially private training (DP-SGD), and attacks on what a model tells about its training images."""
