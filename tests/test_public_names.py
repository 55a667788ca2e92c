"""What `from clipcap import …` gives: each name, and options by keyword beside configs."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from PIL import Image
from support.road import REPO, draw_photos, draw_set, picture, save_captioner
from support.small import DIM, feature_file, metrics, options

import clipcap
from clipcap import (
    Caption,
    Captioner,
    ClipcapError,
    ClipCaptionModel,
    ClipGptCaptioner,
    DecodeConfig,
    Encoder,
    EvaluateConfig,
    Features,
    Index,
    ParseConfig,
    TrainConfig,
    evaluate,
    load_encoder,
    open_image,
    parse,
    read_features,
    train,
    write_features,
)  # fmt: skip

PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text(encoding="utf-8"))


@pytest.fixture
def captioner(lm_folder, clip_file, tmp_path) -> Captioner:
    return Captioner.from_pretrained(save_captioner(tmp_path / "captioner", lm_folder, clip_file), device="cpu")


def test_every_public_name_is_there_and_no_other_is():
    assert set(clipcap.__all__) == {*clipcap._PUBLIC, "__version__"} <= set(dir(clipcap))
    assert all(getattr(clipcap, name) is not None for name in clipcap.__all__)
    with pytest.raises(AttributeError, match="module 'clipcap' has no attribute 'Captionr'"):
        _ = clipcap.Captionr


def test_type_checkers_see_the_names_that_are_loaded_later():
    tree = ast.parse((REPO / "clipcap" / "__init__.py").read_text(encoding="utf-8"))
    [checking] = [node for node in tree.body if isinstance(node, ast.If)]
    assert {alias.name: node.module for node in checking.body for alias in node.names} == clipcap._PUBLIC


@pytest.mark.parametrize("name", ["DecodeConfig", "TrainConfig", "ParseConfig", "EvaluateConfig", "ClipcapError"])
def test_configs_and_the_error_come_without_torch(name):
    code = f"import sys; from clipcap import {name}; print('torch' in sys.modules)"
    assert (
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
    )


def test_captioner_takes_options_by_keyword(captioner, tmp_path):
    photos = draw_photos(tmp_path, 2)
    found = captioner.caption(photos, beam=True, num_captions=3)
    assert found == captioner.caption(photos, DecodeConfig(beam=True, num_captions=3))
    assert [len(captions) for captions in found] == [3, 3] and isinstance(found[0][0], Caption)
    assert captioner.caption(photos) == captioner.caption(photos, beam=True)
    assert captioner(photos, greedy=True) == captioner(photos, DecodeConfig(greedy=True))
    assert captioner(photos, top_p=0.9, seed=1) == captioner(photos, DecodeConfig(top_p=0.9, seed=1))
    assert captioner(photos, DecodeConfig(seed=1), temperature=0) == captioner(photos, greedy=True)
    with pytest.raises(ClipcapError, match="DecodeConfig has no option 'num_caption'; did you mean 'num_captions'"):
        captioner.caption(photos, num_caption=3)


def test_models_and_encoders(captioner, clip_file, tmp_path):
    assert isinstance(captioner.model, ClipCaptionModel)
    encoder: Encoder = load_encoder(str(clip_file), "cpu")
    picture(0).save(tmp_path / "photo.png")
    image = open_image(tmp_path / "photo.png")
    assert isinstance(image, Image.Image)
    assert encoder.encode_images(encoder.preprocess(image)[None]).shape == (1, encoder.dim)
    assert issubclass(ClipGptCaptioner, Captioner)


def test_features_are_written_read_and_searched(tmp_path):
    rows = torch.eye(3, DIM)
    write_features(
        tmp_path / "f.pkl", embeddings=rows, image_ids=["a", "b", "c"], image_paths=[None] * 3,
        captions=[("x",), ("y",), ("z",)], meta=read_features(feature_file(tmp_path / "g.pkl")).meta,
    )  # fmt: skip
    features = read_features(tmp_path / "f.pkl")
    assert isinstance(features, Features) and features.num_images == 3
    [[best]] = Index.open(tmp_path / "f.pkl").search(rows[1:2], 1)
    assert best.image_id == "b"


def test_parse_takes_options_by_keyword(clip_file, tmp_path):
    photos = draw_set(tmp_path / "set", 2)
    chosen = {"data_path": str(photos), "clip_model_type": str(clip_file), "device": "cpu", "workers": 0}
    [first] = parse("custom", **chosen, out=str(tmp_path / "a.pkl"))
    [second] = parse("custom", ParseConfig.of(**chosen), out=str(tmp_path / "b.pkl"))
    one, other = read_features(first), read_features(second)
    np.testing.assert_array_equal(one.rows([0, 1]).numpy(), other.rows([0, 1]).numpy())


def test_train_and_evaluate_take_options_by_keyword(lm_folder, tmp_path):
    pytest.importorskip("pycocoevalcap")
    data = feature_file(tmp_path / "f.pkl", CAPTIONS)
    chosen = options(data, lm_folder, tmp_path / "out", epochs=1)
    best = train(**chosen)
    train(TrainConfig.of(**chosen), out_dir=str(tmp_path / "again"))
    assert metrics(tmp_path / "out") == metrics(tmp_path / "again")
    how = {"load_pt": str(best), "data": str(data), "java": False, "clip_score": False, "beam_size": 2}
    folder = evaluate(**how, out=str(tmp_path / "scores"))
    again = evaluate(EvaluateConfig.of(**how), out=str(tmp_path / "more"))
    for name in ("predictions.json", "metrics.json"):
        assert (folder / name).read_bytes() == (again / name).read_bytes()


# --- what is installed --------------------------------------------------------------------------------------------


def test_the_version_stands_in_one_place():
    assert PROJECT["project"]["dynamic"] == ["version"] and "version" not in PROJECT["project"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "clipcap.__version__"}
    lines = (REPO / "clipcap" / "__init__.py").read_text(encoding="utf-8").splitlines()
    assert f'__version__ = "{clipcap.__version__}"' in lines  # a literal: setuptools reads it without an import


def texts() -> list[Path]:
    folders = [path for name in ("clipcap", "docs", "benchmarks", "notebooks") for path in (REPO / name).rglob("*")]
    kinds = (".py", ".md", ".ipynb", ".toml")
    return [path for path in (*folders, REPO / "pyproject.toml") if path.suffix in kinds]


def test_every_extra_that_a_text_names_exists_and_is_ours():
    named = {extra for path in texts() for extra in re.findall(r"clipcap-toolkit\[([\w,]+)\]", path.read_text())}
    assert named and {name for extras in named for name in extras.split(",")} <= set(
        PROJECT["project"]["optional-dependencies"]
    )


def test_no_text_installs_the_other_project_of_our_name():
    other = re.compile(r"clipcap\[\w|pip install '?clipcap(?!-toolkit)\b")
    assert [path for path in texts() if other.search(path.read_text())] == []
