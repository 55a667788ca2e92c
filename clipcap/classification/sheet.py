"""Photos beside the bars of their labels, the true one green and a wrong one orange (CLIP, figure 21)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw

from clipcap.images.grid import INK, PALE, PAPER, sheet_font
from clipcap.images.read import ImageError, open_image
from clipcap.runtime.text import in_short

PHOTO, BARS, BAR, GAP = 150, 330, 24, 18  # pixels
COLUMNS, MOST = 2, 60  # photos per row, and per sheet
GREEN, ORANGE, GREY = (122, 184, 96), (238, 150, 74), (190, 194, 204)

Top = Sequence[tuple[str, float]]  # labels with their probabilities, best first


def sheet(photos: Sequence[str | Path], tops: Sequence[Top], truth: Sequence[str | None]) -> Image.Image:
    """Draw at most `MOST` photos with their first labels."""
    photos, tops, truth = photos[:MOST], tops[:MOST], truth[:MOST]
    bars = max(len(top) for top in tops)
    height = max(PHOTO, bars * BAR + BAR) + GAP
    columns = min(COLUMNS, len(photos))
    rows = -(-len(photos) // columns)
    page = Image.new("RGB", (columns * (PHOTO + BARS + 2 * GAP) + GAP, rows * height + GAP), PAPER)
    pen = ImageDraw.Draw(page)
    for number, (photo, top, label) in enumerate(zip(photos, tops, truth, strict=True)):
        left = GAP + number % columns * (PHOTO + BARS + 2 * GAP)
        above = GAP + number // columns * height
        _photo(page, pen, photo, left, above)
        pen.text((left + PHOTO + GAP, above), in_short(label or Path(photo).name, 34), INK, sheet_font(14))
        for place, (name, probability) in enumerate(top):
            colour = GREY if label is None else GREEN if name == label else ORANGE if place == 0 else GREY
            _bar(pen, left + PHOTO + GAP, above + BAR * (place + 1), name, probability, colour)
    return page


def _photo(page: Image.Image, pen: ImageDraw.ImageDraw, photo: str | Path, left: int, above: int) -> None:
    try:
        image = open_image(photo)
    except ImageError:
        pen.rectangle((left, above, left + PHOTO - 1, above + PHOTO - 1), outline=PALE)
        return
    scale = PHOTO / max(image.size)
    image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    page.paste(image, (left + (PHOTO - image.width) // 2, above))


def _bar(
    pen: ImageDraw.ImageDraw, left: int, above: int, label: str, probability: float, colour: tuple[int, int, int]
) -> None:
    length = round((BARS - 60) * probability)
    pen.rectangle((left, above + 2, left + max(1, length), above + BAR - 3), fill=colour)
    pen.text((left + 4, above + 4), in_short(label, 34), INK, sheet_font(13))
    pen.text((left + BARS - 52, above + 4), f"{100 * probability:.1f} %", INK, sheet_font(13))
