"""Pictures with their sentence, the current word in capitals: as a GIF, a grid or a folder."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw

from clipcap.errors import ClipcapError
from clipcap.images.grid import INK, MARGIN, PAPER, picture_grid, sheet_font, wrapped
from clipcap.images.write import write_picture
from clipcap.runtime.files import replaced_file, replaced_folder, writing

TEXT_SIZE, LINE = 16, 22  # pixels


@dataclass(frozen=True)
class Frame:
    """One picture of a text; `title` is the sentence with the current word in capitals."""

    picture: Image.Image
    title: str
    word: str


def frame_titles(words: Sequence[str]) -> list[str]:
    """For each word the sentence with that word in capitals."""
    return [" ".join([*words[:i], words[i].upper(), *words[i + 1 :]]) for i in range(len(words))]


def check_out(out: str | None) -> Path:
    """The place to write to.

    Raises:
        ClipcapError: none is given, its ending is unknown, or a file is in the folder's place.
    """
    if not out:
        raise ClipcapError("--out is missing: NAME.gif, NAME.png (a grid) or a folder")
    path = Path(out).expanduser()
    if path.suffix and path.suffix.lower() not in (".gif", ".png"):
        raise ClipcapError(f"--out {out}: write to NAME.gif, NAME.png (a grid) or a folder")
    if path.is_dir() if path.suffix else path.is_file():
        raise ClipcapError(f"--out {out}: is a {'folder' if path.suffix else 'file'}: choose another name")
    if not path.suffix and path.is_dir() and any(not item.name.endswith(".png") for item in path.iterdir()):
        raise ClipcapError(f"--out {out}: is a folder of other files: choose a new name")
    return path


def write_frames(frames: Sequence[Frame], path: Path, pause: float, width: int) -> Path:
    """Write frames, whole or not at all; the same frames give the same bytes.

    Args:
        frames: at least one.
        path: NAME.gif, NAME.png, or a folder.
        pause: seconds a frame of a GIF is shown.
        width: pixels of a shown picture's side; a folder holds the pictures as they are.
    Raises:
        ClipcapError: it cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with writing(path):
        if path.suffix.lower() == ".gif":
            pages = titled(frames, width)
            with replaced_file(path) as draft:
                first, *rest = [page.quantize(256, dither=Image.Dither.NONE) for page in pages]
                options = {"save_all": True, "append_images": rest, "duration": round(pause * 1000), "loop": 0}
                write_picture(first, draft, "GIF", optimize=False, disposal=2, **options)
        elif path.suffix.lower() == ".png":
            grid = picture_grid([frame.picture for frame in frames], [frame.title for frame in frames])
            with replaced_file(path) as draft:
                write_picture(grid, draft, "PNG")
        else:
            digits = len(str(len(frames) - 1))
            with replaced_folder(path) as draft:
                for number, frame in enumerate(frames):
                    name = re.sub(r"\W+", "", frame.word)[:40] or "word"
                    write_picture(frame.picture, draft / f"{number:0{digits}d}_{name}.png", "PNG")
    return path


def titled(frames: Sequence[Frame], width: int) -> list[Image.Image]:
    """Each picture, enlarged to `width`, above its title; all of one size."""
    font = sheet_font(TEXT_SIZE)
    lines = [wrapped(frame.title, font, width) for frame in frames]
    height = width + MARGIN + LINE * max(len(title) for title in lines)
    pages = []
    for frame, title in zip(frames, lines, strict=True):
        page = Image.new("RGB", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
        page.paste(frame.picture.convert("RGB").resize((width, width), Image.Resampling.BICUBIC), (MARGIN, MARGIN))
        pen = ImageDraw.Draw(page)
        for number, line in enumerate(title):
            pen.text((MARGIN, MARGIN + width + MARGIN // 2 + number * LINE), line, INK, font)
        pages.append(page)
    return pages
