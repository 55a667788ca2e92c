"""CLIP-GPT: one language model that reads and writes CLIP embeddings inside text (LAION's General-GPT)."""

from __future__ import annotations

from clipcap.interleaved.captioner import ClipGptCaptioner
from clipcap.interleaved.checkpoint import load_clip_gpt
from clipcap.interleaved.model import ClipGPT
from clipcap.interleaved.sequences import ClipIn, ClipOut, InterleavedBatch, Layout, Tokens
from clipcap.interleaved.writing import continue_sequence

__all__ = [
    "ClipGPT",
    "ClipGptCaptioner",
    "ClipIn",
    "ClipOut",
    "InterleavedBatch",
    "Layout",
    "Tokens",
    "continue_sequence",
    "load_clip_gpt",
]
