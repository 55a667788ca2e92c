"""Readers of image-caption sets: each turns files as they are distributed into sorted records."""
