"""Text to picture: words → hidden states of a text model → class embeddings of a BigGAN-deep → pictures."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # what `_PUBLIC` loads when it is first asked for
    from clipcap.text_to_image.generator_files import load_generator

_PUBLIC = {"load_generator": "clipcap.text_to_image.generator_files"}
__all__ = ["load_generator"]


def __getattr__(name: str) -> object:  # torch is imported when first needed
    if name not in _PUBLIC:
        raise AttributeError(f"module 'clipcap.text_to_image' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
