"""Texts → a folder of their embeddings, and the gap between images and captions."""

from __future__ import annotations

import json
import math

import pytest
import torch
from support.road import run
from support.small import feature_file

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.features.gap import measure, noise_of
from clipcap.features.parse_texts import parse_texts
from clipcap.models.encoders.load import load_encoder
from clipcap.sources.texts import read_texts


def parsed(tmp_path, clip_file, path, **options):
    [folder] = parse_texts(data_path=str(path), clip_model_type=str(clip_file), out=str(tmp_path / "out"), **options)
    return read_features(folder, tower="text")


def test_lines_become_rows_of_their_embeddings(tmp_path, clip_file):
    (tmp_path / "lines.txt").write_text("a red apple\n\n  two   eggs \n", encoding="utf-8")
    found = parsed(tmp_path, clip_file, tmp_path / "lines.txt")
    assert list(found.captions) == ["a red apple", "two eggs"]
    assert len(set(found.image_ids)) == 2
    expected = load_encoder(str(clip_file)).encode_texts(["a red apple", "two eggs"])
    torch.testing.assert_close(found.rows(slice(None)), expected.cpu())
    assert found.meta.encoder_weights_id == load_encoder(str(clip_file)).weights_id


def test_rows_of_one_image_stay_together(tmp_path):
    (tmp_path / "t.csv").write_text("image,caption\na.jpg,one\nb.jpg,two\na.jpg,three\n", encoding="utf-8")
    lines = [{"image": "a.jpg", "caption": "one"}, {"image": "a.jpg", "caption": ["two", "three"]}]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    (tmp_path / "only.csv").write_text("words\nfirst text\nsecond text\n", encoding="utf-8")
    assert read_texts(tmp_path / "t.csv") == {"a.jpg": ["one", "three"], "b.jpg": ["two"]}
    assert read_texts(tmp_path / "t.jsonl") == {"a.jpg": ["one", "two", "three"]}
    assert list(read_texts(tmp_path / "only.csv").values()) == [["first text"], ["second text"]]


def test_the_captions_of_a_feature_file_are_texts_too(tmp_path, clip_file):
    file = feature_file(tmp_path / "photos.pkl", [("one", "two"), ("three",)])
    found = parsed(tmp_path, clip_file, file)
    assert list(found.captions) == ["one", "two", "three"]
    assert list(found.image_ids) == ["photo0", "photo0", "photo1"]


def test_what_holds_no_text_is_refused(tmp_path, clip_file):
    (tmp_path / "empty.txt").write_text("\n \n", encoding="utf-8")
    with pytest.raises(ClipcapError, match="holds no text"):
        parsed(tmp_path, clip_file, tmp_path / "empty.txt")
    (tmp_path / "t.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(ClipcapError, match="give --caption_column"):
        parsed(tmp_path, clip_file, tmp_path / "t.csv")
    with pytest.raises(ClipcapError, match="no such"):
        parsed(tmp_path, clip_file, tmp_path / "gone.txt")
    with pytest.raises(ClipcapError, match="is a folder"):
        parsed(tmp_path, clip_file, tmp_path)


def test_the_gap_is_that_of_its_formula():
    torch.manual_seed(0)
    texts = torch.randn(300, 16)
    images = 3 * (texts / texts.norm(dim=1, keepdim=True) + 0.3)
    gap = measure(images, texts)
    assert gap.distance == pytest.approx(0.6, abs=0.5) and gap.paired > gap.shuffled
    assert gap.shifted > gap.paired
    assert gap.noise(False) == pytest.approx(math.sqrt((gap.paired**-2 - 1) / 16))
    noise = torch.randn(4000, 16) * noise_of(0.5, 16)
    text = torch.nn.functional.normalize(torch.randn(4000, 16), dim=1)
    assert torch.cosine_similarity(text, text + noise).mean().item() == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ClipcapError, match="do not lie near"):
        noise_of(-0.1, 16)


def test_the_command_prints_what_it_finds(tmp_path, clip_file, capsys):
    encoder = load_encoder(str(clip_file))
    captions = [f"caption {i} of a plate" for i in range(40)]
    rows = encoder.encode_texts(captions) + 0.1
    write_features(
        tmp_path / "pairs.pkl", embeddings=rows, image_ids=captions, image_paths=[None] * 40,
        captions=[(caption,) for caption in captions], meta=FeatureMeta(encoder=str(clip_file)),
    )  # fmt: skip
    status, out, _ = run(capsys, "features", "gap", str(tmp_path / "pairs.pkl"))
    gap = measure(rows, encoder.encode_texts(captions))
    assert status == 0
    assert f"  paired:     mean cosine {gap.paired:.4f}" in out
    assert f"  noise:      {gap.noise(False):.4f} per dimension (--noise auto)" in out
