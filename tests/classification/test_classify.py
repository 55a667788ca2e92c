"""Photos into classes: prompts, pairs of prompts, a probe; accuracy, flags, sheets, and what is refused."""

from __future__ import annotations

import csv
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.road import lines_of

import clipcap
from clipcap.classification.classifiers import LinearProbe, PromptPairs, ZeroShot, class_vectors
from clipcap.classification.classify import classify, read_labels, read_thresholds
from clipcap.classification.scores import score
from clipcap.cli.main import main
from clipcap.demo.drawing.draw import draw
from clipcap.demo.plates import scenes
from clipcap.errors import ClipcapError
from clipcap.models.encoders.load import load_encoder

FOODS = ("apple", "banana", "donut", "egg")
TEMPLATE = "a {} on a plate"


@pytest.fixture(scope="module")
def plates(tmp_path_factory):
    """Two plates of each of four foods: a folder a food, and a table."""
    folder = tmp_path_factory.mktemp("plates")
    found = dict.fromkeys(FOODS, 0)
    rows = []
    for scene in scenes("val", 5):
        (food, _), *others = scene.facts.foods
        if not others and found.get(food, 2) < 2:
            place = folder / "photos" / food / f"{food}{found[food]}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            draw(scene, 64).save(place)
            rows.append((f"photos/{food}/{place.name}", food))
            found[food] += 1
        if sum(found.values()) == 8:
            break
    with open(folder / "table.csv", "w", newline="") as file:
        csv.writer(file).writerows([("image", "label"), *rows])
    return folder


@pytest.fixture(scope="module")
def encoder():
    return load_encoder("demo", "cpu")


def test_a_class_vector_is_the_normalised_mean_of_its_normalised_prompts(encoder):
    vectors = class_vectors(encoder, ["apple", "egg"], [TEMPLATE, "the {}"])
    texts = encoder.encode_texts(["a apple on a plate", "the apple"])
    mean = (texts / texts.norm(dim=1, keepdim=True)).mean(0)
    torch.testing.assert_close(vectors[0], mean / mean.norm())
    torch.testing.assert_close(vectors.norm(dim=1), torch.ones(2))


def test_probabilities_are_the_softmax_of_the_scaled_cosines(encoder):
    rows = torch.nn.functional.normalize(
        torch.randn(3, encoder.dim, generator=torch.Generator().manual_seed(0)), dim=1
    )
    one = ZeroShot.of(encoder, FOODS, [TEMPLATE])
    expected = torch.softmax(encoder.logit_scale * rows @ one.vectors.T, 1)
    torch.testing.assert_close(one.probabilities(rows), expected)
    torch.testing.assert_close(one.probabilities(rows).sum(1), torch.ones(3))
    pairs = PromptPairs.of(encoder, [("apple", "no apple"), ("egg", "no egg")], [TEMPLATE])
    alone = ZeroShot.of(encoder, ["egg", "no egg"], [TEMPLATE])
    torch.testing.assert_close(pairs.probabilities(rows)[:, 1], alone.probabilities(rows)[:, 0])


def test_python_gives_labels_with_their_probabilities(plates, encoder):
    photo = plates / "photos" / "egg" / "egg0.png"
    (found,) = clipcap.classify(photo, FOODS, encoder=encoder, templates=[TEMPLATE])
    assert next(iter(found)) == "egg"
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)
    both = classify([photo, Image.open(photo)], FOODS, encoder=encoder, templates=[TEMPLATE], top=2)
    assert [list(one) for one in both] == [list(found)[:2]] * 2


def run(*words):
    return main(["classify", "--clip_model_type", "demo", "--template", TEMPLATE, *map(str, words)])


@pytest.mark.parametrize("data", ["table.csv", "photos"])
def test_labels_of_a_table_or_of_folders_give_accuracy(plates, tmp_path, data, capsys):
    assert run("--data", plates / data, "--report", tmp_path / "r.json", "--out", tmp_path / "x.jsonl") == 0
    report = json.loads((tmp_path / "r.json").read_text())
    low, high = report["top-1"]["interval"]
    assert report["photos"] == 8
    assert low <= report["top-1"]["share"] <= high
    assert report["top-1"]["share"] >= 0.75
    assert set(report["classes"]) == set(FOODS)
    assert "top-1:" in capsys.readouterr().out
    lines = lines_of(tmp_path / "x.jsonl")
    assert [set(line) for line in lines] == [{"image", "label", "flagged", "labels"}] * 8


def test_a_probe_is_fitted_to_photos_with_labels(plates, tmp_path, capsys):
    assert run("--data", plates / "table.csv", "--fit", plates / "photos", "--out", tmp_path / "x.csv") == 0
    assert "top-1: 100.0 %" in capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert all(row["true label"] == row["label"] for row in rows)


def test_a_probe_separates_what_is_separable():
    random = np.random.RandomState(0)
    centres = torch.eye(3).repeat_interleave(30, 0)
    rows = torch.nn.functional.normalize(centres + 0.3 * torch.from_numpy(random.randn(90, 3)).float(), dim=1)
    names = [name for name in "abc" for _ in range(30)]
    probe = LinearProbe.fit(rows, names)
    found = [probe.labels[i] for i in probe.probabilities(rows).argmax(1)]
    assert np.mean([a == b for a, b in zip(found, names, strict=True)]) > 0.85


def test_the_exit_status_says_whether_a_photo_is_flagged(plates, tmp_path, capsys):
    photos = plates / "photos"
    words = ("--img", photos, "--labels", "egg|apple,donut|banana", "--flag", "egg", "--list", tmp_path / "l.txt")
    assert run(*words, "--threshold", "egg=0.9") == 3
    listed = (tmp_path / "l.txt").read_text().splitlines()
    assert any("egg0" in path for path in listed)
    assert not any("apple" in path for path in listed)
    assert run("--img", photos / "apple", "--labels", "egg|apple", "--flag", "egg", "--threshold", "egg=0.9") == 0
    assert "0 of 2 photos are flagged" in capsys.readouterr().out


def test_flagged_photos_are_moved_and_none_is_replaced(tmp_path, plates):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "x.png").write_bytes((plates / "photos" / "egg" / "egg0.png").read_bytes())
    words = ("--labels", "egg|apple", "--flag", "egg", "--move", tmp_path / "out")
    assert run("--img", tmp_path / "a", tmp_path / "b", *words) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["x.png", "x_2.png"]
    assert not list((tmp_path / "a").iterdir())


def test_a_photo_that_cannot_be_judged_ends_with_status_1(plates, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    photos = ("--img", plates / "photos" / "apple", tmp_path / "broken.png")
    assert run(*photos, "--labels", "egg|apple", "--flag", "egg", "--threshold", "egg=1") == 1
    assert "broken.png: not an image" in capsys.readouterr().err


def test_a_sheet_shows_the_true_label_green_and_a_wrong_one_orange(plates, tmp_path):
    (tmp_path / "t.csv").write_text(
        f"image,label\n{plates}/photos/egg/egg0.png,egg\n{plates}/photos/egg/egg1.png,apple\n"
    )
    run("--data", tmp_path / "t.csv", "--labels", "egg,apple", "--out", tmp_path / "s.png")
    colours = {colour for _, colour in Image.open(tmp_path / "s.png").getcolors(1 << 24)}
    assert {(122, 184, 96), (238, 150, 74)} <= colours


def test_a_sheet_says_how_many_photos_it_leaves_out(plates, tmp_path, capsys):
    (tmp_path / "many").mkdir()
    for number in range(61):
        shutil.copy(plates / "photos" / "egg" / "egg0.png", tmp_path / "many" / f"{number}.png")
    run("--img", tmp_path / "many", "--labels", "egg,apple", "--out", tmp_path / "s.png")
    assert "s.png of the first 60 of 61 photos" in capsys.readouterr().err


def test_scores_count_by_class_and_list_what_is_taken_for_what():
    probabilities = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.7, 0.1], [0.6, 0.3, 0.1], [0.1, 0.1, 0.8]])
    found = score(probabilities, ["a", "b", "c"], ["a", "b", "b", "c"])
    assert found.top[1][0] == 0.75
    assert found.classes == {"a": (1, 1.0, 0.5), "b": (2, 0.5, 1.0), "c": (1, 1.0, 1.0)}
    assert found.confusion == {("b", "a"): 1}
    assert found.content()["confusion"] == [{"true": "b", "given": "a", "photos": 1}]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--labels", "a,b"], "nothing to classify"),
        (["--img", "PHOTOS"], "--labels is missing"),
        (["--img", "PHOTOS", "--labels", "a,a"], "'a' is given twice"),
        (["--img", "PHOTOS", "--labels", "a,b", "--threshold", "a=2"], "LABEL=0.8"),
        (["--img", "PHOTOS", "--labels", "a,b", "--flag", "c"], "'c' is not among the labels"),
        (["--img", "PHOTOS", "--labels", "a,b", "--move", "x"], "name the labels that flag"),
        (["--data", "TABLE", "--labels", "apple,egg"], "has the label 'banana'"),
        (["--data", "TABLE", "--label_column", "nope"], "no column 'nope'"),
        (["--data", "nothing.csv"], "no such file or folder"),
        (["--img", "PHOTOS", "--labels", "a", "--out", "x.txt"], "end the name in .jsonl"),
    ],
)
def test_what_cannot_be_classified_is_refused(plates, words, message, capsys):
    names = {"PHOTOS": plates / "photos", "TABLE": plates / "table.csv"}
    assert run(*(names.get(word, word) for word in words)) == 1
    assert message in capsys.readouterr().err


def test_a_template_without_a_place_for_the_label_is_refused(encoder):
    with pytest.raises(ClipcapError, match=r"put {} where the label goes"):
        class_vectors(encoder, ["a"], ["a photo"])


def test_labels_come_from_a_list_or_a_file(tmp_path):
    (tmp_path / "labels.txt").write_text("a dog\n\na cat\n")
    assert read_labels(str(tmp_path / "labels.txt")) == read_labels("a dog, a cat") == ["a dog", "a cat"]
    assert read_thresholds(["a=b=0.5"]) == {"a=b": 0.5}
