"""The demo set: drawn plates of food, their captions, the grammar that reads them back, the split."""

from __future__ import annotations

import csv
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from itertools import combinations, islice

import numpy as np
import pytest
from PIL import Image

from clipcap.demo import grammar, scene
from clipcap.demo.drawing import foods, tableware
from clipcap.demo.drawing.draw import GLAZES
from clipcap.demo.plates import captions, draw, main, make_scene, scenes, split_of, write_set
from clipcap.demo.scene import Facts
from clipcap.errors import ClipcapError

MANY = [make_scene(seed) for seed in range(4000)]


def read_captions(folder):
    with open(folder / "Captions.csv", encoding="utf-8", newline="") as file:
        return list(csv.reader(file))


def test_every_word_of_a_scene_has_a_painter_and_a_name():
    assert set(foods.PAINTERS) == set(scene.FOODS) == set(grammar.FOOD_NAMES) == set(grammar.PRAISE)
    assert set(tableware.PAINTERS) == {*scene.CUTLERY, *scene.CORNER_THINGS} == set(grammar.THING_NAMES)
    assert set(GLAZES) == set(scene.COLOURS)
    assert set(grammar.PLATE_NAMES) == set(scene.SHAPES)
    assert set(grammar.DECOR_WORDS) == set(scene.DECORS)
    assert set(grammar.TABLE_NAMES) == set(scene.TABLES)


@pytest.mark.parametrize("size", [64, 128, 200])
def test_a_scene_is_drawn_with_the_same_bytes_every_time(size):
    pictures = [draw(make_scene(5), size) for _ in range(2)]
    assert pictures[0].size == (size, size) and pictures[0].mode == "RGB"
    assert pictures[0].tobytes() == pictures[1].tobytes()


def test_another_seed_gives_another_picture():
    assert len({draw(make_scene(seed), 48).tobytes() for seed in range(20)}) == 20


@pytest.mark.parametrize("colour", scene.COLOURS)
def test_the_plate_has_the_colour_that_the_captions_tell(colour):
    one = MANY[0]
    plate = replace(one.plate, colour=colour, decor="plain", x=0.5, y=0.5)
    light = replace(one.light, brightness=1, warmth=0)
    picture = np.asarray(draw(replace(one, plate=plate, items=(), things=(), light=light)), np.float32)
    seen = picture[60:68, 60:68].mean((0, 1))
    assert min(GLAZES, key=lambda name: np.abs(seen - GLAZES[name]).sum()) == colour


def test_pieces_lie_on_the_plate_and_apart():
    for one in MANY:
        for item in one.items:
            assert math.dist((item.x, item.y), (one.plate.x, one.plate.y)) < max(one.plate.width, one.plate.height)
        for a, b in combinations(one.items, 2):
            assert math.dist((a.x, a.y), (b.x, b.y)) > 0.9 * (a.radius + b.radius)


def test_each_piece_changes_the_picture_where_it_lies():
    for one in MANY[:30]:
        whole = np.asarray(draw(one), np.int16)
        for item in one.items:
            less = np.asarray(draw(replace(one, items=tuple(i for i in one.items if i != item))), np.int16)
            changed = np.abs(whole - less).max(-1) > 12
            assert changed.sum() > 0.4 * math.pi * (0.5 * item.radius * 128) ** 2


def test_captions_are_three_to_five_different_and_the_same_every_time():
    for one in MANY[:500]:
        texts = captions(one)
        assert 3 <= len(texts) <= 5 and texts == captions(one)
        assert len({text.lower().rstrip(".") for text in texts}) == len(texts)
        assert not any(re.search(r"[{}]|  | ,|\ba [aeiou]|\ban [^aeiou]", text) for text in texts)


def test_captions_come_in_both_cases_with_and_without_a_full_stop_and_rarely_repeat():
    texts = [text for one in MANY[:1000] for text in captions(one)]
    assert 0.5 < np.mean([text[0].isupper() for text in texts]) < 0.8
    assert 0.2 < np.mean([text.endswith(".") for text in texts]) < 0.5
    assert len(set(texts)) > 0.98 * len(texts)


def test_every_caption_is_parsed_back_to_the_facts_of_its_scene():
    wrong = [(text, one.facts) for one in MANY for text in captions(one) if grammar.parse(text) != one.facts]
    assert wrong == []


def test_captions_name_nothing_beside_the_plate_that_is_not_there():
    words = {*scene.CUTLERY, *scene.CORNER_THINGS}
    for one in MANY[:1000]:
        there = {thing.kind for thing in one.things}
        for text in captions(one):
            assert words & set(re.findall(r"\w+", text.lower())) <= there
            assert "cutlery" not in text or len(there & set(scene.CUTLERY)) == 2


@pytest.mark.parametrize(
    ("caption", "facts"),
    [
        ("Two donuts on a blue plate", Facts((("donut", 2),), "blue", "round")),
        (
            "a square , white plate with an apple and 3 cherries .",
            Facts((("apple", 1), ("cherry", 3)), "white", "square"),
        ),
        ("donuts on a red platter", Facts((("donut", None),), "red", "oval")),
        ("Pepperoni pizza", Facts((("pizza", None),), None, None)),
        ("two pizzas on plate, blue cup of tea", Facts((("pizza", 2),), None, "round")),
        ("an egg and an egg on a pink pink oval plate", Facts((("egg", 2),), "pink", "oval")),
        ("a wooden table", Facts((), None, None)),
        ("", Facts((), None, None)),
    ],
)
def test_text_close_to_the_grammar_is_parsed_as_far_as_it_goes(caption, facts):
    assert grammar.parse(caption) == facts


def test_agreement_compares_counts_food_by_food():
    truth = Facts((("apple", 2), ("egg", 1)), "red", "oval")
    swapped = Facts((("apple", 1), ("egg", 2)), "red", "round")
    other = Facts((("apple", 2), ("banana", 1)), "blue", "oval")
    assert all(truth.agreement(truth).values())
    assert swapped.agreement(truth) == {"food": True, "count": False, "colour": True, "plate": False}
    assert other.agreement(truth) == {"food": False, "count": True, "colour": False, "plate": True}


def test_no_combination_of_the_held_out_split_occurs_in_training():
    found = {"train": set(), "val": set()}
    for one in map(make_scene, range(20_000)):
        found[split_of(one)].add(one.facts)
    assert len(found["train"]) > 1000 and len(found["val"]) > 200
    assert not found["train"] & found["val"]
    assert 0.12 < len(found["val"]) / len(found["train"] | found["val"]) < 0.18


def test_every_single_value_occurs_in_training_and_held_out():
    for split in ("train", "val"):
        facts = [one.facts for one in islice(scenes(split), 2000)]
        assert {food for fact in facts for food, _ in fact.foods} == set(scene.FOODS)
        assert {(food, count) for fact in facts if len(fact.foods) == 1 for food, count in fact.foods} == {
            (food, count) for food in scene.FOODS for count in (1, 2, 3, 4)
        }
        assert {fact.colour for fact in facts} == set(scene.COLOURS)
        assert {fact.plate for fact in facts} == set(scene.SHAPES)
        assert {len(fact.foods) for fact in facts} == {1, 2}


def test_a_set_is_written_in_the_layout_of_the_kaggle_food_set(tmp_path):
    folder = write_set(tmp_path / "set", 12, size=64, split="val")
    header, *records = read_captions(folder)
    chosen = list(islice(scenes("val"), 12))
    assert header == ["", "Index", "Captions"]
    assert [int(number) for number, _, _ in records] == list(range(len(records)))
    assert [(int(index), text) for _, index, text in records] == [
        (index, text) for index, one in enumerate(chosen) for text in captions(one)
    ]
    assert {split_of(one) for one in chosen} == {"val"}
    assert {path.name for path in (folder / "dataset").iterdir()} == {f"{index}.jpg" for index in range(12)}
    with Image.open(folder / "dataset" / "11.jpg") as photo:
        assert photo.format == "JPEG" and photo.size == (64, 64)


def test_another_process_with_more_workers_writes_the_same_bytes(tmp_path):
    here = write_set(tmp_path / "here", 20, seed=3, size=64)
    command = [sys.executable, "-m", "clipcap.demo.plates", "--out", str(tmp_path / "there")]
    command += ["--count", "20", "--seed", "3", "--size", "64", "--workers", "2"]
    done = subprocess.run(command, env={**os.environ, "PYTHONHASHSEED": "7"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in here.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "there" / path.relative_to(here)).read_bytes()


def test_sets_of_different_seeds_share_no_scene():
    seeds = [{one.seed for one in islice(scenes(seed=seed), 100)} for seed in (0, 1)]
    assert not seeds[0] & seeds[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"count": 0}, "--count must be at least 1, got 0"),
        ({"count": 1, "size": 8}, "--size must be at least 32, got 8"),
        ({"count": 1, "seed": -1}, "--seed must be at least 0"),
        ({"count": 1, "split": "test"}, "--split must be one of train, val, all, got 'test'"),
    ],
)
def test_arguments_out_of_range_are_refused(tmp_path, arguments, message):
    with pytest.raises(ClipcapError, match=re.escape(message)):
        write_set(tmp_path / "set", **arguments)
    assert not (tmp_path / "set").exists()


def test_a_folder_that_holds_a_set_is_left_as_it_is(tmp_path):
    main(["--out", str(tmp_path), "--count", "2", "--size", "32", "--workers", "1"])
    before = (tmp_path / "Captions.csv").read_bytes()
    with pytest.raises(SystemExit, match="already holds a set"):
        main(["--out", str(tmp_path), "--count", "3"])
    assert (tmp_path / "Captions.csv").read_bytes() == before


def test_a_place_that_cannot_be_written_to_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ClipcapError, match=r"file/set: the demo set cannot be written here .* another --out"):
        write_set(tmp_path / "file" / "set", 1)
