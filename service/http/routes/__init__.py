"""The routes that clients call, one module per route."""
