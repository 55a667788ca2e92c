"""Captions as they are shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipcap.captioning.tidy import collapsed, tidy
from clipcap.runtime.text import as_cell, counted, from_cell, in_short, printable, without_folders


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


@pytest.mark.parametrize(
    "text",
    [
        "Un chien court ; il est content !",
        "« Bonjour » dit-il : c’est « oui » !",
        "«\u00a0Bonjour\u00a0» et 50\u202f%",
        "¿Qué hace el perro? ¡Corre!",
        "hij is 's morgens vroeg op de fiets",
        "50 % der Leute sind auf der Straße",
        "红色的车 在路上",
        "赤い車\u3000走る犬",
        "강아지가 달린다",
        "กินข้าว แล้ว",
        "एक कुत्ता दौड़ता है ।",
        "Собака бежит : быстро !",
        "كلب يركض ، سريع",
    ],
)
def test_other_languages_keep_their_spacing_and_signs(text):
    assert tidy(text) == text


@pytest.mark.parametrize(
    "raw, shown",
    [
        ("红 色 的 车 在 水 上 。", "红色的车在水上。"),
        ("一 辆 bmw 车 停 着 .", "一辆 bmw 车停着."),
        ("犬 が 走 る", "犬が走る"),
        ("un café , noir .", "un café, noir."),
        ("a café , with tea !", "a café, with tea!"),
    ],
)
def test_what_a_tokenizer_put_between_signs_goes_in_every_language(raw, shown):
    assert tidy(raw) == shown


@given(st.text())
def test_tidying_twice_changes_nothing_more(text):
    once = tidy(text)
    assert tidy(once) == once
    assert once == once.strip() and len(once.splitlines()) <= 1


@pytest.mark.parametrize(
    "raw, shown",
    [
        ("photos/crème brûlée 🍮.jpg", "photos/crème brûlée 🍮.jpg"),
        ("a\nb\tc\r\0.jpg", r"a\nb\tc\r\x00.jpg"),
        ("\x1b[2J\x9b31m", r"\x1b[2J\x9b31m"),
        ("gpj.\u202egnp\u2028", r"gpj.\u202egnp\u2028"),
        ("👩\u200d🍳 日本\u3000食", "👩\u200d🍳 日本\u3000食"),
        ("caf\udce9", r"caf\udce9"),
    ],
)
def test_what_a_terminal_would_obey_is_written_as_escapes(raw, shown):
    assert printable(raw) == shown


def test_in_short_a_text_is_its_beginning_in_one_line():
    assert in_short("a plate") == "a plate"
    assert in_short("a\nplate", 7) == r"a\nplate"
    assert in_short("a\x1bplate of rice", 7) == r"a\x1bplat…"


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", " =1", "＝1", "\r1", "'=1", "''-1"])
def test_what_a_spreadsheet_would_run_gets_a_sign_before_it(text):
    assert as_cell(text) == f"'{text}"


@pytest.mark.parametrize("text", ["", "a = b", "'tis a plate", "photos/-1.jpg", "2 - 1", "(=1)"])
def test_other_text_is_a_cell_as_it_is(text):
    assert as_cell(text) == text


@given(st.text() | st.text("'=+-@\t\n a"))
def test_cells_are_read_back_exactly(text):
    assert from_cell(as_cell(text)) == text
    assert as_cell(text)[:1] not in ("=", "+", "-", "@", "\t", "\r", "\n")


@given(st.text())
def test_printable_text_is_one_line_and_stays_as_it_is(text):
    once = printable(text)
    assert printable(once) == once
    assert len(once.splitlines()) <= 1


@pytest.mark.parametrize(
    ("images", "different"), [(4, 1), (7, 1), (8, 1), (8, 2), (12, 2), (29, 2), (30, 3), (100, 10), (1000, 1)]
)
def test_the_same_of_every_image_is_noticed_in_small_sets_too(images, different):
    captions = [f"a dog {i % different}." for i in range(images)]
    assert collapsed(captions) == different


@pytest.mark.parametrize(
    ("images", "different"), [(0, 0), (1, 1), (3, 1), (4, 2), (7, 2), (8, 3), (29, 3), (100, 11)]
)
def test_few_or_varied_captions_are_no_collapse(images, different):
    assert collapsed([f"a dog {i % different}." for i in range(images)]) == 0


def test_captions_of_signs_alone_are_told_apart():
    assert collapsed(["🍕", "🍣", "🍩", "🍎"]) == 0
    assert collapsed(["🍕"] * 4) == 1


@pytest.mark.parametrize(
    ("text", "shared"),
    [
        ("/home/ann/runs/best: mlp mapper, language model gpt2", "best: mlp mapper, language model gpt2"),
        ("/home/Ann Lee/food_val.pkl (ViT-B/32)", "food_val.pkl (ViT-B/32)"),
        ("hf:/srv/models/clip", "hf:clip"),
        (r"C:\Users\ann\x.pkl: none", "x.pkl: none"),
        ("open_clip:ViT-B-32/openai, data/food.pkl", "open_clip:ViT-B-32/openai, data/food.pkl"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("loss and/or score", "loss and/or score"),
    ],
)
def test_names_alone_are_left_of_whole_paths(text, shared):
    assert without_folders(text) == shared


def test_a_single_thing_is_no_plural():
    assert [counted(n, "image") for n in (0, 1, 2000)] == ["0 images", "1 image", "2,000 images"]
