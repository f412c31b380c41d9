"""Programs to read, run and copy; tests run each of them."""
