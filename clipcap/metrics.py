"""Caption metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from clipcap.errors import ClipcapError

_WORD = re.compile(r"\w+(?:'\w+)?")


def words(caption: str) -> list[str]:
    """Lower-case words of a caption, without punctuation."""
    return _WORD.findall(caption.lower())


def distinct_share(captions: Sequence[str]) -> float:
    """Share of different captions: near 0 where a model says the same of every image."""
    return len({" ".join(words(c)) for c in captions}) / max(1, len(captions))


def cider_scorer() -> Any:
    """The CIDEr-D scorer of pycocoevalcap; needs neither Java nor network.

    Raises:
        ClipcapError: it is not installed.
    """
    try:
        from pycocoevalcap.cider.cider import Cider
    except ImportError as error:
        raise ClipcapError("CIDEr needs the pycocoevalcap package: pip install 'clipcap[eval]'") from error
    return Cider()


def cider(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """CIDEr-D of a corpus (arXiv 1411.5726) on lower-case words.

    Args:
        candidates: one caption per image.
        references: the human captions of each image.
    Returns:
        the mean over images, 0 to 10; 0 where there is one image only, since every n-gram is in every document.
    """
    if not candidates:
        return 0.0
    found = {i: [" ".join(words(c))] for i, c in enumerate(candidates)}
    wanted = {i: [" ".join(words(r)) for r in several] for i, several in enumerate(references)}
    return float(cider_scorer().compute_score(wanted, found)[0])
