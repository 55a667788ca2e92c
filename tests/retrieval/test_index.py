"""Indexes on disk: exact or by faiss, built, opened again, added to, and those of clip-retrieval."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from conftest import REPO
from PIL import Image
from support.brute_force import brute_force
from support.disks import resize
from support.road import draw_set, lines_of, run
from support.small import META

from clipcap.errors import ClipcapError
from clipcap.features import folder_writer
from clipcap.features.files import read_features, write_features
from clipcap.images.grid import CELL
from clipcap.retrieval import parts
from clipcap.retrieval.build import build_index
from clipcap.retrieval.config import IndexConfig
from clipcap.retrieval.index import Index

DIM = 24
QUERIES = torch.from_numpy(np.random.default_rng(9).standard_normal((5, DIM)))


def vectors(count, seed=0, dtype=np.float16):
    return np.random.default_rng(seed).standard_normal((count, DIM)).astype(dtype)


def write(path, rows, first=0, meta=META, ids=None, captions=None):
    """Features of images `photo{first}` and on, with two captions each."""
    numbers = range(first, first + len(rows))
    content = {
        "image_ids": ids or [f"photo{i}" for i in numbers],
        "image_paths": [f"photos/{i}.jpg" for i in numbers],
        "captions": captions or [(f"picture {i}", f"another of {i}") for i in numbers],
    }
    write_features(path, embeddings=rows, meta=meta, **content)
    return path


def build(sources, out, **options):
    sources = sources if isinstance(sources, list) else [sources]
    return build_index(sources, IndexConfig(out=str(out), **options))


def as_rows(found):
    return [[(match.row, match.score) for match in matches] for matches in found]


def expected(rows, k=7):
    order, scores = brute_force(rows, QUERIES, k)
    return [list(zip(*pair)) for pair in zip(order.tolist(), scores.tolist())]


@pytest.fixture
def small_parts(monkeypatch):
    """Parts of 30 rows, copied 8 at a time; shards of 25."""
    monkeypatch.setattr("clipcap.retrieval.build.PART_ROWS", 30)
    monkeypatch.setattr("clipcap.retrieval.build.BLOCK", 8)
    monkeypatch.setattr(folder_writer, "SHARD_ROWS", 25)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["features.pkl", "features"])
def test_an_index_answers_as_brute_force_over_its_features(name, dtype, small_parts, tmp_path):
    rows = vectors(70, dtype=dtype) * 3
    index = build(write(tmp_path / name, rows), tmp_path / "index")
    assert len(index.parts) == 3 and index.parts[0].rows.dtype == torch.from_numpy(rows).dtype
    assert as_rows(index.search(QUERIES, 7)) == expected(rows)
    assert as_rows(Index.open(tmp_path / "index").search(QUERIES, 7)) == expected(rows)
    assert as_rows(Index.open(tmp_path / name).search(QUERIES, 7)) == expected(rows)


def test_a_match_says_what_was_found(small_parts, tmp_path):
    rows = vectors(70)
    captions = [() if i == 61 else (f"picture {i}", f"another of {i}") for i in range(70)]
    path = write(tmp_path / "features", rows, captions=captions)
    index = build(path, tmp_path / "index")
    for opened in (index, Index.open(path)):
        for row in (0, 29, 30, 69):
            [[match]] = opened.search(torch.from_numpy(rows[[row]]), 1)
            assert (match.image_id, match.caption, match.path) == (
                f"photo{row}",
                f"picture {row}",
                f"photos/{row}.jpg",
            )
            assert match.row == row and match.score == pytest.approx(1)
            assert torch.equal(opened.embedding(f"photo{row}"), torch.from_numpy(rows[row]).float())
        assert opened.search(torch.from_numpy(rows[[61]]), 1)[0][0].caption == ""
        assert [opened.catalogue.caption(n) for n in (0, 1, 139, 138, -1)] == [
            "picture 0", "another of 0", None, None, None,
        ]  # fmt: skip
        assert [opened.catalogue.caption(n) for n in (60, 61, 121, 122, 137)] == [
            "picture 30", "another of 30", "another of 60", "picture 62", "another of 69",
        ]  # fmt: skip
        with pytest.raises(ClipcapError, match="has no image 'photo70'"):
            opened.embedding("photo70")


def test_several_rows_of_an_image_are_one_match(small_parts, tmp_path):
    rows = vectors(70)
    ids = [f"photo{i % 9}" for i in range(70)]  # in different parts
    index = build(write(tmp_path / "features.pkl", rows, ids=ids), tmp_path / "index")
    order, _ = brute_force(rows, QUERIES, 70)
    for found, ranked in zip(index.search(QUERIES, 12), order.tolist()):
        assert [match.row for match in found] == [
            ranked[i] for i in sorted({ids[r]: i for i, r in reversed(list(enumerate(ranked)))}.values())
        ]


def test_rows_without_a_direction_are_counted_and_never_found(tmp_path, messages):
    rows = vectors(20)
    rows[3], rows[7, 2], rows[11, 0] = 0, np.nan, np.inf
    index = build_index([write(tmp_path / "f", rows)], IndexConfig(out=str(tmp_path / "index")))
    assert "3 rows have no direction" in messages()[1]
    for found in index.search(QUERIES, 20):
        assert {match.row for match in found} == set(range(20)) - {3, 7, 11}


@pytest.mark.parametrize("kinds", [("a.pkl", "b.pkl"), ("a", "b.pkl"), ("a", "b")])
def test_adding_gives_the_same_answers_as_building_at_once(kinds, small_parts, tmp_path):
    rows = vectors(100)
    one, other = tmp_path / kinds[0], tmp_path / kinds[1]
    write(one, rows[:45])
    write(other, rows[45:], first=45)
    at_once = build([one, other], tmp_path / "at_once")
    build(one, tmp_path / "added")
    added = build(other, tmp_path / "added", append=True)
    assert len(added) == len(at_once) == 100
    assert added.search(QUERIES, 9) == at_once.search(QUERIES, 9)
    assert as_rows(added.search(QUERIES, 7)) == expected(rows)
    assert added.catalogue.caption(199) == "another of 99" and added.catalogue.row_of("photo99") == 99


def test_features_added_twice_are_found_once(tmp_path):
    path = write(tmp_path / "features", vectors(20))
    once = build(path, tmp_path / "index").search(QUERIES, 5)
    assert build(path, tmp_path / "index", append=True).search(QUERIES, 5) == once


def test_float16_and_float32_go_into_one_index(tmp_path):
    rows = vectors(40, dtype=np.float32)
    half = rows[:20].astype(np.float16)
    sources = [write(tmp_path / "a", half), write(tmp_path / "b", rows[20:], first=20)]
    index = build(sources, tmp_path / "index")
    assert as_rows(index.search(QUERIES, 7)) == expected(np.concatenate([half.astype(np.float32), rows[20:]]))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"meta": replace(META, encoder="other-clip", encoder_weights_id="ffff")}, "the index expects tiny-clip"),
        ({"ids": ["photo3", "photo9", *map(str, range(8))]}, "image id 'photo3' is that of another image"),
        ({"rows": np.ones((10, 7), np.float32)}, "embeddings are 7 wide"),
    ],
)
def test_features_that_do_not_fit_are_refused_and_the_index_stays(change, message, tmp_path):
    rows = vectors(30)
    before = build(write(tmp_path / "a", rows), tmp_path / "index").search(QUERIES, 7)
    other = write(tmp_path / "b", **{"rows": vectors(10, seed=1), "first": 30, **change})
    with pytest.raises(ClipcapError, match=message):
        build(other, tmp_path / "index", append=True)
    assert Index.open(tmp_path / "index").search(QUERIES, 7) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "index"]


def test_a_build_that_is_interrupted_leaves_the_index_as_it_was(tmp_path, monkeypatch):
    before = build(write(tmp_path / "a", vectors(30)), tmp_path / "index").search(QUERIES, 7)
    other = write(tmp_path / "b", vectors(30, seed=1), first=30)

    def interrupted(*_):
        raise KeyboardInterrupt

    for append in (False, True):
        with monkeypatch.context() as patch:
            patch.setattr(parts.PartWriter, "close", interrupted)
            with pytest.raises(KeyboardInterrupt):
                build(other, tmp_path / "index", append=append)
        assert Index.open(tmp_path / "index").search(QUERIES, 7) == before
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def truncate(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def change(path, **entries):
    path.write_text(json.dumps({**json.loads(path.read_text()), **entries}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda at: truncate(at / "part_0" / "rows.npy"), r"rows.npy: truncated or no .npy array"),
        (lambda at: truncate(at / "part_0" / "images.npy"), "images.npy: missing, truncated or damaged"),
        (lambda at: (at / "part_0" / "scales.npy").unlink(), "scales.npy: missing, truncated or damaged"),
        (lambda at: np.save(at / "part_0" / "scales.npy", np.ones(5)), "scales.npy: is not a part of an index"),
        (
            lambda at: np.save(at / "part_0" / "images.npy", np.ones(5, np.int64)),
            "part_0: its files are of different",
        ),
        (lambda at: truncate(at / "part_0" / "entries.arrow"), "entries.arrow: truncated or damaged"),
        (lambda at: truncate(at / "index.json"), "index.json: is damaged"),
        (lambda at: (at / "index.json").write_text("[]"), "index.json: is damaged"),
        (lambda at: change(at / "index.json", parts=7), "index.json: is damaged"),
        (lambda at: change(at / "index.json", meta=None), "index.json: its meta is damaged"),
        (lambda at: change(at / "index.json", parts=[]), "index.json: is damaged"),
        (lambda at: change(at / "index.json", kind="best"), "index.json: is damaged"),
        (lambda at: change(at / "index.json", format_version=2), "is of index format 2, this clipcap knows 1"),
    ],
)
def test_a_damaged_index_is_said_in_one_line(damage, message, tmp_path):
    build(write(tmp_path / "f", vectors(30)), tmp_path / "index")
    damage(tmp_path / "index")
    with pytest.raises(ClipcapError, match=message) as error:
        Index.open(tmp_path / "index")
    assert "\n" not in str(error.value)


def test_a_place_where_something_else_lies_is_refused(tmp_path):
    features = write(tmp_path / "f", vectors(9))
    (tmp_path / "file").write_text("mine")
    for out, append, message in (
        (features, False, "is a folder of other files"),
        (features, True, "is not an index to add to"),
        (tmp_path / "file", False, "is a file"),
        (tmp_path / "nothing", True, "is not an index to add to"),
    ):
        with pytest.raises(ClipcapError, match=message):
            build(features, out, append=append)


def test_queries_that_do_not_fit_are_refused(tmp_path):
    index = build(write(tmp_path / "f", vectors(9)), tmp_path / "index")
    with pytest.raises(ClipcapError, match=r"index: embeddings are 24 wide, the queries' 7"):
        index.search(torch.ones(1, 7), 3)
    with pytest.raises(ClipcapError, match="query 1 has no direction"):
        index.search(torch.cat([torch.ones(1, DIM), torch.zeros(1, DIM)]), 3)
    with pytest.raises(ClipcapError, match="this search expects other-clip"):
        index.check_encoder("other-clip", "ffff", DIM, "this search")
    assert [len(found) for found in index.search(QUERIES, 50)] == [9] * 5


MEMORY = """
import sys, numpy as np, torch
from clipcap.retrieval.index import Index
def anonymous():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("RssAnon"))
queries = torch.randn(int(sys.argv[2]), 256)
torch.randn(64, 256) @ torch.randn(256, 4096)  # the library's own memory
before = anonymous()
index = Index.open(sys.argv[1])
index.search(queries, 10)
print(anonymous() - before)
"""


def test_memory_does_not_grow_with_the_index(tmp_path):
    generator = np.random.default_rng(0)
    rows = generator.standard_normal((100_000, 256), np.float32).astype(np.float16)  # 51 MB
    content = {"image_ids": [str(i) for i in range(100_000)], "image_paths": ["a/path/of/a/photo.jpg"] * 100_000}
    captions = [("a caption of an ordinary length",)] * 100_000
    write_features(tmp_path / "f", embeddings=rows, captions=captions, meta=META, **content)
    build(tmp_path / "f", tmp_path / "index")
    words = [sys.executable, "-c", MEMORY, str(tmp_path / "index"), "3"]
    grown = int(subprocess.run(words, cwd=REPO, check=True, capture_output=True, text=True).stdout)
    assert grown * 1024 < rows.nbytes / 4


# faiss


@pytest.fixture
def faiss():
    return pytest.importorskip("faiss", reason="faiss is not installed: pip install 'clipcap-toolkit[retrieval]'")


@pytest.fixture
def crowd():
    """Rows in 40 clusters."""
    generator = np.random.default_rng(3)
    centres = generator.standard_normal((40, DIM))
    return (np.repeat(centres, 50, axis=0) + 0.5 * generator.standard_normal((2000, DIM))).astype(np.float16)


@pytest.mark.parametrize("kind", ["exact", "ivf", "hnsw"])
def test_an_index_that_does_not_fit_on_the_disk_says_so(kind, faiss, crowd, tmp_path, small_disk, capfd):
    """At every size of the disk: what a library writes last, on closing its file, counts too."""
    features = write(tmp_path / "f", crowd[:200])
    build_index([features], IndexConfig(out=str(tmp_path / "index"), kind=kind))
    pages = sum(-(-path.stat().st_size // 4096) for path in (tmp_path / "index").rglob("*") if path.is_file())
    capfd.readouterr()
    for size in range(1, pages):
        out = resize(small_disk, size * 4096) / "index"
        with pytest.raises(ClipcapError, match=r": cannot be written \(.*No space left on device"):
            build_index([features], IndexConfig(out=str(out), kind=kind))
        assert "close error" not in capfd.readouterr().err and not list(small_disk.iterdir())
    build_index([features], IndexConfig(out=str(resize(small_disk, (pages + 9) * 4096) / "index"), kind=kind))


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_finds_what_it_promises(kind, faiss, crowd, tmp_path, monkeypatch, messages):
    monkeypatch.setattr("clipcap.retrieval.build.PART_ROWS", 800)
    monkeypatch.setattr("clipcap.retrieval.build.BLOCK", 100)
    config = IndexConfig(out=str(tmp_path / "index"), kind=kind, recall=0.9)
    index = build_index([write(tmp_path / "f", crowd)], config)
    assert len(index.parts) == 3
    content = json.loads((tmp_path / "index" / "index.json").read_text())
    assert content["recall"].keys() == {"1", "10", "100"} and content["recall"]["10"] >= 0.9
    assert f"{content['recall']['10']:.1%} of the nearest 10" in messages()[-1]
    queries = torch.from_numpy(crowd[::100]).double() + 0.1
    exact, near = index.search(queries, 10, exact=True), index.search(queries, 10)
    order, scores = brute_force(crowd, queries, 10)
    assert [[m.row for m in found] for found in exact] == order.tolist()
    shares = [len({m.row for m in a} & {m.row for m in b}) / 10 for a, b in zip(exact, near)]
    assert np.mean(shares) > 0.75
    score_of = {(q, row): s for q in range(len(order)) for row, s in zip(order[q].tolist(), scores[q].tolist())}
    common = [(score_of[q, m.row], m.score) for q, found in enumerate(near) for m in found if (q, m.row) in score_of]
    assert all(a == b for a, b in common) and len(common) > 150  # scores are exact, of what is found
    assert all(sorted(found, key=lambda m: (-m.score, m.row)) == found for found in near)


def test_looking_farther_finds_more(faiss, crowd, tmp_path):
    index = build(write(tmp_path / "f", crowd), tmp_path / "index", kind="ivf", recall=0)
    assert index.approximate.probe == 1
    queries = torch.from_numpy(np.random.default_rng(5).standard_normal((50, DIM)))
    truth = index.search(queries, 10, exact=True)

    def share(found):
        return np.mean([len({m.row for m in a} & {m.row for m in b}) / 10 for a, b in zip(truth, found)])

    one = share(index.search(queries, 10))
    *_, index.approximate.probe = index.approximate.probes()
    assert one < share(index.search(queries, 10)) >= 0.99


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_rows_added_to_an_approximate_index_are_found(kind, faiss, crowd, tmp_path):
    build(write(tmp_path / "a", crowd[:1500]), tmp_path / "index", kind=kind)
    index = build(write(tmp_path / "b", crowd[1500:], first=1500), tmp_path / "index", append=True)
    assert index.kind == kind and len(index) == 2000
    found = index.search(torch.from_numpy(crowd[1500:]), 1)
    assert np.mean([match.row == 1500 + row for row, [match] in enumerate(found)]) > 0.95


@pytest.mark.parametrize("kind", ["ivf", "hnsw"])
def test_an_approximate_index_finds_k_images_however_many_rows_they_have(kind, faiss, crowd, tmp_path):
    ids = ["one of many rows"] * 1000 + [f"photo{i}" for i in range(1000, 2000)]
    rows = crowd.copy()
    rows[:1000] = rows[0] + 1e-3 * vectors(1000)
    rows[3] = 0
    index = build(write(tmp_path / "f", rows, ids=ids), tmp_path / "index", kind=kind, recall=1)
    [found] = index.search(torch.from_numpy(rows[:1]), 8)
    assert len(found) == 8 and found[0].image_id == "one of many rows"
    assert len({match.image_id for match in found}) == 8


def test_auto_is_exact_up_to_the_size_that_is_asked_for(faiss, crowd, tmp_path):
    path = write(tmp_path / "f", crowd)
    assert build(path, tmp_path / "index", exact_up_to=2000).kind == "exact"
    assert build(path, tmp_path / "index", exact_up_to=1999).kind == "ivf"


def test_without_faiss_an_index_is_exact_or_says_what_is_missing(crowd, tmp_path, monkeypatch, messages):
    monkeypatch.setitem(sys.modules, "faiss", None)
    path = write(tmp_path / "f", crowd)
    index = build_index([path], IndexConfig(out=str(tmp_path / "index"), exact_up_to=10))
    said = messages()[0]
    assert index.kind == "exact" and "searched exactly" in said and "clipcap-toolkit[retrieval]" in said
    with pytest.raises(ClipcapError, match=r"pip install 'clipcap-toolkit\[retrieval\]'"):
        build(path, tmp_path / "other", kind="ivf")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("damage", [truncate, lambda path: path.write_bytes(b"no index"), lambda path: path.unlink()])
def test_a_damaged_faiss_file_is_said_in_one_line(damage, faiss, crowd, tmp_path):
    index = build(write(tmp_path / "f", crowd), tmp_path / "index", kind="ivf")
    expected = index.search(QUERIES, 5, exact=True)
    damage(tmp_path / "index" / "part_0" / "near.index")
    index = Index.open(tmp_path / "index")
    with pytest.raises(ClipcapError, match=r"near.index: truncated, or not an index of faiss") as error:
        index.search(QUERIES, 5)
    assert "\n" not in str(error.value)
    assert index.search(QUERIES, 5, exact=True) == expected


def test_a_faiss_file_of_other_rows_is_refused(faiss, crowd, tmp_path):
    for name, rows in (("one", crowd), ("other", crowd[:900])):
        build(write(tmp_path / f"{name}.pkl", rows), tmp_path / name, kind="ivf")
    (tmp_path / "other" / "part_0" / "near.index").replace(tmp_path / "one" / "part_0" / "near.index")
    with pytest.raises(ClipcapError, match="is of other rows than lie beside it"):
        Index.open(tmp_path / "one").search(QUERIES, 5)


BOTH = """
import {first}
import {second}
import numpy as np
rows = np.random.default_rng(0).standard_normal((20_000, 64)).astype("f")
index = faiss.IndexFlatIP(64)
for _ in range(3):
    index.reset()
    index.add(rows)
    _, found = index.search(rows[:99], 5)
    assert (torch.from_numpy(rows[:99]) @ torch.from_numpy(rows).T).topk(5).indices.tolist() == found.tolist()
"""


@pytest.mark.parametrize("order", [("faiss", "torch"), ("torch", "faiss")])
def test_faiss_and_torch_work_in_one_process_with_several_threads(order, faiss):
    """Each brings an OpenMP of its own."""
    code = BOTH.format(first=order[0], second=order[1])
    environment = {"OMP_NUM_THREADS": "2", "PATH": ""}
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120, env=environment)


# clip-retrieval


@pytest.fixture
def theirs(tmp_path):
    """A folder as `clip-retrieval inference` writes it: embeddings of images and captions, Parquet beside them."""
    folder = tmp_path / "theirs"
    images, texts = vectors(60, seed=1), vectors(60, seed=2)
    for number in range(3):
        here = slice(number * 20, number * 20 + 20)
        for stem, rows in (("img_emb", images), ("text_emb", texts)):
            (folder / stem).mkdir(parents=True, exist_ok=True)
            np.save(folder / stem / f"{stem}_{number}.npy", rows[here])
        columns = {
            "image_path": [f"{i:09d}" for i in range(60)][here],
            "caption": [f"picture {i}" for i in range(60)][here],
            "url": [f"https://example.org/{i}.jpg" for i in range(60)][here],
        }
        (folder / "metadata").mkdir(exist_ok=True)
        pq.write_table(pa.table(columns), folder / "metadata" / f"metadata_{number}.parquet")
    return folder, images, texts


def test_folders_of_clip_retrieval_are_searched_by_images_or_captions(theirs, tmp_path):
    folder, images, texts = theirs
    for tower, rows in (("image", images), ("text", texts)):
        assert as_rows(Index.open(folder, tower=tower).search(QUERIES, 7)) == expected(rows)
        index = build(folder, tmp_path / tower, tower=tower)
        assert as_rows(index.search(QUERIES, 7)) == expected(rows)
        [[match]] = index.search(torch.from_numpy(rows[[33]]), 1)
        assert (match.image_id, match.caption, match.path) == ("000000033", "picture 33", "000000033")
    with pytest.raises(ClipcapError, match="is of embeddings of the image tower"):
        build(folder, tmp_path / "image", tower="text", append=True)
    with pytest.raises(ClipcapError, match="leave out --tower"):
        Index.open(write(tmp_path / "f.pkl", images), tower="text")


@pytest.mark.parametrize("beside", ["img_emb", "image.index"])
def test_damaged_metadata_of_clip_retrieval_is_one_line(beside, faiss, theirs):
    folder, images, _ = theirs
    if beside == "image.index":
        shutil.rmtree(folder / "img_emb"), shutil.rmtree(folder / "text_emb")
        flat = faiss.IndexFlatIP(images.shape[1])
        flat.add(images)
        faiss.write_index(flat, str(folder / "image.index"))
    table = folder / "metadata" / "metadata_1.parquet"
    table.write_bytes(table.read_bytes()[:-9])
    with pytest.raises(ClipcapError, match=r"metadata_1\.parquet: cannot be read"):
        Index.open(folder)


@pytest.mark.parametrize("recipe", ["Flat", "IVF4,Flat", "HNSW16"])
@pytest.mark.parametrize("metric", ["METRIC_INNER_PRODUCT", "METRIC_L2"])
def test_a_faiss_index_of_clip_retrieval_is_searched_as_it_is(recipe, metric, faiss, theirs):
    folder, images, _ = theirs
    unit = images.astype(np.float32) / np.linalg.norm(images.astype(np.float32), axis=1, keepdims=True)
    made = faiss.index_factory(DIM, recipe, getattr(faiss, metric))
    if recipe.startswith("IVF"):
        made.cp.min_points_per_centroid, made.nprobe = 1, 4
    made.train(unit)
    made.add(unit)
    faiss.write_index(made, str(folder / "image.index"))
    for stem in ("img_emb", "text_emb"):  # such folders often hold the index and the metadata alone
        for path in (folder / stem).iterdir():
            path.unlink()
        (folder / stem).rmdir()
    index = Index.open(folder, encoder="ViT-B/32")
    assert index.kind == "faiss" and index.meta.encoder == "ViT-B/32" and len(index) == 60
    for found, pairs in zip(index.search(QUERIES, 7), expected(images)):
        assert [match.row for match in found] == [row for row, _ in pairs]
        assert [match.score for match in found] == pytest.approx([score for _, score in pairs], abs=1e-5)
        assert found[0].caption == f"picture {found[0].row}"
    for ask in (lambda: index.search(QUERIES, 3, exact=True), lambda: index.embedding("000000003")):
        with pytest.raises(ClipcapError, match="holds no embeddings"):
            ask()
    truncate(folder / "image.index")
    with pytest.raises(ClipcapError, match=r"image.index: truncated, or not an index of faiss"):
        Index.open(folder)


def test_a_faiss_index_and_metadata_that_disagree_are_refused(faiss, theirs):
    folder, images, _ = theirs
    made = faiss.IndexFlatIP(DIM)
    made.add(images[:50].astype(np.float32))
    faiss.write_index(made, str(folder / "image.index"))
    with pytest.raises(ClipcapError, match="60 lines of metadata for 50 embeddings"):
        Index.open(folder)


def test_an_index_that_clip_retrieval_keeps_on_disk_is_searched(faiss, theirs):
    from faiss.contrib.ondisk import merge_ondisk

    folder, images, _ = theirs
    unit = images.astype(np.float32) / np.linalg.norm(images.astype(np.float32), axis=1, keepdims=True)
    made = faiss.index_factory(DIM, "IVF4,Flat", faiss.METRIC_INNER_PRODUCT)
    made.cp.min_points_per_centroid, made.nprobe = 1, 4
    made.train(unit)
    place = folder / "image.index"
    place.mkdir()
    shards = []
    for first in (0, 30):
        shard = faiss.clone_index(made)
        shard.add_with_ids(unit[first : first + 30], np.arange(first, first + 30))
        shards.append(str(folder / f"shard{first}"))
        faiss.write_index(shard, shards[-1])
    merge_ondisk(made, shards, str(place / "merged_index.ivfdata"))
    faiss.write_index(made, str(place / "populated.index"))
    found = Index.open(folder).search(QUERIES, 7)
    assert [[m.row for m in matches] for matches in found] == [
        [row for row, _ in pairs] for pairs in expected(images)
    ]


# the commands


@pytest.fixture(scope="module")
def road(tmp_path_factory, clip_file):
    """A set of drawn photos, its features, and the index of them."""
    from clipcap.cli.main import main

    data = draw_set(tmp_path_factory.mktemp("road"), 6, 2)
    out = data / "features.pkl"
    main(["parse", "custom", "--data_path", str(data), "--clip_model_type", str(clip_file), "--out", str(out)])
    assert main(["index", str(out), "--out", str(data / "index")]) == 0
    return data


def test_index_says_what_it_made(road, tmp_path, capsys):
    status, out, said = run(capsys, "index", road / "features.pkl", "--out", tmp_path / "index")
    assert status == 0 and out == []
    assert "6 rows of 6 images, 64 wide" in said[0] and "exact" in said[0]


def test_search_by_photos_finds_them_and_writes_lines(road, tmp_path, capsys):
    photos = [road / "photo4.png", road / "photo1.png"]
    status, out, _ = run(
        capsys, "search", "--img", *photos, "--index", road / "index", "--k", 3, "--out", tmp_path / "new" / "m.jsonl"
    )
    assert status == 0 and [line for line in out if line.startswith("/")] == [str(photo) for photo in photos]
    found = lines_of(tmp_path / "new" / "m.jsonl")
    assert [(line["query"], line["rank"]) for line in found] == [(str(p), rank) for p in photos for rank in (1, 2, 3)]
    assert [line["path"] for line in found if line["rank"] == 1] == [str(photo) for photo in photos]
    assert found[0]["score"] == pytest.approx(1, abs=1e-4) and found[0]["caption"] == "picture 4 said in way 0"


def test_search_by_an_image_of_the_index(road, tmp_path, capsys):
    first = Index.open(road / "index").catalogue.entry(3)
    run(capsys, "search", "--image_id", first.image_id, "--index", road / "index", "--out", tmp_path / "m.jsonl")
    assert lines_of(tmp_path / "m.jsonl")[0]["image_id"] == first.image_id
    status, _, err = run(capsys, "search", "--image_id", "nobody", "--index", road / "index")
    assert status == 1 and "has no image 'nobody'" in err[0]


def test_search_by_a_caption_is_search_by_its_words(road, tmp_path, capsys):
    text = Index.open(road / "index").catalogue.caption(7)
    run(capsys, "search", *text.split(), "--index", road / "index", "--out", tmp_path / "words.jsonl")
    run(capsys, "search", "--caption_id", 7, "--index", road / "features.pkl", "--out", tmp_path / "caption.jsonl")
    assert lines_of(tmp_path / "words.jsonl") == lines_of(tmp_path / "caption.jsonl")
    status, _, err = run(capsys, "search", "--caption_id", 12, "--index", road / "index")
    assert status == 1 and "has no caption 12" in err[0]


def test_search_by_embeddings(road, tmp_path, capsys):
    rows = read_features(road / "features.pkl").rows([5, 2]).numpy()
    np.save(tmp_path / "two.npy", rows.astype(np.float16))
    np.save(tmp_path / "one.npy", rows[0])
    for name, count in (("two", 2), ("one", 1)):
        out = tmp_path / f"{name}.jsonl"
        run(capsys, "search", "--embedding", tmp_path / f"{name}.npy", "--index", road / "index", "--out", out)
        best = [line["path"] for line in lines_of(out) if line["rank"] == 1]
        assert best == [str(road / f"photo{i}.png") for i in (5, 2)[:count]]
    np.save(tmp_path / "wide.npy", np.ones(7))
    np.save(tmp_path / "words.npy", np.array(["dog"]))
    (tmp_path / "no.npy").write_text("no")
    for name, message in (("wide", "64 wide, the queries' 7"), ("words", "no .npy of"), ("no", "no .npy of")):
        status, _, err = run(capsys, "search", "--embedding", tmp_path / f"{name}.npy", "--index", road / "index")
        assert status == 1 and len(err) == 1 and message in err[0]


def test_a_grid_shows_each_query(road, tmp_path, capsys):
    photos = [road / f"photo{i}.png" for i in range(3)]
    sizes = []
    for count in (1, 2, 3):
        out = tmp_path / f"{count}.png"
        words = ("--img", *photos[:count], "--index", road / "index", "--out", out, "--k", 4)
        assert run(capsys, "search", *words)[0] == 0
        with Image.open(out) as sheet:
            sizes.append(sheet.size)
    assert 2 * CELL < sizes[0][0] < 3 * CELL  # two by two
    assert sizes[1][0] == sizes[2][0] > 4 * CELL  # a row for each query
    assert CELL < sizes[2][1] - sizes[1][1] < 2 * CELL


def test_names_that_a_terminal_would_obey_are_escaped(tmp_path, capsys):
    write(tmp_path / "f.pkl", vectors(1), ids=["a\x1b[2J"], captions=[("b\nc",)])
    np.save(tmp_path / "q.npy", np.ones(DIM))
    _, out, _ = run(capsys, "search", "--embedding", tmp_path / "q.npy", "--index", tmp_path / "f.pkl")
    assert len(out) == 2 and "a\\x1b[2J" in out[1] and "b\\nc" in out[1]


def test_the_benchmark_runs(faiss, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(REPO))
    from benchmarks.speed.retrieval import bench
    from benchmarks.speed.retrieval.points import write_set

    write_set(tmp_path / "features", 600)
    assert bench.build(tmp_path, "exact")["built_s"] > 0
    bench.build(tmp_path, "ivf")
    one, hundred = bench.compare(tmp_path, turns=1)
    assert one.row().startswith("| exact search, 600 × 512") and hundred.ours
    assert bench.memory(tmp_path, "flat")["hundred_mib"] >= 0
    assert bench.approximate(tmp_path, "ivf", turns=1)["recall_10"] > 0.8


def test_no_queries_find_nothing(tmp_path):
    index = build(write(tmp_path / "f", vectors(9)), tmp_path / "index")
    assert index.search(torch.empty(0, DIM), 3) == []
