"""Readers of captions and the feature file, given anything: a result that keeps its promises, or one clear line."""

from __future__ import annotations

import csv
import io
import json
import string
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import REPO
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipcap.errors import ClipcapError
from clipcap.evaluation.caption_files import read_predictions, read_references
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.sources.cells import captions_in
from clipcap.sources.config import SourceConfig
from clipcap.sources.readers import READERS

# Any Unicode, also what breaks lines, changes direction or is no character; but a byte-order mark begins a file.
ANY = st.text(st.characters(exclude_characters="\ufeff"), max_size=40)
WILD = st.one_of(
    ANY,
    st.sampled_from([
        "=1", "<script>alert(1)</script>", "\u202eright", "a\0b", "🍕👩\u200d🍳", "\r\n", "\u2028", '"', "a\tb",
        "-2", "@x", "x" * 2000, "é" * 9,
    ]),
)  # fmt: skip
NAMES = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0/\\\n\r\t#"), min_size=1, max_size=20)
FEW = settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def clean(text: str) -> str:
    """What a caption is to become: one line, without half surrogates and NUL."""
    return " ".join(text.replace("\0", " ").encode("utf-8", "ignore").decode().split())


def records(source: str, path: Path) -> dict[str, tuple[str, ...]] | None:
    """Captions by image id; None where the reader refuses in one line."""
    try:
        found = READERS[source](SourceConfig(data_path=str(path))).records
    except ClipcapError as error:
        assert "\n" not in str(error)
        return None
    for record in found:
        assert record.captions and all(clean(c) == c for c in record.captions)
        record.image_id.encode("utf-8")
    return {record.image_id: record.captions for record in found}


def utf8(text: str) -> str:
    return text.encode("utf-8", "ignore").decode()


# --- sound files of any content come back as they are -----------------------------------------------------------


def write_csv(path: Path, header: list[str], rows: list[list[str]], delimiter: str = ",") -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter, quoting=csv.QUOTE_ALL).writerows([header, *rows])


def food(folder, pairs):
    write_csv(folder / "Captions.csv", ["", "Index", "Captions"], [[str(i), *pair] for i, pair in enumerate(pairs)])
    return "food", folder


def coco_list(folder, pairs):
    content = [{"image_id": number, "caption": text} for number, (_, text) in enumerate(pairs)]
    (folder / "train_caption.json").write_text(json.dumps(content))
    return "coco", folder


def coco_official(folder, pairs):
    images = [{"id": number, "file_name": f"{number}.jpg"} for number in range(len(pairs))]
    notes = [{"image_id": number, "id": number, "caption": text} for number, (_, text) in enumerate(pairs)]
    (folder / "captions_train2017.json").write_text(json.dumps({"images": images, "annotations": notes}))
    return "coco", folder


def coco_karpathy(folder, pairs):
    images = [{"filename": f"{n}.jpg", "cocoid": n, "split": "train", "sentences": [{"raw": text}]}
              for n, (_, text) in enumerate(pairs)]  # fmt: skip
    (folder / "dataset_coco.json").write_text(json.dumps({"images": images}))
    return "coco", folder


def flickr_csv(folder, pairs):
    write_csv(folder / "captions.txt", ["image", "caption"], [[f"{n}.jpg", text.replace("\t", " ")]
                                                              for n, (_, text) in enumerate(pairs)])  # fmt: skip
    return "flickr8k", folder


def flickr_token(folder, pairs):
    lines = [f"{n}.jpg#0\t{text.replace(chr(10), ' ').replace(chr(0), ' ')}\n" for n, (_, text) in enumerate(pairs)]
    (folder / "Flickr8k.token.txt").write_bytes("".join(lines).encode())
    return "flickr8k", folder


def conceptual(folder, pairs):
    (folder / "train").mkdir(exist_ok=True)
    lines = [" ".join(text.replace("\0", " ").split()) + "\thttp://a/b.jpg\n" for _, text in pairs]
    (folder / "Train_GCC-training.tsv").write_bytes("".join(lines).encode())
    return "conceptual", folder


def table(suffix):
    def write(folder, pairs):
        path, rows = folder / f"captions{suffix}", [[f"{n}.jpg", text] for n, (_, text) in enumerate(pairs)]
        if suffix in (".csv", ".tsv"):
            write_csv(path, ["image", "caption"], rows, "," if suffix == ".csv" else "\t")
        elif suffix == ".parquet":
            pq.write_table(pa.table({"image": [r[0] for r in rows], "caption": [r[1] for r in rows]}), path)
        else:
            objects = [json.dumps({"image": image, "caption": text}) for image, text in rows]
            path.write_text("\n".join(objects) if suffix == ".jsonl" else f"[{','.join(objects)}]")
        return "custom", path

    return write


def tar(folder, pairs):
    with tarfile.open(folder / "a.tar", "w") as file:
        for number, (_, text) in enumerate(pairs):
            for name, content in (
                (f"{number}.jpg", b"x"),
                (f"{number}.json", json.dumps({"caption": text}).encode()),
            ):
                member = tarfile.TarInfo(name)
                member.size = len(content)
                file.addfile(member, io.BytesIO(content))
    return "custom", folder / "a.tar"


def texts(folder, pairs):
    for number, (_, text) in enumerate(pairs):
        (folder / f"{number}.jpg").touch()
        one_line = text.translate(dict.fromkeys(map(ord, "\n\r\0"), " "))
        (folder / f"{number}.txt").write_bytes(one_line.encode())
    return "custom", folder


KINDS = {
    "food CSV": food,
    "COCO, the original's list": coco_list,
    "COCO, official": coco_official,
    "COCO, Karpathy's": coco_karpathy,
    "Flickr8k captions.txt": flickr_csv,
    "Flickr8k.token.txt": flickr_token,
    "conceptual TSV": conceptual,
    **{f"custom {suffix}": table(suffix) for suffix in (".csv", ".tsv", ".json", ".jsonl", ".parquet")},
    "tar": tar,
    "x.jpg + x.txt": texts,
}


NO_CAPTION = {
    "nan", "null", "none", "nil", "na", "n/a", "<na>", "\\n", "#n/a", "#na", "#ref!", "#value!", "#name?", "#error!"
}  # fmt: skip
VERBATIM = ("Flickr8k.token.txt", "conceptual TSV")  # hold nothing but captions that people wrote


def is_a_caption(text: str) -> bool:
    """Not what programs write for a caption that is missing, nor signs alone."""
    return text.lower() not in NO_CAPTION and bool(text.strip(string.punctuation + string.whitespace))


@pytest.mark.parametrize("kind", KINDS)
@FEW
@given(pairs=st.lists(st.tuples(NAMES, WILD.map(utf8)), min_size=1, max_size=4))
def test_captions_of_any_text_come_back_clean(kind, pairs, tmp_path_factory):
    source, path = KINDS[kind](tmp_path_factory.mktemp("set"), pairs)
    found = records(source, path)
    expected = [clean(text) for _, text in pairs]
    if kind not in VERBATIM:
        expected = [text if is_a_caption(text) else "" for text in expected]
    if kind == "tar":  # of JSON, where the name of the photo is Google's title
        expected = [text if text.lower() not in (str(n), f"{n}.jpg") else "" for n, text in enumerate(expected)]
    if found is None:  # no caption at all, or what such a file cannot hold: NUL in a CSV, no tab and no header
        assert not any(expected) or any("\0" in text for _, text in pairs) or kind == "food CSV"
    elif kind != "food CSV":
        assert [caption for captions in found.values() for caption in captions] == [text for text in expected if text]


# --- any bytes are a result or one line -------------------------------------------------------------------------

FILES = {
    "food": ["Captions.csv"],
    "coco": ["train_caption.json", "captions_train2017.json", "dataset_coco.json"],
    "flickr8k": ["captions.txt", "Flickr8k.token.txt"],
    "conceptual": ["Train_GCC-training.tsv", "train/download_errors.csv"],
    "custom": ["t.csv", "t.tsv", "t.json", "t.jsonl", "t.parquet", "t.tar", "a.txt"],
}
PLACES = [(source, name) for source, names in FILES.items() for name in names]


def damaged(content: bytes) -> st.SearchStrategy[bytes]:
    """A sound file with some bytes changed, cut out or put in."""

    def change(edits: list[tuple[int, int, bytes]]) -> bytes:
        data = bytearray(content)
        for start, length, new in edits:
            place = start % (len(data) + 1)
            data[place : place + length] = new
        return bytes(data)

    edit = st.tuples(st.integers(0, 10**6), st.integers(0, 5), st.binary(max_size=5))
    return st.one_of(st.binary(max_size=200), st.lists(edit, max_size=4).map(change))


def sound(folder: Path, name: str) -> bytes:
    """A file of this name as it ought to be."""
    writers = {"Captions.csv": food, "train_caption.json": coco_list, "captions_train2017.json": coco_official,
               "dataset_coco.json": coco_karpathy, "captions.txt": flickr_csv, "Flickr8k.token.txt": flickr_token,
               "Train_GCC-training.tsv": conceptual, "t.tar": tar}  # fmt: skip
    if name in ("a.txt", "train/download_errors.csv"):
        return b"0,http://a/b.jpg,HTTP 404\n"
    _, path = writers.get(name, table(Path(name).suffix))(folder, [("a", "a dog"), ("b", "zwei Hündchen")])
    return (path if path.is_file() else path / name).read_bytes()


@pytest.mark.parametrize(("source", "name"), PLACES, ids=[name for _, name in PLACES])
def test_any_bytes_are_records_or_one_line(source, name, tmp_path):
    (tmp_path / "sound").mkdir()
    content = sound(tmp_path / "sound", name)
    folder = tmp_path / "set"
    (folder / "train").mkdir(parents=True)
    if name == "a.txt":
        (folder / "a.jpg").touch()
    if "/" in name:
        (folder / "Train_GCC-training.tsv").write_text("a dog\thttp://a/b.jpg\n")

    @FEW
    @given(data=damaged(content))
    def check(data):
        (folder / name).write_bytes(data)
        records(source, folder / name if name.startswith("t.") else folder)

    check()


@pytest.mark.parametrize("name", ["p.json", "p.jsonl", "p.csv"])
def test_any_bytes_are_captions_or_one_line(name, tmp_path):
    row = '{"image_id": "a.jpg", "caption": "a dog"}'
    content = {"p.json": f"[{row}]", "p.jsonl": f"{row}\n", "p.csv": "image,caption\na.jpg,'=a dog\n"}[name]

    @FEW
    @given(data=damaged(content.encode()))
    def check(data):
        (tmp_path / name).write_bytes(data)
        for read in (read_predictions, read_references):
            try:
                for image, found in read(tmp_path / name).items():
                    assert type(image) is str
                    assert all(type(text) is str for text in ([found] if read is read_predictions else found))
            except ClipcapError as error:
                assert "\n" not in str(error)

    check()


# --- the feature file -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["f.pkl", "f"])
@FEW
@given(
    data=st.data(), count=st.integers(1, 4), width=st.integers(1, 5), dtype=st.sampled_from(["float16", "float32"])
)
def test_features_of_any_text_and_number_come_back(form, data, count, width, dtype, tmp_path_factory):
    path = tmp_path_factory.mktemp("features") / form
    words = WILD.map(utf8)
    ids = data.draw(st.lists(words, min_size=count, max_size=count))
    paths = data.draw(st.lists(st.one_of(st.none(), words), min_size=count, max_size=count))
    of_row_ = st.lists(words.map(lambda text: text or "x"), max_size=3)
    captions = data.draw(st.lists(of_row_, min_size=count, max_size=count))
    numbers = np.frombuffer(data.draw(st.binary(min_size=2 * count * width, max_size=2 * count * width)), np.float16)
    embeddings = numbers.astype(dtype).reshape(count, width)
    write_features(
        path, embeddings=embeddings, image_ids=ids, image_paths=paths, captions=captions, meta=FeatureMeta()
    )
    features = read_features(path)
    assert list(features.image_ids) == ids
    assert list(features.image_paths) == paths
    assert list(features.captions) == [text for of_row in captions for text in of_row]
    assert features.caption_rows.tolist() == [row for row, of_row in enumerate(captions) for _ in of_row]
    np.testing.assert_array_equal(features.rows(slice(None)).numpy(), embeddings.astype(np.float32))


@pytest.mark.parametrize(
    "file", ["f.pkl", "f/clipcap.json", "f/img_emb/img_emb_0.npy", "f/metadata/metadata_0.parquet"]
)
def test_a_damaged_feature_file_is_features_or_one_line(file, tmp_path):
    for form in ("f.pkl", "f"):
        write_features(
            tmp_path / form,
            embeddings=np.ones((2, 3), np.float32),
            image_ids=["a", "b"],
            image_paths=["a", None],
            captions=[("one",), ("two", "three")],
            meta=FeatureMeta(),
        )
    content = (tmp_path / file).read_bytes()

    @FEW
    @given(data=damaged(content))
    def check(data):
        (tmp_path / file).write_bytes(data)
        try:
            features = read_features(tmp_path / file.split("/")[0])
            features.rows([0]), list(features.captions), list(features.image_ids), list(features.image_paths)
        except ClipcapError as error:
            assert "\n" not in str(error)

    check()


def test_statistics_that_end_a_process_when_they_are_asked_for_are_one_line(tmp_path):
    """pyarrow ends the process where it is asked for a column chunk whose statistics do not fit its schema."""
    path = tmp_path / "t.parquet"
    found = (REPO / "fuzz/corpus/readers/crash-parquet-levels").read_bytes()
    path.write_bytes(found[1:])  # the first byte chooses the reader
    command = [sys.executable, "-m", "clipcap", "parse", "custom", "--data_path", path, "--dry_run"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=REPO)
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith(f"clipcap: error: {path}: damaged Parquet file")


@pytest.mark.parametrize("text", ['{"a"\rb}', '["a"\rb]'])
def test_a_text_in_braces_with_a_line_end_is_a_text(text):
    assert captions_in(text) == [text.strip()]
