"""Fuzzes the decoding of bodies, guided by coverage: what inputs mean, how they start and change."""
