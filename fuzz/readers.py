"""Fuzz the readers of image-caption sets and of caption files: records, or one line that says what is wrong.

python fuzz/readers.py fuzz/corpus/readers -max_total_time=60
"""

from __future__ import annotations

import shutil
import sys

import atheris
from in_memory import folder_in_memory

with atheris.instrument_imports(include=["clipcap", "csv", "json", "tarfile", "zipfile"]):
    from clipcap.errors import ClipcapError
    from clipcap.evaluation.caption_files import read_predictions, read_references
    from clipcap.sources.conceptual import FAILURES_FILE
    from clipcap.sources.config import SourceConfig
    from clipcap.sources.readers import READERS as SOURCES

ROOT = folder_in_memory()
# (source, the file that is fuzzed in its folder); without a source a file of captions
KINDS = (
    ("food", "Captions.csv"),
    ("coco", "train_caption.json"),
    ("coco", "captions_train2017.json"),
    ("coco", "dataset_coco.json"),
    ("flickr8k", "captions.txt"),
    ("flickr8k", "Flickr8k.token.txt"),
    ("conceptual", "Train_GCC-training.tsv"),
    ("custom", "t.csv"),
    ("custom", "t.tsv"),
    ("custom", "t.json"),
    ("custom", "t.jsonl"),
    ("custom", "t.parquet"),
    ("custom", "t.tar"),
    ("custom", "a.txt"),
    ("", "p.json"),
    ("", "p.jsonl"),
    ("", "p.csv"),
    ("conceptual", f"train/{FAILURES_FILE}"),
    ("custom", "t.csv.zip"),
    ("custom", "t.csv.xz"),
)


def one_input(data: bytes) -> None:
    """The first byte chooses the file."""
    if not data:
        return
    number = data[0] % len(KINDS)
    source, name = KINDS[number]
    folder = ROOT / str(number)
    (folder / "train").mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data[1:])
    if name == "a.txt":
        (folder / "a.jpg").touch()
    if "/" in name:
        (folder / "Train_GCC-training.tsv").write_text("a dog\thttp://a/1.jpg\n")
    try:
        if source:
            path = folder / name if name.startswith("t.") else folder
            check(SOURCES[source](SourceConfig(data_path=str(path))).records)
        else:
            read_references(folder / name), read_predictions(folder / name)
    except ClipcapError as error:
        assert "\n" not in str(error), error


def check(records: list) -> None:
    """What every source promises of its records."""
    assert records
    for record in records:
        assert record.captions and all(caption == " ".join(caption.split()) for caption in record.captions)
        (record.image_id + "".join(record.captions)).encode("utf-8")


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    try:
        atheris.Fuzz()
    finally:
        shutil.rmtree(ROOT, ignore_errors=True)
