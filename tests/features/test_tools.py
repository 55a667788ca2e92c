"""`clipcap features`: what a file holds is said, what is wrong is found, and files made of others hold the same."""

from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.road import run
from support.small import DIM, META, feature_file

import clipcap
from clipcap.features import folder_writer, tools
from clipcap.features.feature_set import Features
from clipcap.features.files import read_features, write_features
from clipcap.features.split import split_features
from clipcap.runtime import disk_arrays

TEXTS = [("one", "two"), ("three",), ("four", "five", "six"), ("seven",), ("eight",), ("nine", "ten"), ("eleven",)]
FORMS = ["f.pkl", "f"]


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Two rows a shard, and a part of the work at a time, so that seven rows are many."""
    monkeypatch.setattr(folder_writer, "SHARD_ROWS", 2)
    monkeypatch.setattr(folder_writer, "TOGETHER", 1)
    monkeypatch.setattr(disk_arrays, "BLOCK", 2)
    monkeypatch.setattr(tools, "BLOCK", 2)
    monkeypatch.setattr("clipcap.features.verify.BLOCK", 2)


def content(features: Features) -> list[tuple]:
    """(id, path, captions, numbers) of each row."""
    rows = features.rows(slice(None)).tolist()
    captions = [features.captions_of(row) for row in range(features.num_images)]
    assert captions == features.captions_by_row()
    return list(zip(features.image_ids, features.image_paths, captions, rows))


def old_pickle(path: Path, rows: torch.Tensor, items: list[dict]) -> Path:
    """As the original writes it: a row for each caption, nothing said of the encoder."""
    path.write_bytes(pickle.dumps({"clip_embedding": rows, "captions": items}))
    return path


def item(row: int, caption: str = "a caption", image: int | None = None) -> dict:
    return {"image_id": row if image is None else image, "caption": caption, "clip_embedding": row}


# --- info ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "kind"), [("f.pkl", "feature pickle"), ("f", "feature folder")])
def test_info_says_what_a_file_is_and_holds(form, kind, tmp_path, capsys):
    path = feature_file(tmp_path / form, TEXTS, meta=replace(META, normalized=True, source="food plates"))
    status, out, err = run(capsys, "features", "info", path)
    assert (status, err) == (0, [])
    assert out[0] == str(path)
    said = dict(line.strip().split(": ", 1) for line in (re.sub(r":\s+", ": ", line) for line in out[1:]))
    size = sum(f.stat().st_size for f in ([path] if path.is_file() else path.rglob("*.*")))
    assert said == {
        "kind": f"{kind}, {size / 1000:.3g} kB",
        "images": "7",
        "captions": "11 (per image: min 1, mean 1.57, max 3)",
        "width": f"{DIM}, float32, normalised",
        "encoder": "tiny-clip",
        "weights id": "0011223344556677",
        "source": "food plates",
        "written by": f"clipcap {clipcap.__version__}",
    }


def test_info_says_what_an_old_file_leaves_open(tmp_path, capsys):
    items = [item(row, image=row // 5) for row in range(10)]
    path = old_pickle(tmp_path / "old.pkl", torch.rand(10, 640).half(), items)
    text = "\n".join(run(capsys, "features", "info", path)[1])
    for part in ("2 in 10 rows", "10 (per image: min 5, mean 5.00, max 5)", "640, float16, not normalised",
                 "RN50x4 (guessed from the width: the file does not say)", "weights id: not known"):  # fmt: skip
        assert part in text


# --- verify -------------------------------------------------------------------------------------------------------


def verified(capsys, path):
    status, out, err = run(capsys, "features", "verify", path)
    assert err == []
    assert all(line.startswith(f"{path}: ") for line in out)
    return status, [line.removeprefix(f"{path}: ") for line in out]


@pytest.mark.parametrize("form", FORMS)
def test_a_sound_file_is_said_to_be_sound(form, tmp_path, capsys):
    path = feature_file(tmp_path / form, TEXTS)
    assert verified(capsys, path) == (0, ["7 rows, 11 captions, nothing wrong"])


@pytest.mark.parametrize("form", FORMS)
def test_every_kind_of_fault_is_a_line_with_the_first_of_them(form, tmp_path, capsys):
    vectors = np.random.default_rng(0).standard_normal((7, DIM)).astype(np.float32)
    vectors[3, 1], vectors[4, 2] = np.nan, np.inf
    vectors[5:] = 0
    texts = [("fine",), ("", "fine"), ("fine",), ("fine",), (" \t",), ("fine",), ()]
    ids = ["a", "b", "a", "d", "e", "f", "a"]
    write_features(tmp_path / form, embeddings=vectors, image_ids=ids, image_paths=ids, captions=texts, meta=META)
    status, lines = verified(capsys, tmp_path / form)
    assert status == 1
    empty = {"f.pkl": "captions[1] of row 1", "f": "row 1 (image b)"}[form]
    assert sorted(lines) == [
        "embeddings of zeros: 2, the first: row 5 (image f)",
        "embeddings with NaN or infinity: 2, the first: row 3 (image d)",
        f"empty captions: 2, the first: {empty}",
        "image ids given twice: 2, the first: a is row 0 and, with another embedding, row 2",
    ]


def test_rows_that_repeat_an_image_are_no_fault(tmp_path, capsys):
    """The original writes a row for each caption of an image."""
    rows = torch.rand(3, 8).repeat_interleave(2, dim=0)
    path = old_pickle(tmp_path / "old.pkl", rows, [item(row, image=row // 2) for row in range(6)])
    note = "note: 3 rows repeat an image, as in files with a row for each caption"
    assert verified(capsys, path) == (0, [note, "6 rows, 6 captions, nothing wrong"])
    tools.convert(path, tmp_path / "folder", None, None)
    assert verified(capsys, tmp_path / "folder")[0] == 0


def test_captions_that_point_nowhere_are_found(tmp_path, capsys):
    rows = [item(0), item(5), item(1), item(-1), item(1, caption=7)]
    path = old_pickle(tmp_path / "old.pkl", torch.rand(2, 8), rows)
    status, lines = verified(capsys, path)
    assert (status, len(lines)) == (1, 1)
    assert lines[0].startswith("captions that point at no row, or are not text: 3, the first: ")
    assert "captions[1] points at row 5, the rows are 0 to 1" in lines[0]


def test_shards_that_do_not_fit_are_found_and_the_others_looked_through(tmp_path, capsys):
    vectors = np.random.default_rng(0).standard_normal((14, DIM)).astype(np.float32)
    vectors[13] = 0
    ids = [f"photo{i}" for i in range(14)]
    path = tmp_path / "f"
    write_features(path, embeddings=vectors, image_ids=ids, image_paths=ids, captions=[("x",)] * 14, meta=META)
    np.save(path / "img_emb" / "img_emb_0.npy", vectors[:1])
    (path / "img_emb" / "img_emb_2.npy").unlink()
    np.save(path / "img_emb" / "img_emb_3.npy", vectors[:2, :8])
    os.truncate(path / "metadata" / "metadata_4.parquet", 50)
    (path / "clipcap.json").write_text("{")
    status, lines = verified(capsys, path)
    assert status == 1
    kinds = {kind: rest for kind, _, rest in (line.partition(", the first: ") for line in lines)}
    assert kinds["shards whose counts disagree: 1"].endswith("metadata_0.parquet has 2 lines for 1 embeddings")
    assert kinds["shards with embeddings or metadata, but not both: 1"] == "shard 2"
    assert "img_emb_3.npy: is 8 wide" in kinds["damaged shards: 2"]
    assert "clipcap.json: is damaged" in kinds["damaged meta: 1"]
    assert kinds["embeddings of zeros: 1"] == "row 5 (image photo13)"  # the fifth of those that can be read
    assert len(kinds) == len(lines) == 5


@pytest.mark.parametrize("data", [b"", b"no pickle", b"\x80\x04cos\nsystem\n"])
def test_a_file_that_cannot_be_read_is_one_line(data, tmp_path, capsys):
    path = tmp_path / "bad.pkl"
    path.write_bytes(data)
    status, (line,) = verified(capsys, path)
    assert status == 1
    assert line.startswith(f"damaged: 1, the first: {path}: ")


def test_plain_folders_of_clip_retrieval_are_verified(tmp_path, capsys):
    for part in ("img_emb", "metadata"):
        (tmp_path / part).mkdir()
    np.save(tmp_path / "img_emb" / "img_emb_0.npy", np.ones((3, 8), np.float16))
    table = pa.table({"image_path": ["a", "b", "c"], "caption": ["one", None, ""]})
    pq.write_table(table, tmp_path / "metadata" / "metadata_0.parquet")
    assert verified(capsys, tmp_path) == (1, ["empty captions: 1, the first: row 2 (image c)"])
    (tmp_path / "metadata" / "metadata_0.parquet").unlink()
    assert verified(capsys, tmp_path) == (0, ["3 rows, 0 captions, nothing wrong"])
    np.save(tmp_path / "img_emb" / "img_emb_0.npy", np.ones((0, 8), np.float16))
    assert verified(capsys, tmp_path) == (1, [f"damaged: 1, the first: {tmp_path}: holds no images"])
    (tmp_path / "img_emb" / "img_emb_0.npy").unlink()
    assert verified(capsys, tmp_path)[0] == 1


# --- convert ------------------------------------------------------------------------------------------------------


def test_a_pickle_becomes_a_folder_and_a_pickle_again(tmp_path, capsys):
    path = feature_file(tmp_path / "f.pkl", TEXTS)
    status, out, err = run(capsys, "features", "convert", path, "--out", tmp_path / "folder")
    assert (status, out, err) == (0, [], [f"wrote {tmp_path / 'folder'}: 7 images, 11 captions"])
    assert run(capsys, "features", "convert", tmp_path / "folder", "--out", tmp_path / "again.pkl")[0] == 0
    assert content(read_features(tmp_path / "folder")) == content(read_features(path))
    assert read_features(tmp_path / "folder").meta == read_features(path).meta
    assert (tmp_path / "again.pkl").read_bytes() == path.read_bytes()


@pytest.mark.parametrize("form", FORMS)
def test_numbers_are_converted_also_in_place(form, tmp_path, capsys):
    path = feature_file(tmp_path / form, TEXTS)
    before = read_features(path).rows(slice(None))
    assert run(capsys, "features", "convert", path, "--out", path, "--dtype", "float16")[0] == 0
    after = read_features(path)
    assert (after.meta.dtype, after.embeddings.dtype) == ("float16", torch.float16)
    assert torch.equal(after.rows(slice(None)), before.half().float())
    assert run(capsys, "features", "convert", path, "--out", tmp_path / "g", "--dtype", "float32")[0] == 0
    assert read_features(tmp_path / "g").embeddings.dtype == torch.float32


def test_numbers_that_do_not_fit_are_refused_and_nothing_is_written(tmp_path, capsys):
    vectors = torch.full((3, 4), 1e6)
    path = old_pickle(tmp_path / "old.pkl", vectors, [item(row) for row in range(3)])
    for out in FORMS:
        status, _, (line,) = run(capsys, "features", "convert", path, "--out", tmp_path / out, "--dtype", "float16")
        assert status == 1
        assert line == f"clipcap: error: {path}: holds numbers too large for float16: leave --dtype float16 out"
    assert [file.name for file in tmp_path.iterdir()] == ["old.pkl"]


def test_the_encoder_of_an_old_file_can_be_written_down(tmp_path, capsys):
    path = old_pickle(tmp_path / "old.pkl", torch.rand(2, 512), [item(0), item(1)])
    words = ["features", "convert", path, "--out", tmp_path / "new"]
    assert run(capsys, *words)[0] == 0
    assert read_features(tmp_path / "new").meta.encoder_guessed
    assert run(capsys, *words, "--clip_model_type", "ViT-B/16")[0] == 0
    assert read_features(tmp_path / "new").encoder_note is None
    status, _, (line,) = run(
        capsys, "features", "convert", tmp_path / "new", "--out", path, "--clip_model_type", "RN50"
    )
    assert status == 1
    assert "was parsed with ViT-B/16, not RN50" in line


# --- split --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("form", "out"), [("f.pkl", "g"), ("f", "g_train.pkl"), ("f", "g")])
def test_a_split_is_by_image_and_that_of_training(form, out, tmp_path, capsys):
    path = feature_file(tmp_path / form, TEXTS)
    words = ["features", "split", path, "--train_size", 0.7, "--seed", 3, "--out", tmp_path / out]
    status, printed, said = run(capsys, *words)
    assert (status, printed) == (0, [])
    ending = ".pkl" if out.endswith(".pkl") else ""
    places = [tmp_path / f"g_{name}{ending}" for name in ("train", "val")]
    train, val = map(read_features, places)
    assert said[0] == f"wrote {places[0]}: 4 images, {len(train.captions)} captions"
    whole = read_features(path)
    expected = split_features(whole, 0.3, 3)
    assert [content(train), content(val)] == [content(part) for part in expected]
    assert train.meta == val.meta == whole.meta


def test_all_rows_of_an_image_go_to_one_side(tmp_path, capsys):
    rows, items = torch.rand(20, 8), [item(row, image=row // 2) for row in range(20)]
    path = old_pickle(tmp_path / "old.pkl", rows, items)
    assert run(capsys, "features", "split", path, "--train_size", 0.7, "--out", tmp_path / "g")[0] == 0
    train, val = (set(read_features(tmp_path / f"g_{name}").image_ids) for name in ("train", "val"))
    assert (len(train), len(val), len(train & val)) == (7, 3, 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--train_size", "1"], "--train_size is a share between 0 and 1, got 1.0"),
        (["--train_size", "0.99999"], "leaves train or val empty"),
        (["--seed", "-1"], "--seed"),
    ],
)
def test_a_split_that_cannot_be_is_refused(words, said, tmp_path, capsys):
    path = feature_file(tmp_path / "f.pkl", TEXTS[:1])
    status, _, (line,) = run(capsys, "features", "split", path, "--out", tmp_path / "g", *words)
    assert status == 1
    assert said in line
    assert [file.name for file in tmp_path.iterdir()] == ["f.pkl"]


# --- merge --------------------------------------------------------------------------------------------------------


def others(path: Path, texts, first: int = 100, **changes) -> Path:
    """Features of images that are in no other file."""
    ids = [f"photo{first + i}" for i in range(len(texts))]
    vectors = np.random.default_rng(first).standard_normal((len(texts), DIM)).astype(np.float32)
    options = {"embeddings": vectors, "image_paths": ids, "captions": texts, "meta": META, **changes}
    write_features(path, image_ids=ids, **options)
    return path


@pytest.mark.parametrize("out", FORMS)
def test_merged_files_hold_all_rows_in_order(out, tmp_path, capsys):
    one, two = feature_file(tmp_path / "one.pkl", TEXTS), others(tmp_path / "two", TEXTS[:5])
    status, lines, said = run(capsys, "features", "merge", one, two, "--out", tmp_path / out)
    assert (status, lines, said) == (0, [], [f"wrote {tmp_path / out}: 12 images, 19 captions"])
    merged = read_features(tmp_path / out)
    assert content(merged) == [*content(read_features(one)), *content(read_features(two))]
    assert (merged.meta.encoder, merged.meta.encoder_weights_id) == (META.encoder, META.encoder_weights_id)


def test_what_is_merged_says_of_itself_what_is_true_of_all(tmp_path):
    meta = replace(META, encoder_weights_id=None, source="two")
    half = np.ones((1, DIM), np.float16)
    one = others(tmp_path / "one", [("x",)], embeddings=half, meta=replace(META, source="one"))
    two = others(tmp_path / "two", [("y",)], 200, meta=meta)
    tools.merge([one, two], tmp_path / "all", False, None)
    merged = read_features(tmp_path / "all").meta
    assert (merged.source, merged.encoder_weights_id, merged.dtype) == ("one; two", None, "float32")
    tools.merge([one, others(tmp_path / "three", [("z",)], 300, embeddings=half)], tmp_path / "all", False, None)
    assert read_features(tmp_path / "all").meta.dtype == "float16"


def test_one_image_id_in_two_files_is_refused_or_told_apart(tmp_path, capsys):
    one, two = feature_file(tmp_path / "one.pkl", TEXTS), feature_file(tmp_path / "two", TEXTS[:3], seed=1)
    words = ["features", "merge", one, two, "--out", tmp_path / "all"]
    status, _, (line,) = run(capsys, *words)
    assert status == 1
    assert f"{two}: 3 of its rows have an image id that a file before it has too, the first is photo0:" in line
    assert "--prefix_ids" in line
    assert not (tmp_path / "all").exists()
    assert run(capsys, *words, "--prefix_ids")[0] == 0
    merged = read_features(tmp_path / "all")
    assert list(merged.image_ids) == [f"one/photo{i}" for i in range(7)] + [f"two/photo{i}" for i in range(3)]
    (tmp_path / "there").mkdir()
    same = feature_file(tmp_path / "there" / "one", TEXTS)
    status, _, (line,) = run(capsys, "features", "merge", one, same, "--prefix_ids", "--out", tmp_path / "all")
    assert status == 1
    assert "two of the files are called one: rename one" in line


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"meta": replace(META, encoder="x", encoder_weights_id=None)}, "made with x, {one} expects tiny-clip"),
        ({"meta": replace(META, encoder_weights_id="99")}, "of weights 99, {one} expects tiny-clip of weights 0011"),
        ({"embeddings": np.ones((1, 8))}, "8 wide (tiny-clip), {one} expects 32 (tiny-clip)"),
        ({"meta": replace(META, normalized=True)}, "{two}: is normalised, {one} is not"),
        ({"meta": replace(META, encoder=None, encoder_weights_id=None)}, "{two}: does not say its encoder: if it is "
         "that of {one}, add --clip_model_type tiny-clip"),
    ],
)  # fmt: skip
def test_files_that_do_not_go_together_are_not_merged(changes, said, tmp_path, capsys):
    one, two = feature_file(tmp_path / "one.pkl", TEXTS), others(tmp_path / "two", [("x",)], **changes)
    status, _, (line,) = run(capsys, "features", "merge", one, two, "--out", tmp_path / "all")
    assert status == 1
    assert said.format(one=one, two=two) in line
    assert not (tmp_path / "all").exists()


def test_an_old_file_is_merged_once_its_encoder_is_named(tmp_path, capsys):
    one = feature_file(tmp_path / "one", TEXTS, meta=replace(META, encoder="ViT-B/16"), dim=512)
    two = old_pickle(tmp_path / "two.pkl", torch.rand(2, 512), [item(0), item(1)])
    words = ["features", "merge", one, two, "--out", tmp_path / "all"]
    assert "add --clip_model_type ViT-B/16" in run(capsys, *words)[2][0]
    assert run(capsys, *words, "--clip_model_type", "ViT-B/16")[0] == 0
    assert read_features(tmp_path / "all").meta.encoder_guessed is False


def test_one_file_alone_is_not_merged(tmp_path, capsys):
    path = feature_file(tmp_path / "one", TEXTS)
    assert "give two files or more" in run(capsys, "features", "merge", path, "--out", tmp_path / "x")[2][0]


# --- places, memory -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ["info", "verify", "convert", "split", "merge"])
def test_what_is_not_there_or_taken_is_one_line(action, tmp_path, capsys):
    path = feature_file(tmp_path / "f.pkl", TEXTS)
    words = [] if action in ("info", "verify") else ["--out", tmp_path / "taken"]
    words = [*[path] * (action == "merge"), *words]
    status, out, (line,) = run(capsys, "features", action, tmp_path / "no.pkl", *words)
    assert (status, out) == (1, [])
    assert f"{tmp_path / 'no.pkl'}: no such feature file" in line
    for name in ("taken", "taken_val"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").touch()
    if action not in ("info", "verify"):
        status, out, (line,) = run(capsys, "features", action, path, *words)
        assert (status, out) == (1, [])
        assert "is a folder of other files" in line
        assert not (tmp_path / "taken_train").exists()


MEMORY = """
import sys, threading, time
import numpy as np
from clipcap.features import folder_writer, tools, verify
from clipcap.features.feature_set import Content, FeatureMeta
from clipcap.features.files import write_parts

folder_writer.SHARD_ROWS = 2000
where, shards = sys.argv[1], int(sys.argv[2])

def parts():
    for shard in range(shards):
        ids = [f"{shard}/{i}" for i in range(2000)]
        yield Content(np.ones((2000, 512), np.float16), ids, ids, [["a caption of some words " * 20] * 2] * 2000)

def used():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    while True:
        seen.append(used())
        time.sleep(0.005)

seen = []
write_parts(where + "/f", parts(), FeatureMeta(encoder="x", dtype="float16"))
threading.Thread(target=watch, daemon=True).start()
assert tools.verify(where + "/f")
tools.convert(where + "/f", where + "/g", "float32", None)
tools.split(where + "/g", 0.5, 1, where + "/h")
tools.merge([where + "/h_train", where + "/h_val"], where + "/i", False, None)
print(max(seen))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_memory_does_not_grow_with_a_folder(tmp_path):
    """Eight times the rows: neither embeddings nor captions are kept."""

    def most_used(shards):
        (tmp_path / str(shards)).mkdir()
        command = [sys.executable, "-c", MEMORY, str(tmp_path / str(shards)), str(shards)]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1]) / 1000

    few, many = most_used(2), most_used(16)
    assert many - few < 20, f"{few:.0f} MB for 4,000 rows, {many:.0f} MB for 32,000: 65 MB and 31 MB of captions"
