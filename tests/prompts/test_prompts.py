"""Retrieved captions and words: what is found, what is left out, and how it becomes tokens."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from support.small import META, feature_file
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Content
from clipcap.features.files import read_features, write_features, write_parts
from clipcap.prompts.datastore import Datastore
from clipcap.prompts.entities import Entities, fitting
from clipcap.prompts.neighbours import LISTED, neighbours
from clipcap.prompts.template import MOST_WORDS, TEXT_TOKENS, PromptText, padded

MANY = [f"{caption} number {n}" for n in range(3) for caption in CAPTIONS]


def open_store(path) -> Datastore:
    return Datastore.open(path, META.encoder, META.encoder_weights_id, 32, "this test")


@pytest.fixture
def data(tmp_path):
    return feature_file(tmp_path / "data.pkl", MANY)


def with_copies(path, rows: torch.Tensor, captions) -> Datastore:
    """A datastore of these rows, whose image ids tell nothing."""
    ids = [f"other{i}" for i in range(len(rows))]
    write_features(
        path, embeddings=rows, image_ids=ids, image_paths=[None] * len(rows), captions=[(c,) for c in captions],
        meta=META,
    )  # fmt: skip
    return open_store(path)


def test_the_image_itself_and_its_near_copies_are_no_neighbours(data, tmp_path):
    rows = read_features(data).rows(slice(None))
    copies = torch.cat([rows, 3 * rows + 1e-4 * torch.randn(rows.shape), rows[:2] + 0.2 * torch.randn(2, 32)])
    store = with_copies(tmp_path / "copies.pkl", copies, [*MANY, *MANY, "near", "near"])
    near = store.near(rows, 4)
    assert (near.rows >= 0).all()
    for row, found in enumerate(near.rows.tolist()):
        assert row not in found and row + len(rows) not in found
    assert near.rows[0, 0] == 2 * len(rows)  # a like picture of another scene stays
    cosines = F.cosine_similarity(rows[:, None], copies[torch.from_numpy(near.rows).long()], dim=2)
    np.testing.assert_allclose(near.scores, cosines, atol=1e-5)
    assert (np.diff(near.scores) <= 0).all()


def test_an_image_with_several_rows_is_one_neighbour(tmp_path):
    rows = torch.eye(6, 32) + 0.5
    write_features(
        tmp_path / "s.pkl", embeddings=rows, image_ids=["a", "a", "b", "b", "c", "d"], image_paths=[None] * 6,
        captions=[(f"caption {i}",) for i in range(6)], meta=META,
    )  # fmt: skip
    near = open_store(tmp_path / "s.pkl").near(torch.ones(1, 32), 5)
    found = [row for row in near.rows[0].tolist() if row >= 0]
    assert len(found) == 4 and near.rows[0, 4] == -1


def test_texts_of_the_image_itself_are_left_out_by_their_words(tmp_path):
    rows = np.random.default_rng(0).standard_normal((6, 32)).astype(np.float32)
    texts = ["A red apple.", "a red apple", "two eggs", "a cake", "some soup", "tea"]
    write_parts(
        tmp_path / "texts", [Content(rows, [str(i) for i in range(6)], [None] * 6, [(t,) for t in texts])], META,
        tower="text",
    )  # fmt: skip
    store = open_store(tmp_path / "texts")
    assert store.tower == "text"
    near = store.near(torch.from_numpy(rows[:1]), 6, [["a red  apple ."]])
    assert sorted(near.rows[0].tolist()) == [-1, -1, 2, 3, 4, 5]
    assert store.near(torch.from_numpy(rows[:1]), 6).rows[0, 0] == 0


def test_neighbours_are_searched_once_and_again_when_the_datastore_changes(data, tmp_path):
    features, store = read_features(data), open_store(data)
    first = neighbours(features, store)
    assert first.rows.shape == (len(MANY), LISTED) and first.rows.dtype == np.int32
    [cache] = tmp_path.glob("data.pkl.neighbours-*.arrays")
    written = cache.stat().st_mtime_ns
    again = neighbours(features, open_store(data))
    assert cache.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first.rows, again.rows)
    other = open_store(feature_file(tmp_path / "other.pkl", MANY, seed=1))
    assert not np.array_equal(neighbours(features, other).rows, first.rows)
    assert len(list(tmp_path.glob("data.pkl.neighbours-*.arrays"))) == 2


def test_a_datastore_whose_first_images_have_no_captions_serves(tmp_path):
    assert open_store(feature_file(tmp_path / "d.pkl", [*[()] * 200, "a cake"])).some_captions() == ["a cake"]


@pytest.mark.parametrize("wrong", ["encoder", "captions"])
def test_a_datastore_that_cannot_serve_is_refused_in_a_line(tmp_path, wrong):
    path = feature_file(tmp_path / "d.pkl", [() for _ in MANY] if wrong == "captions" else MANY)
    with pytest.raises(ClipcapError, match="holds no captions" if wrong == "captions" else "other-clip") as error:
        Datastore.open(path, "tiny-clip" if wrong == "captions" else "other-clip", None, 32, "this test")
    assert "\n" not in str(error.value)


def test_a_datastore_is_told_by_what_it_holds_and_not_by_its_place(tmp_path):
    one, moved = (feature_file(tmp_path / name, MANY) for name in ("a.pkl", "b.pkl"))
    other = feature_file(tmp_path / "c.pkl", [*MANY[1:], MANY[0]])
    assert open_store(one).fingerprint() == open_store(moved).fingerprint() != open_store(other).fingerprint()


@pytest.mark.parametrize("kind", ["captions", "entities"])
def test_prompts_are_no_longer_than_the_checkpoint_allows(tokenizer, kind):
    text = PromptText(tokenizer, kind, 3)
    longest = text.longest(CAPTIONS)
    stored = PromptText(tokenizer, kind, 3, longest)
    endless = ["a very " * 40] * 6
    [known], [cut], [none] = (stored.prompts([texts]) for texts in (CAPTIONS[:3], endless, []))
    assert known == text.prompts([CAPTIONS[:3]])[0] if kind == "captions" else known
    assert len(known) <= longest and len(cut) <= longest and none == []
    if kind == "captions":
        said = tokenizer.decode(known)
        assert said.startswith("Similar images show\n\n") and said.endswith("\n\nThis image shows\n\n")
        assert all(caption[:20] in said for caption in CAPTIONS[:3])
        assert stored.limit <= TEXT_TOKENS
    else:
        words = stored.prompts([["apple", "egg", "tea", "cake"]])[0]
        assert tokenizer.decode(words) == "There are apple, egg, tea in the picture.\n\n" and MOST_WORDS == 3


def test_shorter_prompts_are_padded_before(tokenizer):
    ids, mask = padded([[7, 8, 9], [], [5]])
    assert ids.tolist() == [[7, 8, 9], [0, 0, 0], [0, 0, 5]]
    assert mask.tolist() == [[True] * 3, [False] * 3, [False, False, True]]
    assert padded([[], []]) == (None, None)


def test_captions_name_the_longest_words_of_the_list_in_any_number(tmp_path):
    (tmp_path / "words.txt").write_text(
        "\ufeffegg\n# a comment\nfried egg\n\negg\nTea cup\ntomato\n", encoding="utf-8"
    )
    entities = Entities.read(tmp_path / "words.txt")
    assert entities.words == ["egg", "fried egg", "Tea cup", "tomato"]
    assert entities.named_in(["Two FRIED EGGS, an egg and tomatoes", "a tea cup"]) == [
        "fried egg", "egg", "tomato", "Tea cup",
    ]  # fmt: skip
    assert entities.named_in(["eggplant"]) == []


def test_plurals_that_change_the_end_of_a_word_are_found():
    entities = Entities(["cherry", "dish", "box", "key", "tomato", "egg", "eggs"])
    assert entities.named_in(["three cherries in dishes and boxes", "keys, tomatoes"]) == [
        "cherry", "dish", "box", "key", "tomato",
    ]  # fmt: skip
    assert entities.named_in(["two eggs"]) == ["eggs"]


@pytest.mark.parametrize(
    ("text", "word", "other", "renamed"),
    [
        ("An apple and two apples beside a cherry", "apple", "cherry", "A cherry and two cherries beside a cherry"),
        ("Cherries on a plate, a cherry", "cherry", "apple", "Apples on a plate, an apple"),
        ("a fresh egg", "egg", "sushi roll", "a fresh sushi roll"),
        ("a fried egg, an egg", "egg", "tea", "a fried egg, a tea"),
        ("an eggplant", "egg", "tea", "an eggplant"),
    ],
)
def test_a_word_is_renamed_in_its_number_and_with_its_article(text, word, other, renamed):
    entities = Entities(["egg", "apple", "cherry", "fried egg", "sushi roll", "tea"])
    assert entities.renamed(text, word, other) == renamed


@pytest.mark.parametrize(
    ("words", "caption", "named"),
    [
        (["केला", "सेब"], "एक केला और दो सेब।", ["केला", "सेब"]),  # ends in a vowel sign
        (["苹果", "苹果汁"], "桌上有苹果汁和苹果", ["苹果汁", "苹果"]),  # no spaces
        (["りんご"], "皿の上のりんご", ["りんご"]),
        (["กล้วย"], "กล้วยสองลูก", ["กล้วย"]),
        (["café", "crème brûlée"], "un CAFE\u0301 et une cre\u0300me  brûlée", ["café", "crème brûlée"]),
        (["תפוח"], "תפוח אדום", ["תפוח"]),
        (["яблоко"], "Яблоко на тарелке", ["яблоко"]),
        (["🍕", "pizza"], "a 🍕 on a plate", ["🍕"]),
    ],
)
def test_words_of_any_script_are_found(words, caption, named):
    entities = Entities(words)
    assert entities.named_in([caption]) == named
    assert named[0] not in entities.named_in([entities.renamed(caption, named[0], "donut")])


def test_words_that_differ_in_case_alone_are_one(tmp_path):
    (tmp_path / "words.txt").write_text("Apple\negg\nAPPLE\napple\ntea  cup\nTea cup\n")
    assert Entities.read(tmp_path / "words.txt").words == ["Apple", "egg", "tea cup"]


def test_words_of_a_single_line_are_refused(tmp_path):
    (tmp_path / "words.txt").write_text("apple, egg, banana\n")
    with pytest.raises(ClipcapError, match="a single line with several words: one word a line"):
        Entities.read(tmp_path / "words.txt")


def test_words_longer_than_those_of_training_are_read_whole_or_not_at_all(tokenizer):
    """A list of a prediction may hold longer words than that of the training, of which the checkpoint's room is."""
    longest = PromptText(tokenizer, "entities", 3).longest(["tea"])
    text = PromptText(tokenizer, "entities", 3, longest)
    [one, several, endless] = text.prompts([["wooden"], ["tea", "wooden table cloth", "tea"], ["wooden table " * 9]])
    assert tokenizer.decode(one) == "There are wooden in the picture.\n\n"
    assert tokenizer.decode(several) == "There are tea, tea in the picture.\n\n"
    assert endless == [] and max(map(len, (one, several))) <= longest


@pytest.mark.parametrize("content", [b"\n# none\n", b"\xff\xfe\x00", None])
def test_a_list_without_words_is_refused_in_a_line(tmp_path, content):
    if content is not None:
        (tmp_path / "words.txt").write_bytes(content)
    with pytest.raises(ClipcapError, match="one word a line") as error:
        Entities.read(tmp_path / "words.txt")
    assert "\n" not in str(error.value)


def test_words_are_named_where_their_share_is_a_fifth():
    words = F.normalize(torch.eye(5, 8), dim=1)
    images = torch.tensor([[9.0, 0, 0, 0, 0, 0, 0, 0], [1, 0.99, 0, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0]])
    found = fitting(images, words, 50.0, MOST_WORDS)
    assert [[word for word, _ in several] for several in found[:2]] == [[0], [0, 1]]
    assert found[0][0][1] == pytest.approx(1, abs=1e-6)
    assert len(found[2]) == 3
