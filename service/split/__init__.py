"""The service as several processes: HTTP workers and one engine.

Only `compose` and `__main__` import it.
"""
