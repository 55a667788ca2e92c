"""Embeddings made elsewhere: learnt and captioned without a photo anywhere, and arrays that do not fit."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from support.road import run

from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.features.import_arrays import import_arrays

ROWS = 12


def sounds(shape, seed=0, dtype=np.float32):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def table(path, count=ROWS, captions=2, start=0):
    with path.open("w", newline="") as file:
        rows = [(f"clip{i}", f"sound {i} in way {k}") for i in range(start, start + count) for k in range(captions)]
        csv.writer(file).writerows([("id", "caption"), *rows])
    return path


def save(path, values, ids=None):
    """The array as the kind of file that the suffix says."""
    named = {"embeddings": values}
    if path.suffix == ".npy":
        np.save(path, values)
    elif path.suffix == ".npz":
        np.savez(path, **named, **({} if ids is None else {"ids": np.array(ids)}))
    elif path.suffix == ".safetensors":
        save_file(named, path)
    else:
        torch.save({"embeddings": torch.from_numpy(values)}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".safetensors", ".pt"])
def test_every_kind_of_file_gives_the_same_features(suffix, tmp_path):
    values = sounds((ROWS, 512))
    path = save(tmp_path / f"x{suffix}", values)
    import_arrays(path, tmp_path / "set", "clap", captions=table(tmp_path / "t.csv"))
    features = read_features(tmp_path / "set")
    assert np.array_equal(features.rows(slice(None)).numpy(), values)
    assert list(features.image_ids) == [f"clip{i}" for i in range(ROWS)]
    assert features.captions_of(3) == ["sound 3 in way 0", "sound 3 in way 1"]
    assert features.meta.encoder == "import:clap" and not features.meta.normalized


def test_ids_of_the_file_or_of_a_list_order_the_rows(tmp_path):
    values, names = sounds((ROWS, 8), dtype=np.float16), [f"clip{i}" for i in reversed(range(ROWS))]
    captions = table(tmp_path / "t.csv", count=ROWS - 1)
    import_arrays(save(tmp_path / "x.npz", values, names), tmp_path / "a.pkl", "clap", captions=captions)
    (tmp_path / "ids.txt").write_text("\n".join(names) + "\n")
    listed = {"captions": captions, "ids": tmp_path / "ids.txt"}
    import_arrays(save(tmp_path / "x.npy", values), tmp_path / "b.pkl", "clap", **listed)
    for name in ("a.pkl", "b.pkl"):
        features = read_features(tmp_path / name)
        assert list(features.image_ids) == names and str(features.embeddings.dtype) == "torch.float16"
        assert features.captions_of(0) == [] and features.captions_of(1)[0] == "sound 10 in way 0"


def test_several_vectors_of_an_item_are_averaged(tmp_path):
    values = sounds((ROWS, 8, 24))
    import_arrays(save(tmp_path / "x.npy", values), tmp_path / "set", "video")
    features = read_features(tmp_path / "set")
    assert np.allclose(features.rows(slice(None)).numpy(), values.mean(1), atol=1e-6)
    assert list(features.image_ids) == [str(i) for i in range(ROWS)]


@pytest.mark.parametrize("shape", [(ROWS, 512), (ROWS, 8, 768)])
def test_imported_items_are_learnt_captioned_and_reported_without_photos(shape, tmp_path, lm_folder, capsys):
    path, captions = save(tmp_path / "x.npy", sounds(shape)), table(tmp_path / "t.csv")
    words = ("features", "import", path, "--captions", captions, "--encoder", "clap", "--out", tmp_path / "set")
    assert run(capsys, *words)[0] == 0
    few = ("--epochs", 1, "--bs", 4, "--prefix_length", 2, "--val", 0.25, "--out_dir", tmp_path / "runs")
    assert run(capsys, "train", "--data", tmp_path / "set", "--lm", lm_folder, *few)[0] == 0
    load = ("--load_pt", tmp_path / "runs", "--max_new_tokens", 6, "--device", "cpu")
    status, lines, _ = run(capsys, "predict", "--features", tmp_path / "set", *load)
    assert status == 0 and len(lines) == ROWS and lines[0].startswith("clip0")
    scoring = ("evaluate", "--data", tmp_path / "set", "--no_java", "--out", tmp_path / "scores", *load)
    assert run(capsys, *scoring)[0] == 0
    metrics = json.loads((tmp_path / "scores" / "metrics.json").read_text())
    assert metrics["images"] == ROWS
    assert any(note.startswith("CLIPScore skipped: import:clap") for note in metrics["notes"])
    assert "clip0" in (tmp_path / "scores" / "report.html").read_text()
    status, _, err = run(capsys, "predict", "--img", tmp_path, *load)
    assert status == 1 and len(err[-1].splitlines()) == 1


def test_arrays_that_do_not_fit_are_refused_in_one_line(tmp_path):
    captions = table(tmp_path / "t.csv")

    def refused(path, **options):
        with pytest.raises(ClipcapError) as error:
            import_arrays(path, tmp_path / "set", "clap", **{"captions": captions, **options})
        assert "\n" not in str(error.value) and not (tmp_path / "set").exists()
        return str(error.value)

    broken = sounds((ROWS, 4))
    broken[5, 2] = np.nan
    assert "row 5 (id clip5) holds NaN" in refused(save(tmp_path / "nan.npy", broken))
    assert "has 9 rows, and the captions: 12 ids" in refused(save(tmp_path / "few.npy", sounds((9, 4))))
    others = save(tmp_path / "ids.npz", sounds((ROWS, 4)), [f"clip{i + 3}" for i in range(ROWS)])
    assert "3 ids of the captions have no row, the first is clip0" in refused(others)
    same = save(tmp_path / "twice.npz", sounds((ROWS, 4)), ["clip0"] * ROWS)
    assert "two rows have the id clip0" in refused(same)
    np.save(tmp_path / "objects.npy", np.array([np.zeros(2), np.zeros(3)], dtype=object))
    assert "holds Python objects, not numbers" in refused(tmp_path / "objects.npy")
    np.save(tmp_path / "flat.npy", np.zeros(3, np.float32))
    assert "no array of floating-point [N, D] or [N, T, W]" in refused(tmp_path / "flat.npy")
    np.save(tmp_path / "whole.npy", np.zeros((3, 4), np.int64))
    assert "it holds x int64 [3, 4]" in refused(tmp_path / "whole.npy")
    (tmp_path / "cut.npy").write_bytes((tmp_path / "nan.npy").read_bytes()[:100])
    assert "truncated, or no array" in refused(tmp_path / "cut.npy")
    assert "there is no such file" in refused(tmp_path / "nothing.npy")
