"""The embedded default: a small CLIP, GPT-2 and mapper that know drawn plates of food, by the name `demo`."""

from __future__ import annotations

from pathlib import Path

DEMO = "demo"
TUNED = "demo-tuned"  # the language model of the bundled captioner, tuned with its mapper
FOLDER = Path(__file__).parents[1] / "demo" / "weights"
CLIP, LM, TUNED_LM, CAPTIONER = "clip.pt", "gpt2", "gpt2_tuned", "captioner"  # in FOLDER
GENERATOR, TEXT_MAPPING = "generator", "text_mapping"  # of text to picture, in FOLDER


def bundled(name: str, part: str) -> str:
    """The path of a bundled part where `name` asks for it; other names as they are (`./demo` is a folder)."""
    if name == TUNED and part == LM:
        return str(FOLDER / TUNED_LM)
    return str(FOLDER / part) if name == DEMO else name
