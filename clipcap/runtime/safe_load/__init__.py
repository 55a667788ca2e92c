"""Readers of pickles and weights that run no code from the file."""
