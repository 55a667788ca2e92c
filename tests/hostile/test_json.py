"""JSON that is damaged or means harm, in every place where a command reads it: one line, or the right result."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from conftest import CAPTIONS
from support.road import draw_set, run, save_captioner

from clipcap.clip_gpt.checkpoint import save_clip_gpt
from clipcap.clip_gpt.config import ClipGptConfig
from clipcap.clip_gpt.model import ClipGPT
from clipcap.clip_gpt.sequences import Layout
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.models.language_model import load_lm, load_tokenizer


@pytest.fixture(scope="module")
def place(tmp_path_factory, lm_folder, clip_file):
    """A feature folder, an index, a captioner, a CLIP-GPT, captions and an evaluation of them."""
    folder = tmp_path_factory.mktemp("json")
    ids = [f"{number}.png" for number in range(len(CAPTIONS))]
    meta = FeatureMeta(encoder=str(clip_file))
    write_features(folder / "features", embeddings=torch.randn(len(ids), 64), image_ids=ids, image_paths=ids,
                   captions=[(caption,) for caption in CAPTIONS], meta=meta)  # fmt: skip
    save_captioner(folder / "captioner", lm_folder, clip_file)
    config = ClipGptConfig(clip_dim=64, lm=str(lm_folder), tune="full")
    tokenizer = load_tokenizer(str(lm_folder))
    model = ClipGPT(config, load_lm(str(lm_folder)), Layout(tokenizer))
    save_clip_gpt(model, tokenizer, folder / "clip_gpt")
    (folder / "predictions.json").write_text(json.dumps([{"image_id": i, "caption": "a plate"} for i in ids]))
    from clipcap.cli.main import main

    assert main(["index", str(folder / "features"), "--out", str(folder / "index")]) == 0
    words = ["--predictions", str(folder / "predictions.json"), "--references", str(folder / "features")]
    assert main(["evaluate", *words, "--out", str(folder / "scores"), "--no_java"]) == 0
    return folder


def compare(folder) -> list:
    return ["compare", folder / "scores", folder / "scores", "--no_java", "--out", folder / "both.html"]


# file → the command that reads it, in a copy of all of them
READERS = {
    "features/clipcap.json": lambda f: ["features", "info", f / "features"],
    "index/index.json": lambda f: ["search", "--index", f / "index", "--image_id", "0.png"],
    "captioner/config.json": lambda f: [
        "predict", "--load_pt", f / "captioner", "--features", f / "features", "--max_new_tokens", 2],
    "captioner/tokenizer/tokenizer_config.json": lambda f: [
        "predict", "--load_pt", f / "captioner", "--features", f / "features", "--max_new_tokens", 2],
    "clip_gpt/config.json": lambda f: [
        "caption-clip-gpt", "--load_pt", f / "clip_gpt", "--features", f / "features", "--device", "cpu",
        "--max_new_tokens", 2, "--beam"],
    "predictions.json": lambda f: [
        "evaluate", "--predictions", f / "predictions.json", "--references", f / "features", "--no_java", "--out",
        f / "again"],
    "scores/metrics.json": compare,
    "scores/predictions.json": compare,
    "scores/references.json": compare,
}  # fmt: skip
TEXTS = {
    "nothing": b"",
    "a number": b"3",
    "null": b"null",
    "a text": b'"x"',
    "an empty object": b"{}",
    "an empty list": b"[]",
    "a list of null": b"[null]",
    "an open bracket": b"[",
    "deep lists": b"[" * 200_000,
    "deep objects": b'{"a":' * 200_000,
    "a number of 5,000 digits": b'{"format_version": ' + b"1" * 5000 + b"}",
    "not UTF-8": b'{"a": "\xff\xfe"}',
    "NUL": b"\0" * 64,
    "UTF-16": '{"a": 1}'.encode("utf-16"),
}


def outcome(capsys, *words) -> int:
    """The status of a command that does what it is asked, or says in one line why not."""
    status, _, err = run(capsys, *words)
    said = [line for line in err if line.startswith("clipcap: error: ")]
    assert not [line for line in err if "Traceback" in line]
    assert (status, len(said)) in ((0, 0), (1, 1)), err
    assert all(len(line) < 1000 for line in said)
    return status


@pytest.mark.parametrize("kind", TEXTS)
@pytest.mark.parametrize("name", READERS)
def test_a_file_that_is_no_such_json_is_refused(name, kind, place, tmp_path, capsys):
    copy = shutil.copytree(place, tmp_path / "copy")
    (copy / name).write_bytes(TEXTS[kind])
    status = outcome(capsys, *READERS[name](copy))
    harmless = kind == "an empty object" and name.endswith(("tokenizer_config.json", "clipcap.json"))
    assert status == 1 or harmless


VALUES = (None, -1, 10**18, 1.5, float("nan"), float("inf"), "x", "../../../etc/passwd", [], {}, [[]], True)


@pytest.mark.parametrize("name", [name for name in READERS if "predictions" not in name and "references" not in name])
def test_no_value_of_another_kind_gets_through_as_a_traceback(name, place, tmp_path, capsys):
    """Some keys of each file, in turn, with values of all kinds."""
    copy = shutil.copytree(place, tmp_path / "copy")
    content = json.loads((copy / name).read_text())
    path = [(key,) for key in content] + [
        (key, inner) for key in content if isinstance(content[key], dict) for inner in list(content[key])[:12]
    ]
    for number, keys in enumerate(path[:: max(1, len(path) // 6)]):
        value = VALUES[number % len(VALUES)]
        changed = json.loads(json.dumps(content))
        inner = changed[keys[0]] if len(keys) == 2 else changed
        inner[keys[-1]] = value
        (copy / name).write_text(json.dumps(changed))
        try:
            outcome(capsys, *READERS[name](copy))
        except Exception as error:
            raise AssertionError(f"{name}: {'.'.join(keys)} = {value!r}: {error!r}") from error


LINES = [
    "3", "null", "[1]", '{"epoch": "x"}', '{"epoch": 0, "train_loss": null}', '{"epoch": 0, "train_loss": NaN}',
    '{"epoch": 0, "train_loss": "<marquee>"}', "[" * 100_000, "\0", '{"epoch": 0, "train_loss": [1]}',
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_strange_training_log_costs_the_curves_alone(line, place, tmp_path, capsys):
    copy = shutil.copytree(place, tmp_path / "copy")
    (copy / "captioner" / "metrics.jsonl").write_text(line + "\n")
    words = ["--load_pt", copy / "captioner", "--data", copy / "features", "--out", copy / "new", "--no_java"]
    assert outcome(capsys, "evaluate", *words, "--device", "cpu", "--no_clip_score", "--max_new_tokens", 2) == 0
    assert "<marquee>" not in (copy / "new" / "report.html").read_text()


CAPTION_JSON = {
    "NaN as a caption": ('[{"image": "photo0.png", "caption": NaN}, {"image": "photo0.png", "caption": "a"}]', 0),
    "Infinity as an image": ('[{"image": Infinity, "caption": "a"}, {"image": "photo0.png", "caption": "a"}]', 0),
    "a key given twice": ('[{"image": "photo0.png", "image": "photo1.png", "caption": "a"}]', 1),
    "deep nesting": ("[" * 200_000, 1),
    "a deep caption": ('[{"image": "photo0.png", "caption": ' + "[" * 500 + "]" * 500 + "}]", 1),
    "half a surrogate": ('[{"image": "photo0.png", "caption": "a \\ud800 b"}]', 0),
    "a NUL": ('[{"image": "photo0.png", "caption": "a \\u0000 b"}]', 0),
    "a path that climbs": ('[{"image": "../../../../etc/passwd", "caption": "a"}]', 1),
    "a number of 5,000 digits": ('[{"image": "photo0.png", "caption": ' + "1" * 5000 + "}]", 1),
    "a caption of an object": ('[{"image": "photo0.png", "caption": {"a": 1}}]', 1),
}


@pytest.mark.parametrize("kind", CAPTION_JSON)
def test_captions_in_hostile_json(kind, tmp_path, clip_file, capsys):
    text, expected = CAPTION_JSON[kind]
    photos = draw_set(tmp_path / "set", 1)
    (photos / "captions.csv").unlink()
    (photos / "captions.json").write_text(text)
    words = ("--data_path", photos, "--clip_model_type", clip_file, "--out", tmp_path / "f.pkl", "--device", "cpu")
    assert outcome(capsys, "parse", "custom", *words, "--workers", 0) == expected
    if expected == 0:
        features = read_features(tmp_path / "f.pkl")
        assert all(caption == " ".join(caption.split()) for caption in features.captions)
        "".join(features.captions).encode("utf-8")
