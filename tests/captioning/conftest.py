"""A small captioner on the disk, photos, and `clipcap predict`, which the tests of its files and texts share."""

from __future__ import annotations

import pytest
from support.road import SHORT, draw_photos, run, save_captioner


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, lm_folder, clip_file):
    return save_captioner(tmp_path_factory.mktemp("road") / "captioner", lm_folder, clip_file, seed=1)


@pytest.fixture
def photos(tmp_path):
    return draw_photos(tmp_path / "photos", 5)


@pytest.fixture
def caption(capsys, checkpoint):
    """Runs `clipcap predict`: (status, stdout lines, stderr lines)."""
    return lambda *words: run(capsys, "predict", "--load_pt", checkpoint, *SHORT, *words)
