"""Word clouds: what is counted, that no word covers another, files that are the same on every run."""

from __future__ import annotations

from collections import Counter
from itertools import combinations

import pytest
from PIL import Image
from support.small import feature_file

from clipcap.cli.main import main
from clipcap.images.grid import sheet_font
from clipcap.images.word_cloud import HEIGHT, WIDTH, cloud_svg, count_words, place_words

COUNTS = Counter(
    {f"{letter * 3}{number}": 200 - number for number, letter in enumerate("abcdefghijklmnopqrstuvwxyz" * 3)}
)


def box(one):
    left, _, right, _ = sheet_font(one.size).getbbox(one.word)
    wide, high = right - left, one.size * 1.1
    return one.x - wide / 2, one.y - high / 2, one.x + wide / 2, one.y + high / 2


def test_stop_words_and_single_letters_do_not_count():
    assert count_words(["A dog and the DOG's ball", "a dog, b"]) == {"dog": 2, "dog's": 1, "ball": 1}


def test_no_word_covers_another_or_leaves_the_picture():
    placed = place_words(COUNTS)
    assert len(placed) >= 30
    boxes = [box(one) for one in placed]
    assert all(a >= 0 and b >= 0 and c <= WIDTH and d <= HEIGHT for a, b, c, d in boxes)
    for one, other in combinations(boxes, 2):
        assert one[2] <= other[0] or one[0] >= other[2] or one[3] <= other[1] or one[1] >= other[3]


def test_the_commonest_word_is_the_largest():
    sizes = [one.size for one in place_words(Counter({"dog": 100, "cat": 25, "bird": 1}))]
    assert sizes == [72, 36, 12]


def test_words_are_escaped():
    assert "&lt;" in cloud_svg(place_words(Counter({"<b>": 3})))


@pytest.mark.parametrize("name", ["words.png", "words.svg"])
def test_features_info_draws_the_words_of_captions(tmp_path, name, capsys):
    path = feature_file(tmp_path / "x.pkl")
    files = []
    for number in (1, 2):
        out = tmp_path / f"{number}{name}"
        assert main(["features", "info", str(path), "--words", str(out)]) == 0
        files.append(out.read_bytes())
    assert files[0] == files[1]
    assert "commonest: plate 2" in capsys.readouterr().out
    if name.endswith("png"):
        assert Image.open(out).size == (WIDTH, HEIGHT)


def test_another_ending_is_refused(tmp_path, capsys):
    assert main(["features", "info", str(feature_file(tmp_path / "x.pkl")), "--words", "x.jpg"]) == 1
    assert "end the name in .svg, .png" in capsys.readouterr().err
