"""Scripts that put no blanks between words: Thai, Lao, Tibetan, Burmese, Khmer, kana, Chinese characters."""

from __future__ import annotations

from collections.abc import Iterable

_WITHOUT_BLANKS = (
    (0x0E00, 0x109F),
    (0x1780, 0x17FF),
    (0x3005, 0x3007),
    (0x3040, 0x30FF),
    (0x31F0, 0x31FF),
    (0x3400, 0x4DBF),
    (0x4E00, 0x9FFF),
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
_FIRST = chr(_WITHOUT_BLANKS[0][0])


def is_without_blanks(char: str) -> bool:
    """Whether a character is of such a script."""
    return any(first <= ord(char) <= last for first, last in _WITHOUT_BLANKS)


def lacks_blanks(text: str) -> bool:
    """Whether a text holds any such character."""
    return bool(text) and max(text) >= _FIRST and any(map(is_without_blanks, text))


def most_lack_blanks(texts: Iterable[str]) -> bool:
    """Whether most texts do."""
    found = list(map(lacks_blanks, texts))
    return 2 * sum(found) > len(found)
