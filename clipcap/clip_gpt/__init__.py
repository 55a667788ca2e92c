"""CLIP-GPT: one language model that reads and writes CLIP embeddings inside text (LAION's General-GPT)."""
