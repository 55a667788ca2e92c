"""Frozen CLIP encoders of every supported library, behind one interface."""
