"""Captions as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap.text import tidy


@pytest.mark.parametrize(
    "raw, shown",
    [
        (" A plate of sushi .", "A plate of sushi."),
        ("eggs , bacon and toast !", "eggs, bacon and toast!"),
        ("a ( red ) apple", "a (red) apple"),
        ("it 's what they do n't have", "it's what they don't have"),
        ("50 % off ; why ?", "50% off; why?"),
        ("line\none\r\n\ttwo  three", "line one two three"),
        ("caf\ufffd\x00\x07 au lait\u2028", "caf au lait"),
        ("crème brûlée 🍮 – 日本の", "crème brûlée 🍮 – 日本の"),
        ("👩\u200d🍳 cooks", "👩\u200d🍳 cooks"),
        ("a 'fresh' 7 o'clock salad", "a 'fresh' 7 o'clock salad"),
        ("", ""),
    ],
)
def test_tidied(raw, shown):
    assert tidy(raw) == shown


@given(st.text())
def test_tidying_twice_changes_nothing_more(text):
    once = tidy(text)
    assert tidy(once) == once
    assert once == once.strip() and len(once.splitlines()) <= 1
