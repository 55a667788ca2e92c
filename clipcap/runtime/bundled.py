"""The embedded default: a small CLIP, GPT-2 and mapper that know drawn plates of food, by the name `demo`."""

from __future__ import annotations

from pathlib import Path

DEMO = "demo"
FOLDER = Path(__file__).parents[1] / "demo" / "weights"
CLIP, LM, CAPTIONER = "clip.pt", "gpt2", "captioner"  # in FOLDER
GENERATOR, TEXT_MAPPING = "generator", "text_mapping"  # of text to picture, in FOLDER


def bundled(name: str, part: str) -> str:
    """The path of a bundled part where `name` asks for it; other names as they are (`./demo` is a folder)."""
    return str(FOLDER / part) if name == DEMO else name
