"""Names and widths of encoders, and what a name or a file tells of one."""

from __future__ import annotations

from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.models.encoders.openai_weights import WIDTHS, read_openai_weights
from clipcap.runtime.bundled import DEMO

IMPORTED = "import:"  # before the name of an encoder whose embeddings were made elsewhere

PREFIXES = ("hf:", "open_clip:", "timm:")  # of the names of libraries that `load_encoder` knows

_LIKELIEST = {512: "ViT-B/32", 640: "RN50x4", 768: "ViT-L/14", 1024: "RN50"}


def guess_encoder(dim: int) -> str | None:
    """The encoder that features of this width most likely come from, for files that do not say."""
    return _LIKELIEST.get(dim)


def is_resnet(name: str | None) -> bool | None:
    """Whether an encoder is a ResNet CLIP, by its name or its file; None where neither tells."""
    if name is not None and name not in WIDTHS and Path(name).is_file():
        try:
            return "visual.layer1.0.conv1.weight" in read_openai_weights(Path(name))
        except ClipcapError:
            return None
    if name is None or Path(name).is_absolute() or Path(name).exists():
        return None
    known = name.split("/")[0]
    if known.startswith(("hf:", "timm:", IMPORTED)):
        return None
    return known.removeprefix("open_clip:").startswith("RN")


def is_loadable(name: str) -> bool:
    """Whether a name means an encoder: one that `load_encoder` may know, or one of imported embeddings."""
    return name in WIDTHS or name == DEMO or name.startswith((*PREFIXES, IMPORTED)) or Path(name).exists()
