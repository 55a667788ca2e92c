"""`clipcap slideshow`: stored pictures of a sentence, shown word by word."""

from __future__ import annotations

from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.images.folders import in_natural_order, list_folder, require_folder
from clipcap.images.kinds import is_image_name
from clipcap.images.read import open_image
from clipcap.runtime.places import writes_to
from clipcap.text_to_image.config import SlideshowConfig
from clipcap.text_to_image.frames import Frame, check_out, frame_titles, write_frames


@writes_to("config.out")
def slideshow(folder: str, config: SlideshowConfig) -> Path:
    """Write the pictures of a folder as a GIF or a grid, picture i under the sentence with word i in capitals.

    Pictures come in natural order: x_2.png before x_10.png.

    Raises:
        ClipcapError: no pictures, or another number of them than words; a picture that cannot be read.
    """
    path = check_out(config.out)
    if not path.suffix:
        raise ClipcapError(f"--out {config.out}: write to NAME.gif or NAME.png")
    place = require_folder(folder, "FOLDER")
    names = [name for name in list_folder(place)[1] if is_image_name(name) and name.startswith(config.mask)]
    words = config.text.split()
    if len(names) != len(words):
        raise ClipcapError(
            f"{folder}: {len(names)} pictures are called {config.mask or ''}*, the text has {len(words)} words: "
            f"one picture a word is needed"
        )
    pictures = [open_image(place / name) for name in in_natural_order(names)]
    frames = [Frame(*parts) for parts in zip(pictures, frame_titles(words), words, strict=True)]
    return write_frames(frames, path, config.pause, config.width)
