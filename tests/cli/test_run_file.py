"""The options of a run in a file, runs cut short for a try, and silence."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
import yaml
from support.road import SHORT, draw_photos, lines_of, run, save_captioner
from support.small import feature_file, flags, options

from clipcap.errors import ClipcapError
from clipcap.runtime.run_file import read_run_file
from clipcap.training.config import TrainConfig


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return feature_file(tmp_path_factory.mktemp("data") / "train.pkl")


@pytest.fixture
def words(data, lm_folder, tmp_path):
    """The flags of a short run."""
    return flags(options(data, lm_folder, tmp_path / "out"))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, lm_folder, clip_file):
    return save_captioner(tmp_path_factory.mktemp("road") / "captioner", lm_folder, clip_file)


def test_the_file_that_a_run_writes_repeats_it(capsys, words, tmp_path):
    assert run(capsys, "train", *words)[0] == 0
    file = tmp_path / "out" / "run.yaml"
    assert file.read_text(encoding="utf-8").startswith("# clipcap train --config run.yaml\n")
    assert run(capsys, "train", "--config", file, "--out_dir", tmp_path / "again")[0] == 0
    weights = [tmp_path / name / "clipcap-last" / "model.safetensors" for name in ("out", "again")]
    assert weights[0].read_bytes() == weights[1].read_bytes()
    first, again = (yaml.safe_load((tmp_path / name / "run.yaml").read_text()) for name in ("out", "again"))
    assert {name for name in first | again if first.get(name) != again.get(name)} == {"out_dir"}


@pytest.mark.parametrize("kind", ["predict", "predict a tree", "parse", "index"])
def test_commands_with_other_arguments_are_repeated_by_the_file_too(capsys, kind, checkpoint, clip_file, tmp_path):
    photos = tmp_path / "photos"
    for photo in draw_photos(photos, 3):
        photo.with_suffix(".txt").write_text("a plate of food")
    words, out, file = {
        "predict": (("predict", "--img", photos, "--load_pt", checkpoint, *SHORT), "c.jsonl", "c.jsonl.run.yaml"),
        "predict a tree": (("predict", "--img", photos, "--load_pt", checkpoint, *SHORT), "t", "t/run.yaml"),
        "parse": (("parse", "custom", "--data_path", photos, "--clip_model_type", clip_file), "f", "f/run.yaml"),
        "index": (("index", photos, "--clip_model_type", clip_file), "i", "i/run.yaml"),
    }[kind]
    flag = "--out_tree" if out == "t" else "--out"
    assert run(capsys, *words, flag, tmp_path / out)[0] == 0
    before = contents(tmp_path / out)
    head = (tmp_path / file).read_text(encoding="utf-8").splitlines()[0]
    assert head == f"# clipcap {'parse custom' if kind == 'parse' else words[0]} --config {file.split('/')[-1]}"
    (tmp_path / file).rename(tmp_path / "kept.yaml")
    names = words[:2] if kind == "parse" else words[:1]
    again = (*names, "--config", tmp_path / "kept.yaml")
    assert run(capsys, *again, flag, tmp_path / f"again_{out}")[0] == 0
    assert contents(tmp_path / f"again_{out}") == before
    assert run(capsys, *again)[0] == 0 and contents(tmp_path / out) == before


def contents(place):
    """The bytes of a file, or of each file of a folder; the options name their place."""
    if place.is_file():
        return place.read_bytes()
    return {
        path.relative_to(place): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and path.name != "run.yaml"
    }


def test_an_argument_that_neither_the_line_nor_the_file_has_is_missing(capsys, tmp_path):
    (tmp_path / "my.yaml").write_text(f"out: {tmp_path / 'out'}\n")
    status, _, err = run(capsys, "index", "--config", tmp_path / "my.yaml")
    assert status == 1 and "PHOTOS is missing, on the command line and in --config" in err[-1]
    (tmp_path / "my.yaml").write_text("sources: [1]\n")
    status, _, err = run(capsys, "index", "--config", tmp_path / "my.yaml")
    assert status == 1 and err[-1].endswith("sources is [1], not a list of texts")


def test_flags_go_before_the_file(capsys, words, tmp_path):
    (tmp_path / "my.yaml").write_text(
        "epochs: 5\nlr: 2e-3\nval: 0.5\nbatch_size: 4\nonly-prefix: true\n".replace("only-", "only_")
    )
    config = TrainConfig.of(**read_run_file(str(tmp_path / "my.yaml"), TrainConfig))
    assert (config.loop.epochs, config.task.lr, config.features.val, config.task.bs) == (5, 2e-3, "0.5", 4)
    assert run(capsys, "train", "--config", tmp_path / "my.yaml", *words)[0] == 0
    assert len(lines_of(tmp_path / "out" / "metrics.jsonl")) == 2  # --epochs 2 of the flags


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("epoch: 3", "TrainConfig has no option 'epoch'; did you mean 'epochs'"),
        ("epochs: many", "epochs is 'many', not of type int"),
        ("epochs: 2.5", "epochs is 2.5, not of type int"),
        ("dropout: 1", "dropout is 1, not of type bool"),
        ("lr: true", "lr is True, not of type float"),
        ("schedule: cosine", "schedule is 'cosine', not one of linear, plateau"),
        ("epochs: [1]", "epochs is [1], not of type int"),
        ("- 3", "holds no options"),
        ("a: [", "cannot be read"),
        ("!!python/object/apply:os.system ['true']", "cannot be read"),
    ],
)
def test_bad_files_are_one_line(capsys, tmp_path, text, said):
    (tmp_path / "my.yaml").write_text(text)
    status, out, err = run(capsys, "train", "--config", tmp_path / "my.yaml")
    assert (status, out, len(err)) == (1, [], 1) and said in err[0] and "my.yaml" in err[0]
    with pytest.raises(ClipcapError, match=r"not_there\.yaml: cannot be read"):
        read_run_file(str(tmp_path / "not_there.yaml"), TrainConfig)


def test_the_file_of_another_command_is_named(capsys, words, tmp_path):
    run(capsys, "train", *words)
    status, _, err = run(capsys, "predict", "--config", tmp_path / "out" / "run.yaml", "--img", tmp_path)
    assert status == 1 and err[-1].endswith(": the file is of `clipcap train`, not of `clipcap predict`")


def test_steps_are_logged_with_rate_and_speed(capsys, words, tmp_path):
    run(capsys, "train", *words)
    steps = lines_of(tmp_path / "out" / "steps.jsonl")
    epochs = lines_of(tmp_path / "out" / "metrics.jsonl")
    assert [line["step"] for line in steps] == list(range(1, epochs[-1]["step"] + 1))
    assert steps[0]["lr"] > steps[-1]["lr"] > 0 and all(line["steps_per_s"] > 0 for line in steps)
    assert {"step", "loss", "lr", "steps_per_s"} == set(steps[0])


@pytest.mark.parametrize("steps", [1, 5, 6])
def test_max_steps_ends_a_run_with_a_checkpoint_and_a_whole_schedule(capsys, words, tmp_path, steps):
    assert run(capsys, "train", *words, "--max_steps", steps)[0] == 0
    lines = lines_of(tmp_path / "out" / "steps.jsonl")
    assert [line["step"] for line in lines] == list(range(1, steps + 1))
    assert lines_of(tmp_path / "out" / "metrics.jsonl")[-1]["step"] == steps
    assert lines[-1]["lr"] == pytest.approx(lines[0]["lr"] / steps)
    status, _, err = run(capsys, "train", *words, "--max_steps", steps, "--resume")
    assert status == 0 and [line["step"] for line in lines_of(tmp_path / "out" / "steps.jsonl")] == list(
        range(1, steps + 1)
    )
    status, _, err = run(capsys, "train", *words, "--max_steps", steps + 1, "--resume")
    assert status == 1 and f"has max_steps {steps}" in err[-1]


def test_limit_takes_the_first_images(capsys, words, checkpoint, data, clip_file, tmp_path):
    assert run(capsys, "train", *words, "--limit", 3, "--epochs", 1)[0] == 0
    assert len(lines_of(tmp_path / "out" / "steps.jsonl")) == 1  # a batch of three captions
    photos = draw_photos(tmp_path / "photos", 4)
    words = ("--load_pt", checkpoint, *SHORT)
    found = run(capsys, "predict", "--img", tmp_path / "photos", "--limit", 2, *words)[1]
    assert [line.split("\t")[0] for line in found] == [str(photo) for photo in photos[:2]]
    bare = ("--data_path", tmp_path / "photos", "--clip_model_type", clip_file, "--out", tmp_path / "bare")
    assert ": 3 images, 0 captions" in " ".join(run(capsys, "parse", "photos", *bare, "--limit", 3)[2])
    assert len(run(capsys, "predict", "--features", tmp_path / "bare", "--limit", 1, *words)[1]) == 1


def test_quiet_commands_print_results_and_warnings_alone(capsys, checkpoint, tmp_path):
    photos = draw_photos(tmp_path / "photos", 3)
    photos[1].write_bytes(b"no picture")
    words = ("predict", "--load_pt", checkpoint, "--img", *photos, *SHORT)
    status, out, err = run(capsys, *words, "--quiet")
    assert (status, len(out), [line.split(" ")[:2] for line in err]) == (1, 2, [["warning:", "skipped"]])
    assert len(run(capsys, *words)[2]) == 3  # and no longer quiet


def test_a_log_file_has_no_bars(words, tmp_path):
    with open(tmp_path / "log", "wb") as log:
        done = subprocess.run(
            [sys.executable, "-m", "clipcap", "train", *words], stdout=log, stderr=log, env=os.environ
        )
    text = (tmp_path / "log").read_text()
    assert done.returncode == 0 and "\r" not in text and "it/s" not in text and "epoch 1: train_loss" in text
