"""A word cloud of texts: commoner words are larger; the same texts produce the same picture."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image, ImageDraw

from clipcap.images.grid import PAPER, sheet_font
from clipcap.images.write import write_picture

WIDTH, HEIGHT = 800, 480
MOST_WORDS, SMALLEST = 100, 12  # words, and the size of letters in pixels
LARGEST = (72, 42)  # the second where the first leaves no room for most words
COLOURS = ("#1f5f8b", "#b3541e", "#2e7d4f", "#7a3e8e", "#8c2f39", "#4a5568")
# Words that do not describe a picture.
STOP_WORDS = frozenset(
    """
    a an and are as at be been being both but by can do does each few for from had has have he her here him his
    how i if in into is it its just many more most my near next no not of off on one onto or other our out over
    own same she so some something such than that the their them then there these they this those through to too
    two three under up very was we were what when where which while who will with you your
    """.split()
)
_WORD = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")


@dataclass(frozen=True)
class PlacedWord:
    """A word of the cloud: its middle and the size of its letters in pixels, and its count in the texts."""

    word: str
    count: int
    x: float
    y: float
    size: int


def count_words(texts: Iterable[str]) -> Counter[str]:
    """Count each word of the texts, without regard to case, stop words and single letters."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(word for word in _WORD.findall(text.lower()) if len(word) > 1 and word not in STOP_WORDS)
    return counts


def place_words(counts: Counter[str], most: int = MOST_WORDS) -> list[PlacedWord]:
    """Place the commonest words along a spiral, none over another; what has no room is left out."""
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:most]
    if not ranked:
        return []
    placed: list[PlacedWord] = []
    for largest in LARGEST:
        placed = _placed(ranked, largest)
        if len(placed) > 0.8 * len(ranked):
            break
    return placed


def _placed(ranked: list[tuple[str, int]], largest: int) -> list[PlacedWord]:
    placed, boxes = [], []
    for word, count in ranked:
        size = max(SMALLEST, round(largest * math.sqrt(count / ranked[0][1])))
        box = sheet_font(size).getbbox(word)
        wide, high = box[2] - box[0] + 6, size * 1.15
        place = _free_place(wide, high, boxes)
        if place:
            boxes.append((place[0] - wide / 2, place[1] - high / 2, place[0] + wide / 2, place[1] + high / 2))
            placed.append(PlacedWord(word, count, *place, size))
    return placed


def _free_place(
    wide: float, high: float, boxes: list[tuple[float, float, float, float]]
) -> tuple[float, float] | None:
    """The first place on the spiral where a box of this size touches no other and stays in the picture."""
    for step in range(1500):
        angle = 0.35 * step
        x = WIDTH / 2 + 0.28 * step * math.cos(angle) * WIDTH / HEIGHT / 1.2
        y = HEIGHT / 2 + 0.28 * step * math.sin(angle) / 1.2
        left, top, right, bottom = x - wide / 2, y - high / 2, x + wide / 2, y + high / 2
        inside = left >= 4 and top >= 4 and right <= WIDTH - 4 and bottom <= HEIGHT - 4
        if inside and all(right <= a or left >= c or bottom <= b or top >= d for a, b, c, d in boxes):
            return x, y
    return None


def cloud_picture(placed: Iterable[PlacedWord]) -> Image.Image:
    """The cloud as a picture."""
    page = Image.new("RGB", (WIDTH, HEIGHT), PAPER)
    pen = ImageDraw.Draw(page)
    for number, one in enumerate(placed):
        pen.text((one.x, one.y), one.word, COLOURS[number % len(COLOURS)], sheet_font(one.size), anchor="mm")
    return page


def cloud_svg(placed: Iterable[PlacedWord]) -> str:
    """The cloud as SVG, each word with its number as a tooltip."""
    words = "".join(
        f'<text x="{one.x:.1f}" y="{one.y:.1f}" font-size="{one.size}" fill="{COLOURS[number % len(COLOURS)]}" '
        f'text-anchor="middle" dominant-baseline="central"><title>{one.count:,}</title>{escape(one.word)}</text>'
        for number, one in enumerate(placed)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        f'font-family="DejaVu Sans, sans-serif">{words}</svg>\n'
    )


def write_cloud(texts: Iterable[str], path: Path, kind: str) -> Counter[str]:
    """Write the cloud of texts, `kind` .svg or .png; the words with their numbers."""
    counts = count_words(texts)
    placed = place_words(counts)
    if kind == ".svg":
        path.write_text(cloud_svg(placed), encoding="utf-8")
    else:
        write_picture(cloud_picture(placed), path, "PNG")
    return counts
