"""`clipcap push`: a checkpoint to the hub."""

from __future__ import annotations

from clipcap.captioning.captioner import Captioner


def push(checkpoint: str, name: str, public: bool = False) -> str:
    """Upload a checkpoint with its card.

    Args:
        checkpoint: as `load_checkpoint` takes it.
        name: of the repository, USER/NAME.
        public: everybody may see it.
    Returns:
        its address.
    Raises:
        ClipcapError: it cannot be loaded or uploaded.
    """
    return Captioner.from_pretrained(checkpoint, device="cpu").push_to_hub(name, private=not public)
