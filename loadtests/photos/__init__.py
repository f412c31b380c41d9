"""Photos of handwritten digits, drawn by a script, and how many of them a classifier reads."""
