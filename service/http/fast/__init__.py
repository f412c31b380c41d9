"""The fast path: requests answered inside uvicorn's HTTP protocol, without ASGI.

The only importer of uvicorn's internals.
"""
