"""Bytes and JSON to arrays and back, pictures to digits, seeds to latents. Knows nothing of HTTP."""
