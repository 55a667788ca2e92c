"""Feature files: what is written is read back, by the original trainer too; what is wrong is said in one line."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import pickletools
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from support.disks import files_no_larger_than

from clipcap.errors import ClipcapError
from clipcap.features import folder_writer
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.features.folder import ShardedRows
from clipcap.features.split import split_features
from clipcap.models.encoders.names import guess_encoder

PLACES = f"{Path(__file__).parent} {Path(__file__).parents[1]}"
IDS = ["a", "b", "c", "d", "e"]
PATHS = ["x/a.jpg", "x/b.jpg", None, "x/d.jpg", "x/é.jpg"]
CAPTIONS = [("A dog.", "A brown dog."), ("Ein Hund — 🐕.",), (), ("clip_embedding", "encoder", "a"), ("A cat.",)]
META = FeatureMeta(encoder="ViT-B/32", encoder_weights_id="40d365715913c9da", source="photos.csv")
FORMS = ["features.pkl", "features"]


def embeddings(rows: int = 5, dim: int = 8, dtype=np.float32) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((rows, dim)).astype(dtype)


def write(path: Path, **changes) -> Path:
    content = {"embeddings": embeddings(), "image_ids": IDS, "image_paths": PATHS, "captions": CAPTIONS, "meta": META}
    write_features(path, **{**content, **changes})
    return path


def digest(path: Path) -> str:
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files if file.is_file())).hexdigest()


def clip_retrieval_folder(path: Path, shards: int, columns: list[dict], name: str = "{}", rows: int = 2) -> Path:
    (path / "img_emb").mkdir(parents=True)
    (path / "metadata").mkdir()
    for shard in range(shards):
        vectors = np.full((rows, 8), shard, dtype=np.float16)
        np.save(path / "img_emb" / f"img_emb_{name.format(shard)}.npy", vectors)
        pq.write_table(pa.table(columns[shard]), path / "metadata" / f"metadata_{name.format(shard)}.parquet")
    return path


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("form", FORMS)
def test_features_file_round_trips(tmp_path, form, dtype, monkeypatch):
    monkeypatch.setattr(folder_writer, "SHARD_ROWS", 2)
    vectors = embeddings(dtype=dtype)
    features = read_features(write(tmp_path / "new" / form, embeddings=vectors))
    assert (features.dim, features.num_images) == (8, 5)
    assert np.array_equal(features.rows(range(5)).numpy(), vectors.astype(np.float32))
    assert list(features.captions) == [text for texts in CAPTIONS for text in texts]
    assert features.caption_rows.tolist() == [0, 0, 1, 3, 3, 3, 4]
    assert list(features.image_ids) == IDS
    assert list(features.image_paths) == PATHS
    assert [tuple(features.captions_of(row)) for row in range(5)] == CAPTIONS
    assert features.meta.encoder == META.encoder and features.meta.source == META.source
    assert features.meta.dtype == np.dtype(dtype).name
    assert features.encoder_note is None
    assert [file.name for file in (tmp_path / "new").iterdir()] == [form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("stored", "as_dtype"), [(torch.bfloat16, "float32"), (torch.float16, "float16")])
def test_tensors_are_written_as_float16_or_float32(tmp_path, form, stored, as_dtype):
    vectors = torch.from_numpy(embeddings()).to(stored)
    features = read_features(write(tmp_path / form, embeddings=vectors))
    assert str(features.embeddings.dtype) == f"torch.{as_dtype}" and features.meta.dtype == as_dtype
    assert torch.equal(features.rows(slice(None)), vectors.float())


def test_a_memory_map_is_written_shard_by_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(folder_writer, "SHARD_ROWS", 4)
    np.save(tmp_path / "vectors.npy", embeddings(dtype=np.float16))
    vectors = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    path = write(tmp_path / "features", embeddings=vectors)
    assert sorted(file.name for file in path.rglob("*.*")) == [
        "clipcap.json", "img_emb_0.npy", "img_emb_1.npy", "metadata_0.parquet", "metadata_1.parquet",
    ]  # fmt: skip
    assert np.array_equal(read_features(path).rows([4, 0]).numpy(), vectors[[4, 0]].astype(np.float32))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_our_pickle_loads_as_the_original_trainer_loads_it(tmp_path, dtype):
    data = write(tmp_path / "features.pkl", embeddings=embeddings(dtype=dtype)).read_bytes()
    content = pickle.loads(data)
    assert isinstance(content["clip_embedding"], torch.Tensor)
    assert np.array_equal(content["clip_embedding"].numpy(), embeddings(dtype=dtype))
    assert content["captions"][2] == {"image_id": "b", "id": 2, "caption": "Ein Hund — 🐕.", "clip_embedding": 1}
    operations = list(pickletools.genops(data))
    assert max(opcode.proto for opcode, _, _ in operations) <= 4  # all that Python 3.7 knows
    assert "numpy" not in "".join(arg for _, arg, _ in operations if isinstance(arg, str))


@pytest.fixture(scope="module")
def other_processes(tmp_path_factory):
    """Folders in which processes of other hash seeds have written the same content in every form."""
    script = (
        "import sys, pathlib; sys.path[:0] = sys.argv[1].split(); import test_features as t\n"
        "for path in sys.argv[2:]:\n"
        "    captions = [[''.join(list(x)) for x in texts] for texts in t.CAPTIONS]\n"
        "    t.write(pathlib.Path(path), captions=captions)"
    )
    folders = [tmp_path_factory.mktemp(f"seed{seed}") for seed in (1, 2)]
    for seed, folder in enumerate(folders, 1):
        command = [sys.executable, "-c", script, PLACES, *(str(folder / form) for form in FORMS)]
        subprocess.run(command, check=True, env={**os.environ, "PYTHONHASHSEED": str(seed)})
    return folders


@pytest.mark.parametrize("form", FORMS)
def test_the_same_content_gives_the_same_bytes_in_every_process(tmp_path, other_processes, form):
    assert len({digest(folder / form) for folder in other_processes} | {digest(write(tmp_path / form))}) == 1


@pytest.mark.parametrize("form", FORMS)
def test_nothing_is_found_under_a_name_but_its_split_is(tmp_path, form):
    """`parse --out fold` of a set with splits writes fold_train and fold_val."""
    write(tmp_path / form.replace("features", "fold_train"))
    for name in ("fold", "fold.pkl"):
        near = tmp_path / form.replace("features", "fold_train")
        with pytest.raises(ClipcapError, match=rf"{name}: no such feature file: .*; did you mean {near}\?$"):
            read_features(tmp_path / name)
    with pytest.raises(ClipcapError, match=r"or fix the path$"):
        read_features(tmp_path / "other")


@pytest.mark.parametrize("form", FORMS)
def test_a_new_file_replaces_the_old_one(tmp_path, form):
    write(tmp_path / form, embeddings=embeddings(dim=4))
    assert read_features(write(tmp_path / form)).dim == 8
    assert [file.name for file in tmp_path.iterdir()] == [form]


def test_a_folder_of_other_files_is_never_replaced(tmp_path):
    for form in FORMS:
        (tmp_path / form).mkdir()
        (tmp_path / form / "photo.jpg").touch()
        with pytest.raises(ClipcapError, match=str(tmp_path / form)):
            write(tmp_path / form)
        assert (tmp_path / form / "photo.jpg").exists()


@pytest.mark.parametrize("form", FORMS)
def test_a_full_disk_is_one_line_and_leaves_the_old_file(tmp_path, form):
    path = write(tmp_path / form)
    before = digest(path)
    said = rf"^{re.escape(str(path))}: cannot be written \(File too large\): free some space[^\n]*$"
    with pytest.raises(ClipcapError, match=said), files_no_larger_than(20_000):
        write(path, embeddings=embeddings(dim=4096))
    assert digest(path) == before
    assert [file.name for file in tmp_path.iterdir()] == [form]


@pytest.mark.parametrize("form", FORMS)
def test_a_subset_keeps_the_captions_of_its_rows_alone(tmp_path, form):
    features = read_features(write(tmp_path / form))
    subset = features.subset_by_row(np.array([3, 0]))
    assert torch.equal(subset.rows([0, 1]), features.rows([3, 0]))
    assert list(subset.image_ids) == ["d", "a"] and list(subset.image_paths) == ["x/d.jpg", "x/a.jpg"]
    assert list(subset.captions) == ["A dog.", "A brown dog.", "clip_embedding", "encoder", "a"]
    assert subset.caption_rows.tolist() == [1, 1, 0, 0, 0]
    again = subset.subset_by_row(np.array([1]))
    assert torch.equal(again.rows([0]), features.rows([0])) and list(again.captions) == ["A dog.", "A brown dog."]
    with pytest.raises(IndexError):
        again.rows([1])
    with pytest.raises(ValueError, match="twice"):
        features.subset_by_row(np.array([1, 1]))


def test_rows_of_several_shards_come_in_the_order_asked_for_and_none_from_beyond(tmp_path):
    known = torch.randn(10, 4)
    parts = (known[:3], known[3:3], known[3:4], known[4:])
    for number, part in enumerate(parts):
        np.save(tmp_path / f"{number}.npy", part.numpy())
    rows = ShardedRows([tmp_path / f"{number}.npy" for number in range(len(parts))])
    wanted = torch.tensor([9, 0, 3, 3, 8, 2, 4, 0])
    assert torch.equal(rows[wanted], known[wanted]) and rows[torch.tensor([], dtype=torch.long)].shape == (0, 4)
    for beyond in ([10], [0, 10], [11, 3]):
        with pytest.raises(IndexError):
            rows[torch.tensor(beyond)]


def test_a_worker_process_is_sent_no_embeddings(tmp_path):
    features = read_features(write(tmp_path / "features", embeddings=embeddings(dim=4096)))
    sent = pickle.dumps(features)
    assert len(sent) < 5000
    assert torch.equal(pickle.loads(sent).rows([1]), features.rows([1]))


def test_splits_go_by_image_even_where_rows_are_duplicated(tmp_path):
    items = [{"image_id": 10 + row // 2, "caption": f"{row}", "clip_embedding": row} for row in range(40)]
    (tmp_path / "old.pkl").write_bytes(pickle.dumps({"clip_embedding": torch.rand(40, 8), "captions": items}))
    features = read_features(tmp_path / "old.pkl")
    assert features.image_index.tolist() == [row // 2 for row in range(40)]
    train, val = split_features(features, 0.2, seed=42)
    assert (train.num_images, val.num_images) == (32, 8)
    assert not set(train.image_ids) & set(val.image_ids)
    assert split_features(features, 0.2, seed=42)[1].image_ids == val.image_ids
    assert split_features(features, 0.2, seed=1)[1].image_ids != val.image_ids
    assert train.captions_of(0) == [features.captions[int(train.captions[0])]]
    with pytest.raises(ClipcapError, match="another share"):
        split_features(val.subset_by_row(np.array([0])), 0.2, seed=42)


def test_plain_clip_retrieval_folders_are_read_in_numeric_order(tmp_path):
    columns = [{"image_path": [f"{i}_0.jpg", f"{i}_1.jpg"], "caption": [f"caption {i}", None]} for i in range(11)]
    features = read_features(clip_retrieval_folder(tmp_path, 11, columns))
    assert features.rows(slice(None))[:, 0].tolist() == [i // 2 for i in range(22)]
    assert list(features.captions) == [f"caption {i}" for i in range(11)]
    assert features.caption_rows.tolist() == list(range(0, 22, 2))
    assert features.image_ids[20] == features.image_paths[20] == "10_0.jpg"
    assert not features.meta.normalized and features.meta.dtype == "float16"


def test_img2dataset_columns_and_padded_shard_names_are_read(tmp_path):
    columns = [{"key": [f"0{i}0", f"0{i}1"], "url": ["u0", "u1"], "caption": ["one", ""]} for i in range(2)]
    features = read_features(clip_retrieval_folder(tmp_path, 2, columns, name="{:03}"))
    assert list(features.image_ids) == ["000", "001", "010", "011"]
    assert list(features.image_paths) == ["u0", "u1", "u0", "u1"]
    assert list(features.captions) == ["one", "one"]


def test_embeddings_without_metadata_are_features_without_captions(tmp_path):
    columns = [{"caption": ["one", "two"]}]
    features = read_features(clip_retrieval_folder(tmp_path, 1, columns))
    assert list(features.image_ids) == ["row 0", "row 1"] and features.image_paths == [None, None]
    shutil.rmtree(tmp_path / "metadata")
    features = read_features(tmp_path)
    assert (features.num_images, len(features.captions), features.captions_of(0)) == (2, 0, [])


def test_normalized_rows_are_noticed_where_the_file_does_not_say(tmp_path):
    vectors = torch.nn.functional.normalize(torch.from_numpy(embeddings()), dim=1)
    for rows, normalized in ((vectors, True), (vectors * 2, False)):
        (tmp_path / "old.pkl").write_bytes(pickle.dumps({"clip_embedding": rows, "captions": []}))
        assert read_features(tmp_path / "old.pkl").meta.normalized is normalized


def test_rows_that_are_not_finite_are_found(tmp_path):
    vectors = embeddings()
    vectors[1, 3], vectors[4, 0] = np.nan, np.inf
    for form in FORMS:
        assert read_features(write(tmp_path / form, embeddings=vectors)).non_finite_rows().tolist() == [1, 4]


@pytest.mark.parametrize(("dim", "encoder"), [(512, "ViT-B/32"), (640, "RN50x4"), (768, "ViT-L/14"), (1024, "RN50")])
def test_the_encoder_of_an_old_file_is_guessed_from_the_width(tmp_path, dim, encoder):
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps({"clip_embedding": torch.rand(2, dim), "captions": []}))
    features = read_features(path)
    assert features.meta.encoder == guess_encoder(dim) == encoder and features.meta.encoder_guessed
    assert features.encoder_note == (
        f"{path}: does not say its encoder; {dim} wide, taken for {encoder} (--clip_model_type overrides)"
    )
    named = read_features(path, encoder="hf:some/model")
    assert (named.meta.encoder, named.meta.encoder_guessed, named.encoder_note) == ("hf:some/model", False, None)
    other = "RN50x64" if dim != 1024 else "RN50x4"
    with pytest.raises(ClipcapError, match=f"{dim} wide, those of {other} are"):
        read_features(path, encoder=other)


def test_an_unknown_width_is_said_not_guessed(tmp_path):
    path = tmp_path / "old.pkl"
    path.write_bytes(pickle.dumps({"clip_embedding": torch.rand(2, 77), "captions": []}))
    features = read_features(path)
    assert features.meta.encoder is None
    assert features.encoder_note.endswith("77 wide, the width of no encoder known here (--clip_model_type names it)")


def test_a_file_that_names_its_encoder_is_not_overruled(tmp_path):
    path = write(tmp_path / "features.pkl")
    assert read_features(path, encoder="ViT-B/32").meta.encoder == "ViT-B/32"
    with pytest.raises(ClipcapError, match=r"was parsed with ViT-B/32, not RN50x4: .*--clip_model_type RN50x4"):
        read_features(path, encoder="RN50x4")


def test_features_from_another_encoder_are_refused():
    def check(meta, dim, encoder, weights_id, expected_dim):
        check_same_encoder(meta, dim, encoder, weights_id, expected_dim, "f.pkl", "this checkpoint")

    vit = FeatureMeta(encoder="ViT-B/32")
    guessed = FeatureMeta(encoder="ViT-B/32", encoder_guessed=True)
    known = FeatureMeta(encoder="ViT-B/32", encoder_weights_id="11")
    check(vit, 512, "ViT-B/32", None, 512)
    check(guessed, 512, "ViT-B/16", None, 512)
    check(known, 512, "weights/ViT-B-32.pt", "11", 512)
    check(vit, 512, None, None, 512)
    with pytest.raises(ClipcapError) as error:
        check(guessed, 512, "RN50x4", None, 640)
    assert str(error.value) == (
        "f.pkl: embeddings are 512 wide (ViT-B/32), this checkpoint expects 640 (RN50x4): "
        "parse the images again with --clip_model_type RN50x4"
    )
    with pytest.raises(ClipcapError, match=r"made with ViT-B/32, this checkpoint expects ViT-B/16: parse .*ViT-B/16"):
        check(vit, 512, "ViT-B/16", None, 512)
    with pytest.raises(ClipcapError, match=r"of weights 11, this checkpoint expects ViT-B/32 of weights 22"):
        check(known, 512, "ViT-B/32", "22", 512)


ITEM = {"image_id": "1", "caption": "A dog.", "clip_embedding": 0}
BAD_PICKLES = {
    "not a dictionary": ([1], "found list"),
    "other keys": ({"embeddings": 1, "texts": 2}, "found 'embeddings', 'texts'"),
    "no tensor": ({"clip_embedding": [1.0], "captions": []}, "not an array of floating-point numbers"),
    "whole numbers": (
        {"clip_embedding": torch.ones(2, 4).int(), "captions": []},
        "not an array of floating-point numbers",
    ),
    "one dimension": ({"clip_embedding": torch.rand(4), "captions": []}, r"shape \[4\], expected \[images, width\]"),
    "no rows": ({"clip_embedding": torch.rand(0, 4), "captions": []}, r"shape \[0, 4\]"),
    "captions of another kind": ({"captions": {}}, "captions are not a list"),
    "an item of another kind": ({"captions": [ITEM, 5]}, r"captions\[1\] is neither a dictionary nor a row"),
    "a row too far": ({"captions": [{**ITEM, "clip_embedding": 2}]}, r"captions\[0\] points at row 2, .* 0 to 1"),
    "a negative row": ({"captions": [{**ITEM, "clip_embedding": -1}]}, r"captions\[0\] points at row -1"),
    "no row": ({"captions": [{"caption": "A dog."}]}, r"captions\[0\] points at row <class 'NoneType'>"),
    "a caption that is no text": ({"captions": [{**ITEM, "caption": 5}]}, r"captions\[0\] is not a text but int"),
    "paths of other rows": ({"captions": [ITEM], "image_paths": ["x"]}, "image_paths are not one text for each of 2"),
    "a damaged meta": ({"captions": [ITEM], "meta": {"encoder": 5}}, "meta encoder is damaged"),
    "a later format": ({"captions": [ITEM], "meta": {"format_version": 9}}, "feature format 9, .* update clipcap"),
}


@pytest.mark.parametrize("case", BAD_PICKLES)
def test_bad_pickles_are_said_in_one_line(tmp_path, case):
    content, words = BAD_PICKLES[case]
    content = {"clip_embedding": torch.rand(2, 4), **content} if isinstance(content, dict) else content
    if case == "other keys":
        del content["clip_embedding"]
    path = tmp_path / "bad.pkl"
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(ClipcapError, match=words) as error:
        read_features(path)
    assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("data", "words"),
    [(b"", "is empty"), (b"\xff\xd8\xff\xe0 photo", "no pickle"), (b"PK\x03\x04", "torch.save archive")],
)
def test_files_that_are_no_pickles_are_said_in_one_line(tmp_path, data, words):
    (tmp_path / "bad.pkl").write_bytes(data)
    with pytest.raises(ClipcapError, match=f"bad.pkl: .*{words}"):
        read_features(tmp_path / "bad.pkl")


def test_bad_folders_are_said_in_one_line(tmp_path):
    def said(change) -> str:
        path = tmp_path / "folder"
        shutil.rmtree(path, ignore_errors=True)
        clip_retrieval_folder(path, 2, [{"caption": ["one", "two"]}] * 2)
        change(path)
        with pytest.raises(ClipcapError) as error:
            read_features(path)
        assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
        return str(error.value)

    def save(name, array):
        return lambda path: np.save(path / "img_emb" / name, array, allow_pickle=True)

    def cut(name):
        return lambda path: os.truncate(path / name, (path / name).stat().st_size - 5)

    assert "no such feature file" in said(shutil.rmtree)
    assert "no img_emb/img_emb_*.npy" in said(lambda path: shutil.rmtree(path / "img_emb"))
    assert "truncated" in said(cut("img_emb/img_emb_1.npy"))
    assert "cannot be read" in said(cut("metadata/metadata_1.parquet"))
    assert "img_emb_1.npy: is 4 wide in float16, img_emb_0.npy is 8 wide" in said(
        save("img_emb_1.npy", np.ones((2, 4), np.float16))
    )
    assert "expected floating-point [rows, width], found int64 [2]" in said(save("img_emb_0.npy", np.arange(2)))
    assert "no .npy array" in said(save("img_emb_0.npy", np.array([{}, {}], dtype=object)))
    assert "has 2 lines for 3 embeddings" in said(save("img_emb_1.npy", np.ones((3, 8), np.float16)))
    assert "shard 1 has embeddings or metadata" in said(lambda path: (path / "img_emb/img_emb_1.npy").unlink())
    assert "clipcap.json: is damaged" in said(lambda path: (path / "clipcap.json").write_text("{"))


REFERENCE = "fixtures/reference/feature-pickles"


@pytest.mark.parametrize(
    ("name", "dim", "images", "first_id"),
    [
        ("coco_float32_512", 512, 12, "391895"),
        ("coco_float16_640", 640, 12, "391895"),
        ("conceptual_float16_512", 512, 24, "00000000"),
        ("food_series_pandas1_float16_640", 640, 24, "1000"),
        ("food_series_pandas3_float16_640", 640, 24, "1000"),
    ],
)
def test_reference_pickles_are_read(shared, name, dim, images, first_id):
    features = read_features(shared / REFERENCE / f"{name}.pkl")
    content = pickle.loads((shared / REFERENCE / f"{name}.pkl").read_bytes()) if "pandas1" not in name else None
    assert (features.num_images, features.dim, len(features.captions)) == (24, dim, 24)
    assert len(set(features.image_index)) == images and features.image_ids[0] == first_id
    assert features.meta.encoder == {512: "ViT-B/32", 640: "RN50x4"}[dim] and features.meta.encoder_guessed
    if content:
        assert torch.equal(features.embeddings, content["clip_embedding"])
        assert features.captions == [item["caption"] for item in content["captions"]]
        assert features.caption_rows.tolist() == [item["clip_embedding"] for item in content["captions"]]


def test_rows_equal_the_reference_dataset(shared):
    expected = json.loads((shared / REFERENCE / "dataset_expected.json").read_text())
    features = read_features(shared / REFERENCE / expected["file"])
    assert features.caption_rows.tolist() == expected["caption_to_row"]
    for item in expected["items"]:
        (row,) = features.rows(features.caption_rows[[item["index"]]])
        assert row[:8].tolist() == pytest.approx(item["prefix_first8"], abs=1e-6)
        assert (row / row.norm())[:8].tolist() == pytest.approx(item["normalized_first8"], abs=1e-6)
