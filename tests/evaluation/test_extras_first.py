"""The extra that scores need is asked for before any work."""

from __future__ import annotations

import builtins

import pytest
from support.road import run


@pytest.fixture
def no_scorer(monkeypatch):
    load = builtins.__import__

    def refuse(name, *args, **options):
        if name.startswith("pycocoevalcap"):
            raise ImportError(name)
        return load(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setattr("clipcap.evaluation.metrics.score.import_module", refuse)


@pytest.mark.parametrize(
    "words",
    [
        ("evaluate", "--data", "not_there.pkl"),
        ("compare", "not_there", "nor_there"),
        ("fit", "not_there", "--out", "run"),
    ],
)
def test_the_extra_is_named_before_anything_is_read_or_written(no_scorer, capsys, monkeypatch, tmp_path, words):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, *words)
    assert (status, err) == (
        1, ["clipcap: error: caption scores need the pycocoevalcap package: pip install 'clipcap-toolkit[eval]'"],
    )  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_the_demo_states_at_once_that_it_goes_without_scores(no_scorer, messages, monkeypatch, tmp_path):
    from clipcap.demo import run as demo

    monkeypatch.setattr(demo, "TRAIN_PICTURES", 6)
    monkeypatch.setattr(demo, "VAL_PICTURES", 2)
    commands = []
    demo.run_demo(tmp_path / "demo", lambda words: commands.append(words[0]) or 0)
    assert commands == ["parse", "parse", "train", "predict"]
    assert messages()[0].startswith("warning: the demo goes without scores and report: caption scores need the")
