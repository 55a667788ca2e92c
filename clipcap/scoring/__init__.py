"""Scores of single captions that decoding and training use as well as evaluation: tokens, and CIDEr-D."""
