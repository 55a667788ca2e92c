"""Captions to train on, of a text file, a feature file or any set that `parse` reads."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.sources.config import SourceConfig
from clipcap.sources.readers import READERS
from clipcap.sources.textfiles import read_lines

_NUMBERED = re.compile(r"(\S+)#\d+\t(.*)")  # Flickr8k.token.txt


@dataclass(frozen=True)
class Captions:
    """Captions for training and for validation, no picture's in both."""

    train: list[str]
    val: list[str]


def read_captions(path: str, source: str, val_share: float, seed: int) -> Captions:
    """Read captions; a set's own `val` split counts, else a share of the pictures (or lines) is held out.

    Args:
        path: a .txt with one caption a line (or `NAME#0<tab>caption`), a feature file, or the data of a source.
        source: kind of the set.
        val_share: share to hold out.
        seed: of the choice.
    Raises:
        ClipcapError: no such file, or no captions in it.
    """
    place = Path(path).expanduser()
    groups: list[tuple[str | None, list[str]]]
    if place.is_file() and place.suffix.lower() == ".txt" and source == "custom":
        groups = _group_lines(read_lines(place))
    elif place.suffix == ".pkl" or (place / "img_emb").is_dir():
        groups = [(None, texts) for texts in read_features(place).captions_by_row()]
    else:
        records = READERS[source](SourceConfig(data_path=path)).records
        groups = [(record.split, list(record.captions)) for record in records]
    captions = _split(groups, val_share, seed)
    if not captions.train:
        raise ClipcapError(f"{path}: holds no captions to train on")
    return captions


def _group_lines(lines: Iterable[str]) -> list[tuple[str | None, list[str]]]:
    groups: dict[str, list[str]] = {}
    for number, line in enumerate(lines):
        numbered = _NUMBERED.fullmatch(line.strip())
        name, caption = numbered.groups() if numbered else (str(number), line)
        if caption.strip():
            groups.setdefault(name, []).append(" ".join(caption.split()))
    return [(None, texts) for texts in groups.values()]


def _split(groups: list[tuple[str | None, list[str]]], val_share: float, seed: int) -> Captions:
    train = [texts for split, texts in groups if split in (None, "train", "restval")]
    val = [texts for split, texts in groups if split == "val"]
    if not val and len(train) > 1:
        order = list(range(len(train)))
        Random(seed).shuffle(order)
        held = set(order[: max(1, round(len(train) * val_share))])
        val = [texts for number, texts in enumerate(train) if number in held]
        train = [texts for number, texts in enumerate(train) if number not in held]
    return Captions([text for texts in train for text in texts], [text for texts in val for text in texts])
