"""Faster ways to the same numbers: packed weights, shared prefixes, chunked losses."""
