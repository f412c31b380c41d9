"""Micro-benchmarks of inkserve's parts, for `make bench`."""
