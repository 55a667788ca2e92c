"""Photos for the faults: coarse random colours, each with captions of its own."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
from PIL import Image

_WORDS = ("red", "blue", "round", "small", "old", "bright"), ("plate", "cup", "table", "apple", "egg")


def draw_set(folder: Path, images: int, few: int) -> list[str]:
    """`0.png` …, `captions.csv` of all of them and `few.csv` of the first; returns the captions."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(images):
        blocks = np.random.default_rng(number).integers(0, 256, (4, 5, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((40, 32), Image.Resampling.BICUBIC).save(folder / f"{number}.png")
        adjective, noun = _WORDS[0][number % 6], _WORDS[1][number % 5]
        rows += [(f"{number}.png", f"a {adjective} {noun}"), (f"{number}.png", f"the {noun} is {adjective}.")]
    for name, chosen in (("captions.csv", rows), ("few.csv", rows[: 2 * few])):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("image", "caption"), *chosen])
    return [caption for _, caption in rows]
