"""clipcap: frozen CLIP → mapping network → GPT-2 prefix → caption (ClipCap, arXiv 2111.09734)."""

from __future__ import annotations

from importlib import import_module

__version__ = "0.1.0"

_PUBLIC = {
    "Captioner": "clipcap.captioning.captioner",
    "ClipCaptionModel": "clipcap.models.caption_model",
    "ClipcapError": "clipcap.errors",
    "Features": "clipcap.features.feature_set",
    "classify": "clipcap.classification.classify",
    "load_encoder": "clipcap.models.encoders.load",
}
__all__ = ["Captioner", "ClipCaptionModel", "ClipcapError", "Features", "__version__", "classify", "load_encoder"]


def __getattr__(name: str) -> object:  # torch and transformers are imported when first needed
    if name not in _PUBLIC:
        raise AttributeError(f"module 'clipcap' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
