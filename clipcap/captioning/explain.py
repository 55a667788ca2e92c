"""`clipcap explain`: what the mapper makes of a photo, in words."""

from __future__ import annotations

from clipcap.captioning.config import LoadConfig
from clipcap.captioning.load_captioner import load_captioner
from clipcap.options import at_least


def explain(config: LoadConfig, img: str, top: int = 5) -> str:
    """The `top` vocabulary words nearest to each prefix position of a photo, a line for each position.

    Raises:
        ClipcapError: no checkpoint, a photo that cannot be read, or `top` below 1.
    """
    at_least("top", top, 1)
    captioner = load_captioner(config, decode_only=True)
    top = min(top, captioner.model.token_embeddings.num_embeddings)
    return "\n".join(
        f"{position:3d}  " + "  ".join(f"{word!r} {cosine:.2f}" for word, cosine in found)
        for position, found in enumerate(captioner.explain(img, top))
    )
