"""Nearest neighbours over features: exact from disk, or approximate by faiss."""
