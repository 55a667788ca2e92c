"""Shares of photos under a text, and the captions of any feature file as an index of texts."""

from __future__ import annotations

import json

import pytest
import torch
from PIL import Image
from support.road import lines_of
from torch.nn.functional import normalize

from clipcap.cli.main import main
from clipcap.demo.plates import write_set
from clipcap.images.read import open_image
from clipcap.models.encoders.load import load_encoder


@pytest.fixture(scope="module")
def plates(tmp_path_factory):
    return write_set(tmp_path_factory.mktemp("plates") / "set", 5, seed=3)


def test_the_shares_of_photos_are_the_softmax_of_the_scaled_cosines(plates, tmp_path):
    out = tmp_path / "x.jsonl"
    words = ["search", "a plate of pizza", "--img", str(plates / "dataset"), "--softmax", "--clip_model_type", "demo"]
    assert main([*words, "--out", str(out)]) == 0
    encoder = load_encoder("demo", "cpu")
    photos = sorted((plates / "dataset").iterdir())
    pixels = torch.stack([encoder.preprocess(open_image(photo)) for photo in photos])
    cosine = normalize(encoder.encode_images(pixels)) @ normalize(encoder.encode_texts(["a plate of pizza"])).T
    expected = dict(zip(map(str, photos), (encoder.logit_scale * cosine[:, 0]).softmax(0).tolist(), strict=True))
    found = {line["path"]: line["probability"] for line in lines_of(out)}
    assert found == pytest.approx(expected, abs=1e-4)
    assert sum(found.values()) == pytest.approx(1, abs=1e-5)


@pytest.fixture(scope="module")
def features(plates, tmp_path_factory):
    out = tmp_path_factory.mktemp("features") / "x.pkl"
    assert main(["parse", "food", "--data_path", str(plates), "--out", str(out), "--clip_model_type", "demo"]) == 0
    return out


def test_with_an_index_the_share_is_among_the_matches_shown(features, tmp_path, capsys):
    out = tmp_path / "x.jsonl"
    words = ["search", "a plate of pizza", "--index", str(features), "--softmax", "--k", "3", "--out", str(out)]
    assert main(words) == 0
    assert sum(line["probability"] for line in lines_of(out)) == pytest.approx(1, abs=1e-5)
    assert "probability" in capsys.readouterr().out


def test_captions_of_any_feature_file_are_found_by_words(features, tmp_path):
    assert main(["index", str(features), "--tower", "text", "--out", str(tmp_path / "texts")]) == 0
    caption = next(iter(read_captions(features)))
    words = ["search", caption, "--index", str(tmp_path / "texts"), "--k", "1", "--out", str(tmp_path / "x.jsonl")]
    assert main(words) == 0
    [found] = lines_of(tmp_path / "x.jsonl")
    assert found["caption"] == caption
    assert found["score"] == pytest.approx(1, abs=1e-3)


def read_captions(features):
    from clipcap.features.files import read_features

    return read_features(features).captions


def test_photos_without_words_are_no_ranking(plates, capsys):
    assert main(["search", "--img", str(plates / "dataset"), "--softmax", "--clip_model_type", "demo"]) == 1
    assert "ranks photos by words" in capsys.readouterr().err


def test_json_lines_with_image_path_and_captions_are_a_set(tmp_path, capsys):
    for name in ("a.gif", "b.gif"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    rows = [
        {"image_path": "a.gif", "captions": ["I am cool", "so cool"]},
        {"image_path": "b.gif", "captions": ["no"]},
    ]
    for suffix in ("json", "jsonl"):
        (tmp_path / f"train.{suffix}").write_text("\n".join(map(json.dumps, rows)))
        assert main(["parse", "custom", "--data_path", str(tmp_path / f"train.{suffix}"), "--dry_run"]) == 0
        assert "2 images with 3 captions" in capsys.readouterr().out
