"""Trouble, injected into the running service: what is lost, what grows, and how long it takes to recover."""
