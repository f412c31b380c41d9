"""Bytes and JSON <-> arrays, pictures to digits, latents from seeds. Knows nothing of HTTP."""
