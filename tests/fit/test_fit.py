"""From photos and captions to an evaluated captioner in one command: plan, steps, interruption, refusals."""

from __future__ import annotations

import json
import shutil

import pytest
from support.road import draw_photos, run

from clipcap.fit.config import FitConfig
from clipcap.fit.fit import duration, read_data
from clipcap.fit.recipe import choose_recipe, too_short
from clipcap.training.caption_task import CaptionTask


@pytest.fixture
def data(tmp_path):
    photos = draw_photos(tmp_path / "photos", 12)
    lines = [f"{photo.name},a plate with {number} things" for number, photo in enumerate(photos)]
    (tmp_path / "photos" / "captions.csv").write_text("image,caption\n" + "\n".join(lines) + "\n")
    return tmp_path / "photos"


@pytest.fixture
def fit(capsys, data, clip_file, lm_folder, tmp_path):
    """Runs `clipcap fit`: (status, stdout lines, stderr lines)."""
    words = ("fit", data, "--out", tmp_path / "run", "--clip_model_type", clip_file, "--lm", lm_folder, "--no_java")
    return lambda *more: run(capsys, *words, "--epochs", 2, "--bs", 4, *more)


def test_one_command_parses_trains_and_evaluates(fit, capsys, data, tmp_path):
    status, _, err = fit()
    assert status == 0
    text = "\n".join(err)
    assert f"{data}: 12 photos; 7 with 7 captions to train on, 5 held out" in text
    assert "--bs 4 --epochs 2: 2 steps an epoch, 4 in all" in text and "at most 4 steps of " in text
    assert "warning: 4 steps from scratch are too few: the captions will be noise." in text
    commands = [line.split()[2] for line in err if line.startswith("$ clipcap ")]
    assert commands == ["parse", "train", "evaluate"]
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert len(metrics["per_image"]) == 5 and (tmp_path / "run" / "evaluation" / "report.html").is_file()
    words = ("--load_pt", tmp_path / "run" / "checkpoints", "--img", data, "--max_new_tokens", 5)
    assert len(run(capsys, "predict", *words)[1]) == 12


def test_the_commands_it_shows_do_the_same_alone(fit, capsys, tmp_path, monkeypatch):
    import shlex

    shown = [shlex.split(line[2:])[1:] for line in fit()[2] if line.startswith("$ clipcap ")]
    weights = (tmp_path / "run" / "checkpoints" / "clipcap-best" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run")
    for words in shown:
        assert run(capsys, *words)[0] == 0
    assert (tmp_path / "run" / "checkpoints" / "clipcap-best" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("stop", ["parse", "probe", "first step", "second epoch", "evaluate"])
def test_an_interrupted_run_continues_to_the_same_weights(fit, tmp_path, monkeypatch, stop):
    fit()
    best = tmp_path / "run" / "checkpoints" / "clipcap-best" / "model.safetensors"
    expected = best.read_bytes()
    shutil.rmtree(tmp_path / "run")
    with monkeypatch.context() as patched:
        interrupt_at(patched, stop)
        status, _, err = fit()
    assert status == 130 and err[-1].startswith("clipcap: interrupted; ")
    status, _, err = fit()
    assert status == 0 and best.read_bytes() == expected
    assert (tmp_path / "run" / "evaluation" / "metrics.json").is_file()
    assert fit()[2].count("") == 0  # all is done: no command runs again


def interrupt_at(patched, stop):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    if stop in ("parse", "evaluate"):
        module = {"parse": "clipcap.features.parse.encode_missing", "evaluate": "clipcap.evaluation.evaluate.score"}
        patched.setattr(module[stop], interrupt)
        return
    windows, calls = CaptionTask.windows, []

    def stopping(self, epoch, skip):
        calls.append(epoch)
        if len(calls) == {"probe": 1, "first step": 3, "second epoch": 4}[stop]:
            raise KeyboardInterrupt
        yield from windows(self, epoch, skip)

    patched.setattr(CaptionTask, "windows", stopping)


def test_a_dry_run_plans_and_trains_nothing(fit, tmp_path):
    status, _, err = fit("--dry_run")
    assert status == 0 and any(line.startswith("at most 4 steps of ") for line in err)
    assert not (tmp_path / "run" / "checkpoints").exists() and not (tmp_path / "run" / ".probe").exists()
    assert fit()[0] == 0


def test_other_options_and_other_folders_are_refused(fit, capsys, data, tmp_path):
    fit("--dry_run")
    status, _, err = fit("--lr", 1)
    assert status == 1 and "holds a run with lr None, this command has 1.0: choose another --out" in err[-1]
    status, _, err = run(capsys, "fit", data, "--out", data)
    assert status == 1 and err[-1].endswith("holds no run of `clipcap fit`: choose another folder")
    status, _, err = run(capsys, "fit", data)
    assert status == 1 and "--out is missing" in err[-1]


def test_a_split_of_the_set_is_used_and_few_photos_are_refused(data, tmp_path):
    lines = (data / "captions.csv").read_text().splitlines()
    rows = [f"{line},{'split' if n == 0 else 'test' if n > 9 else 'train'}" for n, line in enumerate(lines)]
    (data / "captions.csv").write_text("\n".join(rows) + "\n")
    found = read_data(str(data), 42)
    assert (found.train_images, found.val_images, found.val, found.train_size) == (9, 3, "test", None)
    (data / "captions.csv").write_text("\n".join(lines[:6]) + "\n")
    with pytest.raises(Exception, match="5 photos with captions are too few: give at least 10"):
        read_data(str(data), 42)


def test_recipes_follow_the_number_of_captions_and_the_options_given():
    config = FitConfig(out="x")
    steps = [choose_recipe(count, config).steps for count in (250, 3000, 30_000)]
    assert steps == sorted(steps) and not any(too_short(choose_recipe(n, config), False) for n in (250, 3000, 30_000))
    few = choose_recipe(20, config)
    assert few.epochs == 100 and "too few" in too_short(few, False) and not too_short(few, True)
    warm = choose_recipe(3000, FitConfig(out="x", weights_dir="y"))
    assert warm.lr < choose_recipe(3000, config).lr and warm.steps < choose_recipe(3000, config).steps
    given = choose_recipe(3000, FitConfig(out="x", lr=1e-4, bs=10, epochs=7))
    assert given.flags[:6] == ["--epochs", "7", "--bs", "10", "--lr", "0.0001"] and given.steps == 2100


@pytest.mark.parametrize(("seconds", "words"), [(40, "40 seconds"), (700, "12 minutes"), (9000, "2.5 hours")])
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words
