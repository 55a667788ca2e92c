"""From photos and captions to an evaluated captioner in one command: plan, steps, interruption, refusals."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import shlex
import shutil
import struct
import subprocess
import sys
import termios

import pytest
from support.road import draw_photos, run

from clipcap.fit.config import FitConfig
from clipcap.fit.fit import duration, read_data
from clipcap.fit.recipe import make_plan
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
    assert "2 epochs of 2 steps of 4 captions, 4 steps in all" in text and "at most 4 steps of " in text
    assert "--tune full: a language model of " in text and "learning rates 0.002 for the mapper, 0.001 for " in text
    assert any(line.startswith("disk: ") and "of features, about" in line for line in err)
    assert "warning: 4 steps from scratch are too few: the captions will be noise." in text
    commands = [line.split()[2] for line in err if line.startswith("$ clipcap ")]
    assert commands == ["parse", "train", "evaluate"]
    metrics = json.loads((tmp_path / "run" / "evaluation" / "metrics.json").read_text())
    assert len(metrics["per_image"]) == 5 and (tmp_path / "run" / "evaluation" / "report.html").is_file()
    words = ("--load_pt", tmp_path / "run" / "checkpoints", "--img", data, "--max_new_tokens", 5)
    assert len(run(capsys, "predict", *words)[1]) == 12


@pytest.mark.parametrize("tune", ["full", "lora", "none"])
def test_several_captions_of_a_photo_lead_on_to_their_scores(fit, capsys, data, tmp_path, tune):
    header, rows = (data / "captions.csv").read_text().split("\n", 1)
    (data / "captions.csv").write_text(
        "\n".join([header, *(rows.replace("with", word) for word in ("with", "a", "b"))])
    )
    lines = [line for line in fit("--tune", tune)[2] if line.startswith("photos have several captions: ")]
    if tune == "none":  # scores have not been tried on a mapper alone
        assert not lines
        return
    [line] = lines
    words = shlex.split(line.split(": clipcap ")[1])
    assert run(capsys, *words)[0] == 0
    assert (tmp_path / "run" / "by_scores" / "clipcap-best").is_dir()


def test_the_commands_it_shows_do_the_same_alone(fit, capsys, tmp_path, monkeypatch):

    shown = [shlex.split(line[2:])[1:] for line in fit()[2] if line.startswith("$ clipcap ")]
    weights = (tmp_path / "run" / "checkpoints" / "clipcap-best" / "model.safetensors").read_bytes()
    shutil.rmtree(tmp_path / "run")
    for words in shown:
        assert run(capsys, *words)[0] == 0
    assert (tmp_path / "run" / "checkpoints" / "clipcap-best" / "model.safetensors").read_bytes() == weights


@pytest.mark.parametrize("stop", ["parse", "probe", "first step", "log", "best", "second epoch", "evaluate"])
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


DAMAGED = {
    "data/photos_train.pkl": ["parse", "train", "evaluate"],
    "checkpoints/clipcap-last/tokenizer/tokenizer.json": ["train", "evaluate"],
    "checkpoints/metrics.jsonl": ["train", "evaluate"],
    "evaluation/report.html": ["evaluate"],
    "evaluation/scores.npz": ["evaluate"],
}


def test_a_rerun_does_the_steps_again_whose_files_are_cut_and_those_after_them(fit, tmp_path):
    assert fit()[0] == 0
    for name, steps in DAMAGED.items():
        path = tmp_path / "run" / name
        whole = path.read_bytes()
        os.truncate(path, len(whole) // 2)
        status, _, err = fit()
        assert status == 0 and any(f"{path}: cut, changed or gone since the {steps[0]} step" in line for line in err)
        assert [line.split()[2] for line in err if line.startswith("$ clipcap ")] == steps
        assert path.read_bytes() == whole or name.endswith(("report.html", "scores.npz"))
        assert path.stat().st_size > len(whole) // 2
    assert not any(line.startswith("$ clipcap ") for line in fit()[2])


def test_a_best_checkpoint_that_was_changed_is_refused_until_it_is_deleted(fit, tmp_path):
    assert fit()[0] == 0
    best = tmp_path / "run" / "checkpoints" / "clipcap-best" / "model.safetensors"
    whole = best.read_bytes()
    best.write_bytes(whole[:-4] + bytes(4))  # still a sound file
    for _ in range(2):
        status, _, err = fit()
        assert status == 1 and f"{best}: changed since the train step wrote it" in err[-1]
        assert err[-1].endswith(f"to do it anew, delete {tmp_path / 'run' / 'checkpoints'}")
    os.truncate(best, 100)
    status, _, err = fit()
    assert (
        status == 1 and "the best checkpoint of this run is lost" in err[-1] and "to do it anew, delete " in err[-1]
    )
    shutil.rmtree(tmp_path / "run" / "checkpoints")
    assert fit()[0] == 0 and best.read_bytes() == whole


def test_a_run_of_an_earlier_version_and_an_edited_card_are_left_as_they_are(fit, tmp_path):
    assert fit()[0] == 0
    card = tmp_path / "run" / "checkpoints" / "clipcap-best" / "README.md"
    card.write_text("of our canteen\n")
    assert not any(line.startswith("$ clipcap ") for line in fit()[2])
    for step in ("parse", "train", "evaluate"):
        (tmp_path / "run" / f".{step}_done").write_bytes(b"")  # without a record
    status, _, err = fit()
    assert status == 0 and not any(line.startswith("$ clipcap ") for line in err)
    (tmp_path / "run" / ".evaluate_done").write_text("{cut")
    assert [line.split()[2] for line in fit()[2] if line.startswith("$ clipcap ")] == ["evaluate"]
    assert card.read_text() == "of our canteen\n"


def interrupt_at(patched, stop):
    def interrupt(*args, **options):
        raise KeyboardInterrupt

    if stop in ("parse", "evaluate"):
        module = {"parse": "clipcap.features.parse.encode_missing", "evaluate": "clipcap.evaluation.evaluate.score"}
        patched.setattr(module[stop], interrupt)
        return
    windows, calls, write = CaptionTask.windows, [], CaptionTask.write

    def writing(self, folder, metrics):
        name = {"log": ".clipcap-best", "best": ".clipcap-last"}[stop]
        if folder.parent.name == "checkpoints" and folder.name.startswith(name):
            raise KeyboardInterrupt  # after the first epoch, before there is a `last`
        write(self, folder, metrics)

    if stop in ("log", "best"):
        patched.setattr(CaptionTask, "write", writing)
        return

    def stopping(self, epoch, skip):
        calls.append(epoch)
        if len(calls) == {"probe": 1, "first step": 3, "second epoch": 4}[stop]:
            raise KeyboardInterrupt
        yield from windows(self, epoch, skip)

    patched.setattr(CaptionTask, "windows", stopping)


def test_a_dry_run_plans_encodes_a_few_photos_and_trains_nothing(fit, tmp_path):
    status, out, err = fit("--dry_run")
    assert (status, out) == (0, []) and any(line.startswith("at most 4 steps of ") for line in err)
    assert not list((tmp_path / "run").iterdir())
    assert fit()[0] == 0


def test_time_and_disk_are_stated_before_any_step(fit):
    _, out, err = fit()
    first = next(number for number, line in enumerate(err) if line.startswith("$ clipcap parse"))
    announced = [line for line in err[:first] if line.startswith(("at most ", "disk: "))]
    assert len(announced) == 2 and "to encode the 12 photos" in announced[0] and "to train" in announced[0]
    assert sum(line.startswith("checkpoint: ") for line in out) == 1  # that of the try is not shown


def test_the_file_that_a_run_writes_repeats_it(fit, capsys, data, tmp_path):
    assert fit()[0] == 0
    file = tmp_path / "run" / "run.yaml"
    assert file.read_text(encoding="utf-8").startswith("# clipcap fit --config run.yaml\ndata: ")
    assert run(capsys, "fit", "--config", file, "--out", tmp_path / "again")[0] == 0
    best = [tmp_path / name / "checkpoints" / "clipcap-best" / "model.safetensors" for name in ("run", "again")]
    assert best[0].read_bytes() == best[1].read_bytes()


def test_a_terminal_shows_one_bar_of_the_whole_run(fit, data, clip_file, lm_folder, tmp_path):
    words = ("--clip_model_type", clip_file, "--lm", lm_folder, "--no_java", "--epochs", 2, "--bs", 4)
    command = [sys.executable, "-m", "clipcap", "fit", data, "--out", tmp_path / "run", *words]
    shown = on_a_terminal([str(word) for word in command])
    bars = [state for state in re.split(r"[\r\n]", shown) if re.search(r"\d+%\|", state)]
    assert all(re.fullmatch(r"(\w+: )? *\d+%\|.*\| [\d:]+, [\d:?]+ left", bar) for bar in bars)
    parts = [bar.split(":")[0] for bar in bars if re.match(r"\w+: ", bar)]
    assert list(dict.fromkeys(parts)) == ["encoding", "training", "captioning", "scoring"]
    shares = [int(re.search(r"(\d+)%", bar)[1]) for bar in bars]
    assert shares == sorted(shares)


def on_a_terminal(command):
    """What a program writes on a terminal of its own."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("4H", 40, 100, 0, 0))  # rows, columns
    with subprocess.Popen(command, stdout=its, stderr=its, stdin=its, close_fds=True) as program:
        os.close(its)
        written = b""
        with contextlib.suppress(OSError):  # the end, on Linux
            while part := os.read(ours, 65536):
                written += part
    os.close(ours)
    assert program.returncode == 0, written[-2000:]
    return written.decode("utf-8", "replace")


def test_other_options_and_other_folders_are_refused(fit, capsys, data, tmp_path):
    assert fit("--dry_run")[0] == fit("--lr", 1, "--dry_run")[0] == 0  # nothing was begun
    assert run(capsys, "fit", data, "--out", tmp_path / "run", "--clip_model_type", "nobody", "--lm", "none")[0] == 1
    assert fit()[0] == 0
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


LARGE, SMALL = 124_000_000, 900_000  # parameters of language models


def test_plans_follow_the_number_of_captions_and_the_options_given():
    def plan(captions, lm_size=LARGE, **options):
        return make_plan(captions, lm_size, FitConfig(out="x", **options))

    steps = [plan(count).length.steps for count in (250, 3000, 30_000)]
    assert steps == sorted(steps) and not any(plan(n).too_short() for n in (250, 3000, 30_000))
    few = plan(20)
    assert few.length.epochs == 100 and "too few" in few.too_short()
    warm = plan(3000, weights_dir="y")
    assert not plan(20, weights_dir="y").too_short()
    assert warm.rates.mapper < plan(3000).rates.mapper and warm.length.steps < plan(3000).length.steps
    assert plan(3000, lr=1e-4, bs=10, epochs=7).flags == [
        "--tune", "none", "--epochs", "7", "--bs", "10", "--lr", "0.0001", "--patience", "8",
    ]  # fmt: skip


def test_what_is_tuned_follows_the_language_model_and_the_number_of_captions(monkeypatch):
    def tune(captions, lm_size=LARGE, **options):
        return make_plan(captions, lm_size, FitConfig(out="x", **options)).start.tune

    assert [tune(count) for count in (250, 4999, 5000)] == ["none", "none", "lora"]
    assert tune(250, SMALL) == "full" and tune(10_000, weights_dir="y") == "none"
    assert tune(250, tune="lora") == "lora" and tune(10_000, SMALL, tune="none") == "none"
    monkeypatch.setattr("clipcap.fit.recipe.find_spec", lambda name: None)  # peft is not installed
    assert tune(10_000) == "none"


def test_every_choice_has_a_reason_that_names_the_flag_which_overrides_it():
    reasons = list(make_plan(10_000, LARGE, FitConfig(out="x")).reasons())
    for flag, reason in zip(("--tune", "--lr", "--patience"), reasons, strict=True):
        assert flag in reason and ":" in reason


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(1.2, "1 second"), (40, "40 seconds"), (150, "2.5 minutes"), (700, "12 minutes"), (9000, "2.5 hours")],
)
def test_durations_are_in_words(seconds, words):
    assert duration(seconds) == words
