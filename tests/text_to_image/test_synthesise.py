"""Generated pairs: the same on every run, captions cut to the class, filtered, for training alone."""

from __future__ import annotations

import csv
import json

import pytest
import torch
from support.road import draw_set, lines_of
from support.small_generator import write_small_generator

from clipcap.cli.main import main
from clipcap.errors import ClipcapError
from clipcap.runtime.safe_load.torch_file import load_tensors
from clipcap.sources.generated import refuse_generated
from clipcap.text_to_image.config import SynthesiseConfig
from clipcap.text_to_image.mapping import MappingFacts, TextMapping, save_mapping
from clipcap.text_to_image.synthesise import synthesise

CAPTIONS = ["two apples on a plate", "a red apple", "one donut", "cherries on a table", "an empty plate"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, lm_folder):
    folder = tmp_path_factory.mktemp("synthesise")
    write_small_generator(folder / "generator")
    torch.manual_seed(0)
    facts = MappingFacts(str(lm_folder), str(folder / "generator"), 12, True)
    save_mapping(TextMapping(torch.randn(4, 64) / 8, torch.randn(4), facts), folder / "mapping")
    classes = [{"name": name, "words": words} for name, words in (
        ("apple", ["apple", "apples"]), ("banana", ["banana"]), ("cherry", ["cherries"]), ("donut", ["donut"]),
    )]  # fmt: skip
    (folder / "generator" / "words.json").write_text(json.dumps({"classes": classes}))
    (folder / "captions.txt").write_text("\n".join(CAPTIONS))
    return folder


def make(place, out, **changes):
    options = {"load_pt": str(place / "mapping"), "count": 20, "out": str(out)}
    return synthesise(str(place / "captions.txt"), SynthesiseConfig(**options | changes))


def rows(folder):
    with open(folder / "captions.csv", newline="") as file:
        return list(csv.DictReader(file))


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(place, tmp_path):
    one, two = make(place, tmp_path / "one"), make(place, tmp_path / "two", workers=2)
    assert files(one) == files(two)
    assert len(files(one)) == 21
    assert files(make(place, tmp_path / "other", seed=1)) != files(one)


def test_captions_are_cut_to_the_class_word_or_kept_whole(place, tmp_path):
    cut = rows(make(place, tmp_path / "cut", template="a picture of {}"))
    assert {row["caption"] for row in cut} == {f"a picture of {w}" for w in ("apples", "apple", "donut", "cherries")}
    assert {row["class"] for row in cut} == {"apple", "cherry", "donut"}
    full = rows(make(place, tmp_path / "full", captions="full"))
    assert {row["caption"] for row in full} == set(CAPTIONS[:4]) == {row["source_caption"] for row in cut}
    assert {row["generated"] for row in full} == {"1"}


def test_the_best_by_an_encoder_are_kept(place, tmp_path, clip_file):
    some = make(place, tmp_path / "some", filter_encoder=str(clip_file), keep=0.25)
    every = make(place, tmp_path / "every", filter_encoder=str(clip_file))
    best = sorted((float(row["clip_score"]) for row in rows(every)), reverse=True)[:5]
    assert sorted((float(row["clip_score"]) for row in rows(some)), reverse=True) == best
    assert len(list((some / "images").iterdir())) == 5


def test_a_picture_drawn_by_the_mapping_is_not_the_class_itself(place, tmp_path):
    assert files(make(place, tmp_path / "a")) != files(make(place, tmp_path / "b", exact=True))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"keep": 0.5}, "--keep needs --filter_encoder"),
        ({"template": "an apple"}, "put {} where"),
        ({"truncation": 0}, "--truncation"),
    ],
)
def test_options_at_odds_are_refused(place, tmp_path, changes, message):
    with pytest.raises(ClipcapError, match=message):
        make(place, tmp_path / "x", **changes)


def test_a_folder_of_other_files_is_not_replaced(place, tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(ClipcapError, match="holds no generated set"):
        make(place, tmp_path)


def test_generated_pictures_are_never_held_out(place, tmp_path):
    folder = make(place, tmp_path / "set")
    with pytest.raises(ClipcapError, match=r"000003\.png: is a generated picture"):
        refuse_generated([folder / "images" / "000003.png"])
    refuse_generated([None, tmp_path / "photo.jpg"])


TINY = "--embed_dim 16 --resolution 32 --vision_width 64 --vision_layers 1 --text_width 64 --text_layers 1".split()
TINY += "--bs 4 --epochs 1 --workers 0".split()


def contrastive(data, out, *words):
    assert (
        main(["contrastive", "custom", "--data_path", str(data), "--out_dir", str(out), *TINY, *map(str, words)]) == 0
    )
    lines = lines_of(out / "metrics.jsonl")
    return load_tensors(out / "clip-last" / "clip.pt"), lines


@pytest.fixture(scope="module")
def plates(tmp_path_factory):
    return draw_set(tmp_path_factory.mktemp("plates"), 8)


def test_a_share_of_zero_gives_the_weights_without_the_set(place, plates, tmp_path):
    extra = make(place, tmp_path / "set")
    plain, _ = contrastive(plates, tmp_path / "plain")
    none, _ = contrastive(plates, tmp_path / "none", "--extra", extra, "--extra_share", 0)
    some, lines = contrastive(plates, tmp_path / "some", "--extra", extra, "--extra_share", 0.5)
    assert all(torch.equal(plain[name], none[name]) for name in plain)
    assert not all(torch.equal(plain[name], some[name]) for name in plain)
    assert lines[0]["extra_share"] == 0.5
    assert lines[0]["step"] == 4  # of 2 images of the set and 2 generated ones each


def test_a_generated_set_is_not_validated_on(place, tmp_path, capsys):
    extra = make(place, tmp_path / "set")
    words = ["contrastive", "custom", "--data_path", str(extra), "--train_size", "0.5"]
    words += ["--out_dir", str(tmp_path / "x")]
    assert main([*words, *TINY]) == 1
    assert "is a generated picture" in capsys.readouterr().err
