"""Dual encoders that can be trained: OpenAI's CLIP at any size, or two towers of transformers."""
