"""Measures inkserve, other servers and the bounds of the machine; nothing here is served or tested."""
