"""Options of the web page."""

from __future__ import annotations

from dataclasses import dataclass

from clipcap.captioning.config import LoadConfig
from clipcap.options import Options, at_least, option, part, within


@dataclass(frozen=True)
class AppConfig(Options, group="page"):
    """Options of the web page: its tabs, its address, its limits."""

    load: LoadConfig = part(LoadConfig)
    index: str | None = option(
        None, "adds a tab that searches these pictures by text: features, an index, or a folder of clip-retrieval"
    )
    draw: str | None = option(
        None,
        "a tab that draws texts with this mapping of train-draw (default: the bundled one beside the demo model)",
    )
    generator: str | None = option(None, "generator of the tab that draws (default: the mapping's)")
    clip_gpt: str | None = option(None, "adds a tab that shows which pictures of --index this CLIP-GPT imagines")
    host: str = option("127.0.0.1", "address to listen on; 0.0.0.0 lets other machines in")
    port: int = option(7860, "port to listen on (0: any that is free)")
    max_mb: int = option(20, "largest file accepted, in MB")
    max_megapixels: int = option(64, "largest photo decoded, in millions of pixels")
    max_photos: int = option(200, "most photos in one request")

    def __post_init__(self) -> None:
        within("port", self.port, 0, 65535)
        for name in ("max_mb", "max_megapixels", "max_photos"):
            at_least(name, getattr(self, name), 1)
