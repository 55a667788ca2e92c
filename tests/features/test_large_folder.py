"""Folders opened for training hold what they hold when all is read, and nothing stale is ever trained on."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import CAPTIONS
from sklearn.model_selection import train_test_split
from support.small import META, feature_file

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Content
from clipcap.features.files import read_features, read_to_train, write_parts
from clipcap.features.large_folder import CACHE
from clipcap.features.split import rows_held_out, split_features
from clipcap.models.language_model import load_tokenizer
from clipcap.runtime import disk_arrays
from clipcap.runtime.disk_arrays import in_order, map_arrays, scratch
from clipcap.training.dataset import CaptionDataset

ROWS = 9
SEVERAL = [tuple(f"{CAPTIONS[(row + k) % 8]} {row}" for k in range(row % 4)) for row in range(3 * ROWS)]


def shards(folder: Path, captions=SEVERAL) -> Path:
    """Three shards; of the images two ids come twice, some have no captions."""
    ids = [f"photo{row % 25}" for row in range(len(captions))]
    vectors = np.random.default_rng(0).standard_normal((len(captions), 16)).astype(np.float32)
    parts = [slice(start, start + ROWS) for start in range(0, len(captions), ROWS)]
    write_parts(folder, [Content(vectors[p], ids[p], ids[p], captions[p]) for p in parts], META)
    return folder


@pytest.fixture
def folder(tmp_path):
    return shards(tmp_path / "features")


@pytest.fixture
def foreign(tmp_path):
    """As clip-retrieval writes it: a caption each, some missing, no names in the second shard."""
    folder = tmp_path / "foreign"
    for name in ("img_emb", "metadata"):
        (folder / name).mkdir(parents=True)
    for number, captions in enumerate([["one", None, ""], ["two", "three"]]):
        np.save(folder / "img_emb" / f"img_emb_{number}.npy", np.eye(4, dtype=np.float16)[: len(captions)])
        columns = {"caption": captions} | ({} if number else {"url": ["u", "v", "w"]})
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
    return folder


def held(features) -> dict:
    """All that features hold."""
    return {
        "rows": features.rows(slice(None)).tolist(),
        "captions": list(features.captions),
        "caption_rows": np.asarray(features.caption_rows).tolist(),
        "image_ids": list(features.image_ids),
        "image_paths": list(features.image_paths),
        "row_images": np.asarray(features.row_images).tolist(),
        "meta": features.meta,
    }


@pytest.mark.parametrize("kind", ["folder", "foreign"])
def test_holds_what_the_folder_holds(request, kind):
    path = request.getfixturevalue(kind)
    whole = read_features(path)
    for _ in ("made", "found"):
        features = read_to_train(path)
        assert held(features) == held(whole)
        assert features.captions[-1] == whole.captions[-1]
        assert features.image_ids[1:4] == whole.image_ids[1:4]
        assert features.count_images() == len(np.unique(whole.row_images[whole.caption_rows]))
    rows = np.array([4, 0, 3])
    assert held(features.subset_by_row(rows)) == held(whole.subset_by_row(rows))


def test_a_pickle_is_read_as_ever(tmp_path):
    path = feature_file(tmp_path / "f.pkl")
    assert held(read_to_train(path)) == held(read_features(path))


@pytest.mark.parametrize(
    "changes", [{}, {"max_tokens": 5}, {"reference": True}, {"reference": True, "max_tokens": 5}]
)
def test_tokens_are_those_of_captions_in_memory(folder, tokenizer, monkeypatch, changes):
    expected = CaptionDataset(read_features(folder), tokenizer, **{"max_tokens": 100, **changes})
    monkeypatch.setattr(disk_arrays, "BLOCK", 7)
    for _ in ("made", "found"):
        found = CaptionDataset(read_to_train(folder), tokenizer, **{"max_tokens": 100, **changes})
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.starts.tolist() == expected.starts.tolist()
        assert found.truncated == expected.truncated
        assert found.checksum() == expected.checksum()


@pytest.mark.parametrize("max_tokens", [100, 8])
def test_a_split_has_the_tokens_of_its_captions(folder, tokenizer, monkeypatch, max_tokens):
    monkeypatch.setattr(disk_arrays, "BLOCK", 7)
    for part, other in zip(*(split_features(read(folder), 0.3, 1) for read in (read_to_train, read_features))):
        found, expected = (CaptionDataset(features, tokenizer, max_tokens) for features in (part, other))
        assert found.tokens.tolist() == expected.tokens.tolist()
        assert found.starts.tolist() == expected.starts.tolist()
        assert found.truncated == expected.truncated
        assert torch.equal(found.batch(np.arange(3)).given.vectors, expected.batch(np.arange(3)).given.vectors)


class TestWhatIsKept:
    def tokens(self, folder, tokenizer, max_tokens=100):
        data = CaptionDataset(read_to_train(folder), tokenizer, max_tokens)
        return [
            tokenizer.decode(data.tokens[a:b], skip_special_tokens=True) for a, b in zip(data.starts, data.starts[1:])
        ]

    def test_is_used_again(self, folder, tokenizer):
        self.tokens(folder, tokenizer)
        files = {path: path.stat().st_ino for path in (folder / CACHE).glob("*.arrays")}
        assert len(files) == 2
        self.tokens(folder, tokenizer)
        assert {path: path.stat().st_ino for path in (folder / CACHE).glob("*.arrays")} == files

    def test_is_made_anew_for_a_changed_caption(self, folder, tokenizer):
        before = self.tokens(folder, tokenizer)
        file = folder / "metadata" / "metadata_1.parquet"
        table, dates = pq.read_table(file).to_pydict(), file.stat()
        table["captions"][2] = [text[::-1] for text in table["captions"][2]]
        pq.write_table(pa.table(table), file)
        os.utime(file, ns=(dates.st_atime_ns, dates.st_mtime_ns))
        after = self.tokens(folder, tokenizer)
        assert after == list(read_features(folder).captions) != before
        assert len(list((folder / CACHE).glob("*.arrays"))) == 2

    def test_is_made_anew_for_captions_of_other_rows(self, tmp_path, tokenizer):
        folder = shards(tmp_path / "f")
        self.tokens(folder, tokenizer)
        kept = {path.name: path.read_bytes() for path in (folder / CACHE).glob("*.arrays")}
        moved = shards(tmp_path / "g", SEVERAL[1:] + SEVERAL[:1])
        (moved / CACHE).mkdir()
        for name, content in kept.items():
            (moved / CACHE / name).write_bytes(content)
        assert self.tokens(moved, tokenizer) == list(read_features(moved).captions)

    def test_is_of_one_tokenizer_and_one_length(self, folder, tokenizer, tmp_path):
        self.tokens(folder, tokenizer)
        demo = load_tokenizer("demo")
        assert self.tokens(folder, demo) == list(read_features(folder).captions)
        short = CaptionDataset(read_to_train(folder), tokenizer, 4)
        assert np.diff(short.starts).max() == 4

    @pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.999])
    def test_is_made_anew_where_it_was_cut_short(self, folder, tokenizer, share):
        expected = self.tokens(folder, tokenizer)
        for file in (folder / CACHE).glob("*.arrays"):
            file.write_bytes(file.read_bytes()[: int(file.stat().st_size * share)])
        assert self.tokens(folder, tokenizer) == expected

    def test_leaves_nothing_of_a_process_that_was_killed(self, folder, tokenizer):
        (folder / CACHE).mkdir()
        left = folder / CACHE / ".captions.arrays.abc.draft"
        left.write_bytes(b"half")
        self.tokens(folder, tokenizer)
        assert not left.exists()

    def test_is_a_temporary_file_where_the_folder_cannot_be_written(self, folder, tokenizer, messages):
        (folder / CACHE).write_text("in the way")
        assert self.tokens(folder, tokenizer) == list(read_features(folder).captions)
        reason = f"{folder / CACHE} cannot be written (File exists)"
        said = f"note: {reason}: results for its captions are not cached"
        assert messages() == [said]

    def test_does_not_hide_a_shard_that_is_damaged(self, folder, tokenizer):
        self.tokens(folder, tokenizer)
        file = folder / "metadata" / "metadata_1.parquet"
        file.write_bytes(file.read_bytes()[:-20])
        with pytest.raises(ClipcapError, match=r"metadata_1\.parquet: cannot be read"):
            self.tokens(folder, tokenizer)


def test_a_full_place_of_temporary_files_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "absent"))
    with pytest.raises(ClipcapError, match=r"absent: no room for temporary files .*TMPDIR"):
        scratch(1 << 20, np.int64)


def test_other_files_are_no_arrays(tmp_path):
    path = tmp_path / "f"
    for content in (b"", b"x" * 100, b"{}" + (2).to_bytes(8, "little") + b"clipcap\x02"):
        path.write_bytes(content)
        with path.open("rb") as file, pytest.raises(ValueError):
            map_arrays(file)


@pytest.mark.parametrize("block", [1, 3, 100])
def test_images_are_numbered_as_they_appear(monkeypatch, block):
    monkeypatch.setattr(disk_arrays, "BLOCK", block)
    assert in_order(np.array([7, -3, 7, 9, -3, 7, 0])).tolist() == [0, 1, 0, 2, 1, 0, 3]


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.999])
def test_the_images_held_out_are_those_of_train_test_split(share, monkeypatch):
    """A share held out by an earlier version stays the same one."""
    monkeypatch.setattr(disk_arrays, "BLOCK", 64)
    images = np.sort(np.random.default_rng(0).integers(0, 1500, 2000))
    images = in_order(images)
    _, held_out = train_test_split(np.unique(images), test_size=share, random_state=7)
    assert np.array_equal(rows_held_out(images, share, 7, Path("f")), np.isin(images, held_out))


HOLD_OUT = """
import sys, threading, time
from pathlib import Path
import numpy as np
from clipcap.features.feature_set import Content, FeatureMeta
from clipcap.features.files import read_to_train, write_parts
from clipcap.features.split import split_features

def parts():
    for start in range(0, int(sys.argv[2]), 10_000):
        ids = [str(i) for i in range(start, start + 10_000)]
        yield Content(np.ones((10_000, 32), np.float16), ids, ids, [["a caption"]] * 10_000)

def used():
    status = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in status if line.startswith("RssAnon"))

def watch():
    while True:
        seen.append(used())
        time.sleep(0.002)

write_parts(sys.argv[1], parts(), FeatureMeta(encoder="x", dtype="float16"))
features, few, seen = read_to_train(sys.argv[1]), np.arange(2), [used()]
split_features(features.subset_by_row(few), 0.5, 1)
threading.Thread(target=watch, daemon=True).start()
before = used()
train, val = split_features(features, 0.1, 1)
print(1000 * (max(seen) - before), 1000 * (used() - before), train.num_images, val.num_images)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_share_is_held_out_without_a_copy(tmp_path):
    """Neither the embeddings of 200,000 images (13 MB) nor the numbers of rows and captions are kept in memory."""
    command = [sys.executable, "-c", HOLD_OUT, str(tmp_path / "f"), "200000"]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    peak, kept, train, val = map(int, done.stdout.split())
    assert (train, val) == (180_000, 20_000)
    assert kept < 2.5e6, f"{kept:,} bytes kept"
    assert peak < 8e6, f"{peak:,} bytes at the peak"
