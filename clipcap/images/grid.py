"""Pictures side by side, each with its label, as one picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from clipcap.images.read import ImageError, open_image

CELL, GAP, MARGIN = 240, 16, 24  # pixels
LABEL_SIZE, TITLE_SIZE, LINE = 15, 22, 1.3  # pixels, and lines per line
INK, PALE, PAPER = (32, 32, 36), (120, 120, 128), (252, 251, 248)


def picture_grid(
    pictures: Sequence[Image.Image | str | Path | None],
    labels: Sequence[str],
    title: str = "",
    columns: int | None = None,
    notes: Sequence[str] = (),
) -> Image.Image:
    """Draw pictures in rows, with their labels below; no text is cut, rows grow with their longest label.

    Args:
        pictures: images or paths; if one is None or unreadable, the reason is drawn in its place.
        labels: one for each.
        title: above all.
        columns: by default as many as make the grid about square.
        notes: one for each, set below its label in a paler colour.
    """
    columns = columns or max(1, math.ceil(math.sqrt(len(pictures))))
    width = 2 * MARGIN + columns * CELL + (columns - 1) * GAP
    label_font, title_font = sheet_font(LABEL_SIZE), sheet_font(TITLE_SIZE)
    titles = wrapped(title, title_font, width - 2 * MARGIN)
    wrapped_labels = [wrapped(label, label_font, CELL) for label in labels]
    rows = [range(i, min(i + columns, len(pictures))) for i in range(0, len(pictures), columns)]
    wrapped_notes = [wrapped(note, label_font, CELL) for note in notes] or [[]] * len(pictures)
    lines = [len(label) + len(note) for label, note in zip(wrapped_labels, wrapped_notes, strict=True)]
    heights = [CELL + GAP // 2 + _height(max(lines[i] for i in row), LABEL_SIZE) + GAP for row in rows]
    top = MARGIN + (_height(len(titles), TITLE_SIZE) + GAP if titles else 0)
    sheet = Image.new("RGB", (width, top + sum(heights) + MARGIN - GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    _write(pen, (MARGIN, MARGIN), titles, title_font)
    for row, height in zip(rows, heights, strict=True):
        for column, i in enumerate(row):
            left = MARGIN + column * (CELL + GAP)
            _place(sheet, pen, pictures[i], left, top)
            below = top + CELL + GAP // 2
            _write(pen, (left, below), wrapped_labels[i], label_font)
            note_top = below + _height(len(wrapped_labels[i]), LABEL_SIZE)
            _write(pen, (left, note_top), wrapped_notes[i], label_font, PALE)
        top += height
    return sheet


def wrapped(text: str, font: ImageFont.FreeTypeFont, width: int) -> list[str]:
    """Wrap a text into lines of at most `width` pixels, at blanks, or within words that are wider."""
    lines = [""]
    for word in text.split():
        joined = f"{lines[-1]} {word}".strip()
        if font.getlength(joined) <= width:
            lines[-1] = joined
            continue
        lines.append("")
        for letter in word:
            if font.getlength(lines[-1] + letter) > width:
                lines.append("")
            lines[-1] += letter
    return [line for line in lines if line]


def _place(
    sheet: Image.Image, pen: ImageDraw.ImageDraw, picture: Image.Image | str | Path | None, left: int, top: int
) -> None:
    """Put a picture in the middle of its cell, or the reason why it is missing."""
    try:
        if picture is None:
            raise ImageError("", "no path to the picture")
        image = open_image(picture)
    except ImageError as error:
        pen.rectangle((left, top, left + CELL - 1, top + CELL - 1), outline=PALE)
        lines = wrapped(str(error).removeprefix(": "), sheet_font(LABEL_SIZE), CELL - 2 * GAP)
        _write(pen, (left + GAP, top + GAP), lines, sheet_font(LABEL_SIZE), PALE)
        return
    scale = CELL / max(image.size)
    image = image.resize([max(1, round(length * scale)) for length in image.size], Image.Resampling.LANCZOS)
    sheet.paste(image, (left + (CELL - image.width) // 2, top + (CELL - image.height) // 2))


def _write(
    pen: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    lines: Sequence[str],
    font: ImageFont.FreeTypeFont,
    ink: tuple[int, int, int] = INK,
) -> None:
    left, top = corner
    for number, line in enumerate(lines):
        pen.text((left, top + _height(number, font.size)), line, ink, font)


def _height(lines: int, size: float) -> int:
    return math.ceil(lines * size * LINE)


@cache
def sheet_font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu, which comes with matplotlib and knows most alphabets."""
    import matplotlib  # takes a third of a second, and few runs draw

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
