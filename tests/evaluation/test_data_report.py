"""The page on a feature file: what it counts, what it finds, what it leaves out and why."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.road import draw_set, picture, run, write_captions

from clipcap.evaluation.data_report import disagreement
from clipcap.features.files import read_features


@pytest.fixture(scope="module")
def parsed(tmp_path_factory, clip_file):
    """Twelve photos with two captions each, of which the last photo is the first one again."""
    folder = tmp_path_factory.mktemp("data")
    from clipcap.cli.main import main

    photos = draw_set(folder / "photos", images=12, captions=2)
    picture(0).save(photos / "photo11.png")
    rows = [(f"photo{i}.png", "a red plate" if k else f"picture {i} on a table") for i in range(12) for k in range(2)]
    write_captions(photos, rows)
    words = ["parse", "custom", "--data_path", str(photos), "--clip_model_type", str(clip_file)]
    assert main([*words, "--out", str(folder / "photos.pkl")]) == 0
    return folder / "photos.pkl"


def report(capsys, tmp_path, *words):
    status, lines, said = run(capsys, "features", "report", *words, "--out", tmp_path / "data.html")
    assert status == 0 and lines == [f"report: {tmp_path / 'data.html'}"], said
    return (tmp_path / "data.html").read_text(), "\n".join(said)


def test_the_page_counts_and_finds_what_is_worth_a_look(capsys, parsed, tmp_path):
    page, said = report(capsys, tmp_path, parsed, "--duplicate_cosine", 0.99999)
    assert "12\u00a0images · 24\u00a0captions" in page
    assert "'a red plate' is there 12 times" in said and "46% of the captions repeat another one" in said
    assert "near-duplicates: 1 picture too many, in 1 group" in said
    assert "'plate' is in the captions of 100% of the images" in said or "100% of the images" in said
    assert "were not looked for: pass the other file as --val" in said
    for finding in ("Captions that are there several times", "Commonest words", "Cosine of caption and picture"):
        assert finding in page
    assert page.count("data:image/jpeg;base64") == 2 + 24  # the group of duplicates, and each caption's picture
    assert str(tmp_path) not in page and str(parsed.parent) not in page


def test_pictures_that_training_and_validation_share_are_shown(capsys, parsed, tmp_path):
    page, said = report(capsys, tmp_path, parsed, "--val", parsed, "--duplicate_cosine", 0.99999, "--pairs", 0)
    assert "leaks: 12 held-out pictures with a near-duplicate in the training set" in said
    assert 'id="leaks"' in page and "were not looked for" not in said


def test_captions_of_other_pictures_are_noticed():
    """Pairs that fit perfectly are no finding; the same captions in another order are."""
    random = np.random.default_rng(0)
    fit, chance = ((mean + 0.02 * random.standard_normal(500)).tolist() for mean in (0.3, 0.1))
    assert disagreement(fit, chance) == []
    found = disagreement(chance, chance)
    assert len(found) == 2 and "are they in the right order" in found[1]


def test_without_a_text_tower_the_page_says_so_and_shows_a_sample(capsys, parsed, tmp_path):
    features = read_features(parsed)
    torch.manual_seed(0)
    np.save(tmp_path / "x.npy", torch.randn(features.num_images, 16).numpy())
    (tmp_path / "t.csv").write_text(
        "id,caption\n" + "".join(f"{i},a sound {i}\n" for i in range(features.num_images))
    )
    status, _, said = run(capsys, "features", "import", tmp_path / "x.npy", "--captions", tmp_path / "t.csv",
                          "--encoder", "sounds", "--out", tmp_path / "x")  # fmt: skip
    assert status == 0, said
    page, _ = report(capsys, tmp_path, tmp_path / "x")
    assert "captions were not compared with their pictures" in page and 'id="pictures"' in page


def test_objects_of_a_list_are_counted_by_image(capsys, parsed, tmp_path):
    (tmp_path / "objects.txt").write_text("plate\ntable\nfork\n")
    page, _ = report(capsys, tmp_path, parsed, "--objects", tmp_path / "objects.txt", "--pairs", 0)
    assert "1 objects of the list are never named" in page and "100.0%" in page
    status, _, errors = run(capsys, "features", "report", tmp_path / "none.pkl", "--out", tmp_path / "d.html")
    assert status == 1 and len(errors) == 1
    status, _, errors = run(capsys, "features", "report", parsed, "--out", tmp_path / "d.pdf")
    assert status == 1 and "end the name in .html" in errors[0]
