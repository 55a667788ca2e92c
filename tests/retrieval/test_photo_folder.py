"""Photos as they lie in folders: indexed, updated, searched by several texts and without others, near-duplicates."""

from __future__ import annotations

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from support.road import draw_photos, lines_of, run

from clipcap.models.encoders.encode_images import encode_images
from clipcap.retrieval import photo_folder
from clipcap.retrieval.index import Index, Match
from clipcap.retrieval.results import table


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path / "photos", 6)


@pytest.fixture
def index(capsys, clip_file, tmp_path):
    """Runs `clipcap index photos`: (status, stdout lines, stderr lines)."""
    words = (tmp_path / "photos", "--out", tmp_path / "index", "--clip_model_type", clip_file, "--device", "cpu")
    return lambda *more: run(capsys, "index", *words, *more)


@pytest.fixture
def encoded(monkeypatch):
    """The photos that are encoded, in the order of the runs."""
    names = []

    def noted(encoder, images, *args, **options):
        names.extend(path.name for path in images)
        return encode_images(encoder, images, *args, **options)

    monkeypatch.setattr(photo_folder, "encode_images", noted)
    return names


def ids(folder):
    index = Index.open(folder)
    return [index.catalogue.entry(row).image_id for row in range(len(index))]


def rows(folder):
    index = Index.open(folder)
    return {name: index.embedding(name).numpy() for name in ids(folder)}


def test_bare_photos_are_indexed_and_found_by_words_and_by_a_photo(capsys, photos, index, tmp_path):
    assert index()[0] == 0
    assert ids(tmp_path / "index") == [photo.name for photo in photos]
    where = ("--index", tmp_path / "index", "--device", "cpu", "--k", 2, "--out", tmp_path / "found.jsonl")
    assert run(capsys, "search", "--img", photos[3], *where)[0] == 0
    lines = lines_of(tmp_path / "found.jsonl")
    assert (lines[0]["image_id"], lines[0]["path"]) == ("photo3.png", str(photos[3]))
    assert lines[0]["score"] == pytest.approx(1, abs=1e-5)
    assert run(capsys, "search", "a red apple", *where)[0] == 0


def test_the_next_run_encodes_what_is_new_or_changed_and_forgets_the_deleted(photos, index, encoded, tmp_path, capsys,
                                                                             clip_file):  # fmt: skip
    index()
    before, encoded[:] = rows(tmp_path / "index"), []
    assert "6 photos: 0 new, 0 changed, 6 as they were, 0 deleted" in index()[2]
    assert encoded == [] and rows(tmp_path / "index").keys() == before.keys()
    photos[1].unlink()
    Image.open(photos[2]).rotate(180).save(photos[5])
    (photos[0].parent / "below").mkdir()
    shutil.copy(photos[3], photos[0].parent / "below" / "new.png")
    assert "6 photos: 1 new, 1 changed, 4 as they were, 1 deleted" in index()[2]
    assert sorted(encoded) == ["new.png", "photo5.png"]
    run(capsys, "index", tmp_path / "photos", "--out", tmp_path / "anew", "--clip_model_type", clip_file)
    updated, anew = rows(tmp_path / "index"), rows(tmp_path / "anew")
    assert updated.keys() == anew.keys() == {"below/new.png", *(f"photo{i}.png" for i in (0, 2, 3, 4, 5))}
    assert all(np.allclose(updated[name], anew[name], atol=1e-5) for name in anew)


def test_an_interrupted_run_continues(photos, index, encoded, tmp_path, monkeypatch):
    monkeypatch.setattr(photo_folder, "BATCH", 2)
    monkeypatch.setattr(photo_folder, "TOGETHER", 2)
    add = photo_folder._Store.add

    def interrupted(self, some, *rest):
        if some[0].name == "photo4.png":
            raise KeyboardInterrupt
        add(self, some, *rest)

    with monkeypatch.context() as patched:
        patched.setattr(photo_folder._Store, "add", interrupted)
        status, _, err = index()
    assert (status, err[-1]) == (130, "clipcap: interrupted; encoded so far: 4 photos; the same command continues")
    encoded.clear()
    status, _, err = index()
    assert status == 0 and "going on where an earlier run stopped: 4 photos encoded" in err
    assert encoded == ["photo4.png", "photo5.png"] and len(ids(tmp_path / "index")) == 6
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".photos")]


def test_photos_that_cannot_be_read_are_named_and_tried_again(photos, index, tmp_path):
    good = photos[2].read_bytes()
    photos[2].write_bytes(b"no picture")
    status, _, err = index()
    assert status == 0 and any(line.startswith(f"warning: skipped {photos[2]}") for line in err)
    assert len(ids(tmp_path / "index")) == 5
    photos[2].write_bytes(good)
    assert "6 photos: 1 new, 0 changed, 5 as they were, 0 deleted" in index()[2]


def test_another_encoder_encodes_all_anew(capsys, photos, index, encoded, tmp_path):
    from clipcap.demo.tiny import make_clip

    index()
    encoded.clear()
    other = make_clip(tmp_path / "other.pt", seed=1)
    words = (tmp_path / "photos", "--out", tmp_path / "index", "--clip_model_type", other)
    assert run(capsys, "index", *words)[0] == 0
    assert len(encoded) == 6 and Index.open(tmp_path / "index").meta.encoder == str(other)


def test_several_folders_are_told_apart_by_their_names(capsys, photos, clip_file, tmp_path):
    shutil.copytree(tmp_path / "photos", tmp_path / "more")
    words = ("--out", tmp_path / "index", "--clip_model_type", clip_file)
    assert run(capsys, "index", tmp_path / "photos", tmp_path / "more", *words)[0] == 0
    assert ids(tmp_path / "index")[::6] == ["photos/photo0.png", "more/photo0.png"]


def test_near_duplicates_are_printed_in_groups(photos, index):
    os.remove(photos[1])
    for name in ("copy.png", "photo9.png"):
        shutil.copy(photos[0], photos[0].parent / name)
    status, out, _ = index("--duplicates", "--duplicate_cosine", 0.9999)
    assert (status, out[0]) == (0, "1 group of near-duplicates (cosine 0.9999 and more), 2 photos too many")
    assert out[1].split("  ")[0] == "1.000" and sorted(out[1].split("  ")[1:]) == [
        "copy.png",
        "photo0.png",
        "photo9.png",
    ]


def test_quoted_texts_are_several_searches_and_bare_words_one(capsys, photos, index, tmp_path):
    index()
    where = ("--index", tmp_path / "index", "--k", 2, "--out", tmp_path / "found.jsonl")
    for words, queries in (
        (("a red apple", "two plates"), ["a red apple", "two plates"]),
        (("red", "apple"), ["red apple"]),
    ):
        assert run(capsys, "search", *words, *where)[0] == 0
        lines = lines_of(tmp_path / "found.jsonl")
        assert [line["query"] for line in lines[::2]] == queries


def test_words_that_are_not_wanted_are_subtracted(capsys, photos, index, tmp_path, clip_file):
    from clipcap.models.encoders.load import load_encoder

    index()
    where = ("--index", tmp_path / "index", "--k", 6, "--out", tmp_path / "found.jsonl")
    assert run(capsys, "search", "a red apple", *where, "--without", "two plates")[0] == 0
    lines = lines_of(tmp_path / "found.jsonl")
    wanted, unwanted = load_encoder(str(clip_file), "cpu").encode_texts(["a red apple", "two plates"]).numpy()
    query = wanted / np.linalg.norm(wanted) - unwanted / np.linalg.norm(unwanted)
    scores = {
        n: row @ query / np.linalg.norm(row) / np.linalg.norm(query) for n, row in rows(tmp_path / "index").items()
    }
    assert [line["image_id"] for line in lines] == sorted(scores, key=lambda name: -scores[name])
    assert [line["score"] for line in lines] == pytest.approx(sorted(scores.values(), reverse=True), abs=1e-5)


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_a_table_fits_the_terminal(width):
    caption, path = "a dog runs over the wet grass beside a river " * 3, "/a/very/long/way/to/" * 4 + "photo17.jpg"
    lines = table([Match("photo17", caption, path, 0.31, 3)] * 12, width).split("\n")
    assert max(map(len, lines)) <= width and len(lines) == 13
    assert "photo17" in lines[1]
    whole = table([Match("photo17", "a dog", "b/photo17.jpg", 0.31, 3)], width)
    assert "a dog" in whole and ("photo17.jpg" in whole or width == 40)


def test_parse_takes_photos_alone(capsys, photos, clip_file, tmp_path):
    for out in ("data/bare", "data/bare.pkl"):
        words = ("--data_path", tmp_path / "photos", "--out", tmp_path / out, "--clip_model_type", clip_file)
        assert run(capsys, "parse", "photos", *words)[0] == 0
        assert run(capsys, "index", tmp_path / out, "--out", tmp_path / "index")[0] == 0
        assert ids(tmp_path / "index") == [photo.name for photo in photos]


def test_features_are_not_added_to_an_index_of_photos_whose_update_would_drop_them(
    capsys, photos, index, clip_file, tmp_path
):
    index()
    words = ("--data_path", tmp_path / "photos", "--out", tmp_path / "more.pkl", "--clip_model_type", clip_file)
    run(capsys, "parse", "photos", *words)
    status, _, err = run(capsys, "index", tmp_path / "more.pkl", "--out", tmp_path / "index", "--append")
    assert status == 1 and "its next update would remove what --append adds" in err[-1]
    assert ids(tmp_path / "index") == [photo.name for photo in photos]


def test_errors_about_missing_captions_name_the_way_for_photos_alone(capsys, photos, tmp_path):
    status, _, err = run(capsys, "parse", "custom", "--data_path", tmp_path / "photos", "--out", tmp_path / "x.pkl")
    assert status == 1 and err[-1].endswith("photos alone: `clipcap parse photos` or `clipcap index`")
    status, _, err = run(capsys, "search", "x", "--index", tmp_path / "photos")
    assert status == 1 and "(photos alone: `clipcap index` or `clipcap parse photos`)" in err[-1]
