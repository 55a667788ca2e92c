"""Exact search, recall, and the picture that shows what was found."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from PIL import Image
from support.brute_force import brute_force
from support.road import draw_set, run
from support.small import META, feature_file
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics.recall import recall
from clipcap.features.files import read_features, write_features
from clipcap.images.grid import CELL, picture_grid, sheet_font, wrapped
from clipcap.retrieval import exact
from clipcap.retrieval.exact import search


def features_of(path, embeddings, image_ids=None):
    count = len(embeddings)
    ids = image_ids or [f"photo{i}" for i in range(count)]
    content = {"image_ids": ids, "image_paths": [None] * count, "captions": [(f"caption {i}",) for i in range(count)]}
    write_features(path, embeddings=np.asarray(embeddings, np.float32), meta=META, **content)
    return read_features(path)


@pytest.fixture
def random_rows():
    return np.random.default_rng(0).standard_normal((50, 8)).astype(np.float32)


QUERIES = torch.from_numpy(np.random.default_rng(1).standard_normal((4, 8)).astype(np.float32))


@pytest.mark.parametrize("name", ["index.pkl", "index"])
@pytest.mark.parametrize("block", [7, 50, 8192])
def test_search_is_exact_whatever_the_block(random_rows, block, name, tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", block)
    rows, scores = search(features_of(tmp_path / name, random_rows), QUERIES, 9)
    cosines = F.cosine_similarity(QUERIES[:, None], torch.from_numpy(random_rows)[None], dim=2)
    expected, order = cosines.sort(dim=1, descending=True)
    assert torch.equal(rows, order[:, :9])
    torch.testing.assert_close(scores, expected[:, :9])


@pytest.mark.parametrize("block", [2, 8192])
def test_equal_scores_stand_in_row_order(block, tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", block)
    same = np.tile(np.eye(8, dtype=np.float32)[:2], (4, 1))  # two vectors in turn
    rows, _ = search(features_of(tmp_path / "f.pkl", same), torch.eye(8)[:1], 6)
    assert rows.tolist() == [[0, 2, 4, 6, 1, 3]]


@pytest.mark.parametrize("block", [3, 8192])
def test_an_image_is_found_once_by_its_best_row(random_rows, block, tmp_path, monkeypatch):
    monkeypatch.setattr(exact, "BLOCK", block)
    ids = [f"photo{i % 10}" for i in range(50)]
    features = features_of(tmp_path / "f.pkl", random_rows, ids)
    rows, scores = search(features, QUERIES, 20)
    assert rows.shape == (4, 10)
    cosines = F.cosine_similarity(QUERIES[:, None], torch.from_numpy(random_rows)[None], dim=2)  # [4, 50]
    best = cosines.view(4, 5, 10).max(dim=1).values.sort(dim=1, descending=True).values
    torch.testing.assert_close(scores, best)
    assert all(len({ids[row] for row in found}) == 10 for found in rows.tolist())


@pytest.mark.parametrize("wrong", [np.nan, np.inf, 0])
def test_rows_without_a_direction_are_never_found(wrong, tmp_path):
    rows = -np.eye(8, dtype=np.float32)[:4]  # a score of 0 would come first
    rows[2] = wrong
    found, scores = search(features_of(tmp_path / "f.pkl", rows), torch.eye(8)[:1] + 0.1, 9)
    assert found.tolist() == [[1, 3, 0]] and scores.isfinite().all()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf, 0])
def test_queries_without_a_direction_are_refused(wrong, random_rows, tmp_path):
    queries = QUERIES.clone()
    queries[2] = wrong
    with pytest.raises(ClipcapError, match="query 2 has no direction"):
        search(features_of(tmp_path / "f.pkl", random_rows), queries, 3)


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
@pytest.mark.parametrize("name", ["index.pkl", "index"])
@pytest.mark.parametrize("block", [13, 4096])
def test_search_ranks_as_float64_does(dtype, name, block, tmp_path, monkeypatch):
    """float32 cannot tell these rows apart: their cosines differ by less than what it rounds."""
    monkeypatch.setattr(exact, "BLOCK", block)
    monkeypatch.setattr(exact, "PAIRS", 11)
    generator = np.random.default_rng(2)
    query, other = generator.standard_normal((2, 300))
    rows = (query + other + 1e-4 * generator.standard_normal((200, 300))) * generator.uniform(0.1, 9, (200, 1))
    rows[100:] = rows[generator.integers(0, 100, 100)]  # and some not even float64
    rows = rows.astype(dtype)
    count = {"image_ids": [str(i) for i in range(200)], "image_paths": [None] * 200, "captions": [()] * 200}
    write_features(tmp_path / name, embeddings=rows, meta=META, **count)
    queries = torch.from_numpy(np.stack([query, -query]))
    found, scores = search(read_features(tmp_path / name), queries, 20)
    order, expected = brute_force(rows, queries, 20)
    assert found.tolist() == order.tolist() and np.array_equal(scores.numpy(), expected)
    assert len(np.unique(expected[0])) > 3  # not all are one score
    in_float32 = (F.normalize(torch.from_numpy(rows).float(), dim=1) @ F.normalize(queries, dim=1)[0].float()).topk(
        20
    )
    assert in_float32.indices.tolist() != order[0].tolist()


def test_queries_of_another_width_are_refused(random_rows, tmp_path):
    with pytest.raises(ClipcapError, match="embeddings are 8 wide, the queries' 16"):
        search(features_of(tmp_path / "f.pkl", random_rows), torch.zeros(1, 16), 3)


def test_recall_by_hand():
    images = torch.eye(4)
    # Texts 0 and 1 are of image 0, text 2 of image 1, text 3 of image 3; image 2 has none.
    texts = torch.tensor([[0.1, 0.9, 0, 0], [0.9, 0.1, 0, 0], [0, 0.8, 0, 0.6], [0.7, 0.5, 0, 0.51]])
    scores = recall(images, texts, [0, 0, 1, 3])
    # Ranks of images: 0 (by text 1), 1 (text 0 is nearer to image 1), 1; of texts: 1, 0, 0, 1.
    assert scores["i2t_r1"] == pytest.approx(1 / 3) and scores["i2t_r5"] == scores["i2t_r10"] == 1
    assert scores["t2i_r1"] == 0.5 and scores["t2i_r5"] == 1
    assert scores["i2t_median"] == 2 and scores["t2i_median"] == 1.5


def test_a_model_that_says_the_same_of_everything_recalls_like_chance():
    scores = recall(torch.ones(200, 8), torch.ones(1000, 8), np.repeat(np.arange(200), 5))
    assert scores["t2i_r10"] == pytest.approx(10 / 200)
    assert scores["i2t_r10"] == pytest.approx(2 / 200)  # ten texts in row order are of the first two images


def test_recall_is_the_same_in_parts(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    images, texts = torch.randn(40, 8, generator=generator), torch.randn(90, 8, generator=generator)
    owners = torch.randint(0, 40, (90,), generator=generator).tolist()
    whole = recall(images, texts, owners)
    monkeypatch.setattr(exact, "QUERIES", 7)
    assert recall(images, texts, owners) == whole


def test_lines_are_no_wider_than_asked_and_lose_no_letter():
    text = "two slices of bread on a very-long-plate-whose-name-does-not-fit-on-one-line with jam"
    font = sheet_font(15)
    lines = wrapped(text, font, 120)
    assert all(font.getlength(line) <= 120 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped("", font, 120) == []


def test_rows_of_a_grid_grow_with_their_longest_label(tmp_path):
    pictures = [Image.new("RGB", size, "teal") for size in ((300, 100), (50, 50), (10, 900), (64, 64))]
    short = picture_grid(pictures, ["one"] * 4, "four pictures")
    tall = picture_grid(pictures, ["one", "a long label " * 30, "one", "one"], "four pictures")
    assert short.width == tall.width and tall.height > short.height + 200
    assert picture_grid(pictures, ["one"] * 4, columns=4).width > 4 * CELL
    noted = picture_grid(pictures, ["one"] * 4, "four pictures", notes=["a note", "", "a long note " * 9, ""])
    assert noted.width == short.width and noted.height > short.height + 60


def test_a_picture_that_is_gone_leaves_its_place(tmp_path):
    sheet = picture_grid([tmp_path / "gone.jpg", None, Image.new("RGB", (9, 9), "red")], ["a", "b", "c"])
    assert sheet.getpixel((24 + CELL // 2, 24 + CELL // 2)) == (252, 251, 248)


@pytest.fixture(scope="module")
def index(tmp_path_factory, clip_file):
    from clipcap.cli.main import main

    data = draw_set(tmp_path_factory.mktemp("set"), 6, 2)
    out = data / "features.pkl"
    main(["parse", "custom", "--data_path", str(data), "--clip_model_type", str(clip_file), "--out", str(out)])
    return out


def test_search_prints_a_table_and_draws_the_matches(index, tmp_path, capsys):
    grid = tmp_path / "new" / "grid.png"
    status, out, _ = run(capsys, "search", "one dog on the grass", "--index", index, "--k", 4, "--out", grid)
    assert status == 0
    assert out[0].split() == ["rank", "score", "image", "caption", "path"]
    assert [line.split()[0] for line in out[1:5]] == ["1", "2", "3", "4"]
    scores = [float(line.split()[1]) for line in out[1:5]]
    assert scores == sorted(scores, reverse=True)
    assert all("said in way 0" in line and "photo" in line for line in out[1:5])
    with Image.open(grid) as sheet:
        assert sheet.width > 2 * CELL


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--index", "nothing.pkl"], "nothing.pkl: no such feature file"),
        ([], "--index is missing"),
        (["--index", "INDEX", "--k", "0"], "--k must be at least 1"),
        (["--index", "INDEX", "--out", "grid.docx"], "--out grid.docx: ends in .docx; end it in .jsonl"),
        (["--index", "INDEX", "--out", "/proc/grid.png"], "/proc/grid.png: cannot be written"),
        (["--index", "INDEX", "--img", "photo.jpg"], "search for one of: words, --img"),
        (["--index", "INDEX", "--clip_model_type", "OTHER"], "this search expects"),
    ],
)
def test_a_search_that_cannot_be_done_says_why(flags, message, index, tmp_path, capsys):
    from clipcap.demo.tiny import make_clip

    named = {"INDEX": index, "OTHER": tmp_path / "other.pt"}
    if "OTHER" in flags:
        make_clip(named["OTHER"], seed=5)
    status, _, err = run(capsys, "search", "dogs", *[named.get(flag, flag) for flag in flags])
    assert status == 1 and len(err) == 1 and message in err[0]


def test_blanks_are_no_words(index, capsys):
    status, _, err = run(capsys, "search", "  ", "--index", index)
    assert status == 1 and "search for one of: words, --img" in err[0]


def test_an_encoder_that_has_moved_is_known_by_its_weights(index, clip_file, tmp_path, capsys):
    moved = shutil.copy(clip_file, tmp_path / "moved.pt")
    status, out, _ = run(capsys, "search", "dogs", "--index", index, "--clip_model_type", moved)
    assert status == 0 and len(out) == 7


def test_features_of_no_known_encoder_need_its_name(tmp_path, capsys):
    path = feature_file(tmp_path / "f.pkl", CAPTIONS, meta=type(META)())
    status, _, err = run(capsys, "search", "dogs", "--index", path)
    assert status == 1 and "--clip_model_type" in err[0]
