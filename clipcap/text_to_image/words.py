"""The words that stand for a generator's classes, and captions with exactly one of them."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from clipcap.errors import ClipcapError

WORDS_FILE = "words.json"  # beside the weights of a generator
IMAGENET_TABLE = Path(__file__).with_name("imagenet_words.json")
_PUNCTUATION = ".,;:!?\"'()[]"

Target = Literal["word", "sense", "mean"]


@dataclass(frozen=True)
class WordClasses:
    """What a word stands for: the class it was given to, that of its first sense, all classes below it."""

    given: int
    sense: int | None
    under: tuple[int, ...]

    def rows(self, target: Target) -> tuple[int, ...]:
        """The classes whose mean embedding is the target; none where the original's target is zeros."""
        if target == "mean":
            return self.under
        if target == "sense":
            return () if self.sense is None else (self.sense,)
        return (self.given,)


@dataclass(frozen=True)
class WordTable:
    """Words with their classes, and the name of each class."""

    words: dict[str, WordClasses]
    classes: tuple[str, ...]

    def words_in(self, caption: str, strip: bool = True) -> list[str]:
        """The table's words in a caption, each once, in order; `strip` takes punctuation off words first."""
        parts = caption.lower().split()
        if strip:
            parts = [part if part in self.words else part.strip(_PUNCTUATION) for part in parts]
        return [word for word in dict.fromkeys(parts) if word in self.words]

    def one_word_captions(self, captions: Iterable[str], strip: bool = True) -> list[tuple[str, str]]:
        """(caption, word) of the captions that hold exactly one of the words."""
        found = ((caption, self.words_in(caption, strip)) for caption in captions)
        return [(caption, words[0]) for caption, words in found if len(words) == 1]

    def name(self, word: str) -> str:
        """The name of the class that a word was given to."""
        return self.classes[self.words[word].given]


def load_words(path: Path, num_classes: int) -> WordTable:
    """Read a word table: the bundled one of ImageNet, or a generator's own `words.json`.

    The own one is `{"classes": [{"name": "cherry", "words": ["cherry", "cherries"]}, …]}`, one entry a class.

    Raises:
        ClipcapError: it is missing or no such table, or has another number of classes than the generator.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        table = _imagenet(content) if "words" in content else _own(content)
    except FileNotFoundError as error:
        raise ClipcapError(
            f"{path}: no such file: it names the words of each class, as "
            '{"classes": [{"name": "cherry", "words": ["cherry", "cherries"]}, …]}'
        ) from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ClipcapError(f"{path}: no table of words ({' '.join(str(error).split())[:100]})") from error
    if len(table.classes) != num_classes:
        raise ClipcapError(f"{path}: names {len(table.classes)} classes, the generator has {num_classes}")
    if not table.words:
        raise ClipcapError(f"{path}: holds no words")
    return table


def words_of_generator(folder: str | Path | None, num_classes: int) -> WordTable:
    """The table of a generator's folder, else ImageNet's where it has 1000 classes.

    Raises:
        ClipcapError: neither exists.
    """
    own = Path(folder) / WORDS_FILE if folder else None
    if own is not None and own.is_file():
        return load_words(own, num_classes)
    if num_classes == 1000:
        return load_words(IMAGENET_TABLE, num_classes)
    raise ClipcapError(
        f"the generator has {num_classes} classes, which are not ImageNet's: name their words in "
        f"{own or WORDS_FILE} or with --words FILE"
    )


def _imagenet(content: dict[str, Any]) -> WordTable:
    classes = tuple(str(name) for name in content["classes"])
    words = {}
    for word, entry in content["words"].items():
        numbers = [int(entry["class"]), *map(int, entry["under"])]
        sense = None if entry["sense"] is None else int(entry["sense"])
        if not all(0 <= number < len(classes) for number in (*numbers, sense or 0)) or len(numbers) < 2:
            raise ValueError(f"{word}: class out of range")
        words[str(word)] = WordClasses(numbers[0], sense, tuple(numbers[1:]))
    return WordTable(words, classes)


def _own(content: dict[str, Any]) -> WordTable:
    words: dict[str, WordClasses] = {}
    for number, entry in enumerate(content["classes"]):
        for word in entry["words"]:
            if word in words:
                raise ValueError(f"{word!r} stands for two classes")
            words[str(word).lower()] = WordClasses(number, number, (number,))
    return WordTable(words, tuple(str(entry["name"]) for entry in content["classes"]))
