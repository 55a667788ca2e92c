"""Objects that a caption names and no reference does (CHAIR, arXiv 1809.02156), over a list of words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics.tokenize import CaptionTokens
from clipcap.scoring.words import words_of

Names = dict[tuple[str, ...], str]  # the tokens of a word or phrase → the object that it names


def read_objects(path: str | Path) -> Names:
    """A list of objects: a line each, the name first and then other words for it, parted by commas.

    `dog, puppy` finds "a puppy", and also "dogs" and "puppies". Where words overlap the longest wins, so that
    `hot dog` is no dog. Lines that begin with # are left out.

    Raises:
        ClipcapError: it cannot be read, names no object, or names a word for two objects.
    """
    path = Path(path).expanduser()
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ClipcapError(f"--objects {path}: is not UTF-8 ({error.reason}): convert it (iconv -t UTF-8)") from error
    except OSError as error:
        raise ClipcapError(f"--objects {path}: cannot be read: {error.strerror}") from error
    names: Names = {}
    for line in lines:
        words = [word.strip() for word in line.split(",") if word.strip()]
        if not words or line.lstrip().startswith("#"):
            continue
        for tokens in words_of(words):
            for form in _forms(tokens):
                if names.setdefault(form, words[0]) != words[0]:
                    raise ClipcapError(
                        f"--objects {path}: '{' '.join(form)}' stands for {names[form]} and for {words[0]}: leave one"
                    )
    if not names:
        raise ClipcapError(f"--objects {path}: names no object: write a line each, such as `dog, puppy`")
    return names


def _forms(tokens: Sequence[str]) -> Iterable[tuple[str, ...]]:
    """A phrase, and its English plural."""
    if not tokens:
        return
    yield tuple(tokens)
    *first, last = tokens
    if last.endswith("y") and last[-2:-1] not in ("", *"aeiou"):
        yield (*first, last[:-1] + "ies")
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        yield (*first, last + "es")
    else:
        yield (*first, last + "s")
        if last.endswith("o"):
            yield (*first, last + "es")


def objects_in(tokens: CaptionTokens, names: Names, longest: int | None = None) -> set[str]:
    """The objects that a caption names."""
    longest = longest or max(map(len, names))
    found, place = set(), 0
    while place < len(tokens):
        for length in range(min(longest, len(tokens) - place), 0, -1):
            if name := names.get(tuple(tokens[place : place + length])):
                found.add(name)
                place += length - 1
                break
        place += 1
    return found


def chair_counts(
    captions: Sequence[CaptionTokens], references: Sequence[Sequence[CaptionTokens]], names: Names
) -> np.ndarray:
    """The objects of each caption.

    Args:
        captions: N, one of each image, as tokens.
        references: the human captions of each image.
        names: the objects looked for.
    Returns:
        float64 [N, 3]: objects named that no reference of the image names, objects named (each counts once a
        caption), and 1 where there is one of the first kind.
    """
    longest = max(map(len, names))
    rows = []
    for caption, several in zip(captions, references, strict=True):
        named = objects_in(caption, names, longest)
        known = set().union(*(objects_in(reference, names, longest) for reference in several))
        rows.append([len(named - known), len(named), bool(named - known)])
    return np.array(rows, dtype=np.float64).reshape(-1, 3)


def chair_of_counts(counts: np.ndarray) -> np.ndarray:
    """CHAIRi of summed counts [..., 3]: the share of the objects named that no reference names; 0 of none."""
    return counts[..., 0] / np.maximum(counts[..., 1], 1)
