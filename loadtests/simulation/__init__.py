"""A simulation of many pods: what one pod was measured to cost, and what a cluster of such pods does."""
