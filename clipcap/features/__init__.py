"""The feature file: image embeddings with their captions, as one pickle or as a memory-mapped folder."""
