"""Objects that a caption names and no reference does."""

from __future__ import annotations

import pytest

from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics.objects import objects_in, read_objects
from clipcap.evaluation.metrics.score import CHAIR_CAPTIONS, CHAIR_OBJECTS, score

LIST = "# animals\ndog, puppy\ncat, kitten\nhot dog, frankfurter\nbus\ntomato\n\nwine glass\n"


@pytest.fixture
def words(tmp_path):
    path = tmp_path / "objects.txt"
    path.write_text(LIST)
    return path


@pytest.mark.parametrize(
    ("caption", "objects"),
    [
        ("two puppies and a kitten", {"dog", "cat"}),
        ("a hot dog on a plate", {"hot dog"}),
        ("a hot day for a dog", {"dog"}),
        ("buses and tomatoes", {"bus", "tomato"}),
        ("wine glasses", {"wine glass"}),
        ("a category of dogma", set()),
    ],
)
def test_names_other_words_plurals_and_phrases_are_found(words, caption, objects):
    assert objects_in(caption.split(), read_objects(words)) == objects


def test_an_object_that_no_reference_names_counts_once_a_caption(words):
    captions = ["a dog and a cat and another cat", "a bus", "nothing here"]
    references = [["a puppy sleeps", "the dog"], ["a bus on a road"], ["a dog"]]
    found = score(captions, references, with_java=False, objects=read_objects(words))
    assert found.corpus[CHAIR_OBJECTS] == pytest.approx(1 / 3)  # dog, cat, bus: the cat
    assert found.corpus[CHAIR_CAPTIONS] == pytest.approx(1 / 3)
    assert found.per_image[CHAIR_OBJECTS].tolist() == [0.5, 0, 0]
    low, high = found.interval(CHAIR_OBJECTS)
    assert low <= 1 / 3 <= high


@pytest.mark.parametrize(
    ("text", "message"),
    [("# nothing\n", "names no object"), ("dog\ncat, dog\n", "'dog' stands for dog and for cat"),
     (b"caf\xe9\n", "not UTF-8")],
)  # fmt: skip
def test_a_list_that_cannot_be_used_is_one_clear_line(tmp_path, text, message):
    path = tmp_path / "objects.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ClipcapError, match=message):
        read_objects(path)
    with pytest.raises(ClipcapError, match="cannot be read"):
        read_objects(tmp_path / "none.txt")
