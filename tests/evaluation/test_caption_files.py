"""Predictions and references in the files that people have."""

from __future__ import annotations

import json

import pytest
from support.photos import put

from clipcap.errors import ClipcapError
from clipcap.evaluation.caption_files import match_images, read_predictions, read_references

TEXTS = {"1": "a red kite", "2": "two cups"}
ROWS = [{"image_id": int(i), "caption": text} for i, text in TEXTS.items()]

PREDICTIONS = {
    "by_image.json": json.dumps(TEXTS),
    "by_image_in_lists.json": json.dumps({i: [text] for i, text in TEXTS.items()}),
    "pycocoevalcap.json": json.dumps({i: [{"caption": text}] for i, text in TEXTS.items()}),
    "coco.json": json.dumps(ROWS),
    "lines.jsonl": "\n".join(map(json.dumps, ROWS)),
    "table.csv": "image,caption\n" + "".join(f"{i},{text}\n" for i, text in TEXTS.items()),
    "excel.csv": "\ufeffsep=;\r\nimage;caption\r\n" + "".join(f"{i};{text}\r\n" for i, text in TEXTS.items()),
    "wrapped.json": json.dumps({"predictions": ROWS}),
    "lines.json": "\n".join(map(json.dumps, ROWS)),
    "utf16.json": json.dumps(TEXTS).encode("utf-16"),
    "answers.jsonl": "\n".join(json.dumps({"image": i, "prompt": "Tell.", "text": t}) for i, t in TEXTS.items()),
    "files.json": json.dumps([{"file_name": i, "caption": [t]} for i, t in TEXTS.items()]),
    "pairs.json": json.dumps([["image", "caption"], *map(list, TEXTS.items())]),
    "table.tsv": "image_id\tcaption\n" + "".join(f"{i}\t{text}\n" for i, text in TEXTS.items()),
}


@pytest.mark.parametrize("name", PREDICTIONS)
def test_predictions_are_read_in_every_form(tmp_path, name):
    path = put(tmp_path / name, PREDICTIONS[name])
    assert read_predictions(path) == TEXTS
    assert read_references(path) == {image: [text] for image, text in TEXTS.items()}


def test_of_predictions_beside_human_captions_the_predictions_are_read(tmp_path):
    rows = [
        {"images": [f"{i}.jpg"], "predict": text, "label": "x", "caption": "a human's"} for i, text in TEXTS.items()
    ]
    path = put(tmp_path / "generated.jsonl", "\n".join(map(json.dumps, rows)))
    assert read_predictions(path) == {f"{i}.jpg": text for i, text in TEXTS.items()}
    assert set(read_references(path)["1.jpg"]) == {"a human's"}


def test_candidates_by_image_are_matched_with_references_by_file(tmp_path):
    predictions = read_predictions(put(tmp_path / "p.json", TEXTS))
    references = read_references(put(tmp_path / "r.json", {i: [text, f"{text} ."] for i, text in TEXTS.items()}))
    assert match_images(predictions, references, "p.json") == TEXTS


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", {"1": ["a", "b"]}, "image 1 has two captions: leave one per image"),
        ("p.json", {"1": 3}, "expected .image: caption."),
        ("p.csv", "image,n,caption\n1,0,x\n2,y\n", "1 row left out: .*line 3: 2 fields"),
        ("p.csv", "a,b,c\n1,2,3\n", "cannot tell the image column"),
    ],
)
def test_predictions_that_are_none_say_why(tmp_path, name, content, message):
    with pytest.raises(ClipcapError, match=message):
        read_predictions(put(tmp_path / name, content))
