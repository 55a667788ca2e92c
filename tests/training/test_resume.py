"""A run that is stopped and resumed ends with the weights of an undisturbed one, bit for bit."""

from __future__ import annotations

import os
import re
import shutil
import signal
import time

import pytest
import torch
from conftest import CAPTIONS
from support.small import feature_file, flags, metrics, options, run, same, weights

from clipcap.errors import ClipcapError
from clipcap.training.caption_task import CaptionTask
from clipcap.training.feature_task import ENOUGH
from tests.faults.forked import Running


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return feature_file(tmp_path_factory.mktemp("data") / "features.pkl")


def settings(**changes):
    return {
        "epochs": 3,
        "bs": 2,
        "val": "0.25",
        "warmup_steps": 2,
        "prefix_length_clip": 4,
        "num_layers": 2,
        **changes,
    }


def stop_at(monkeypatch, epoch, step):
    """Interrupt the run, as Ctrl-C would, before this step."""
    windows = CaptionTask.windows

    def interrupted(self, at, skip):
        for number, window in enumerate(windows(self, at, skip), skip):
            if (at, number) == (epoch, step):
                raise KeyboardInterrupt
            yield window

    monkeypatch.setattr(CaptionTask, "windows", interrupted)


@pytest.mark.parametrize(
    ("epoch", "step", "every", "left"),
    [
        (0, 1, 0, r"no checkpoint was written yet, so nothing is kept \(--save_steps .*"),
        (0, 2, 1, r".*clipcap-last holds the run after 0 epochs and 2 steps: the same command with --resume .*"),
        (2, 0, 0, r".*clipcap-last holds the run after 2 epochs: the same command with --resume continues it"),
    ],
)
def test_an_interrupted_run_states_what_it_leaves(data, lm_folder, tmp_path, monkeypatch, epoch, step, every, left):
    stop_at(monkeypatch, epoch, step)
    with pytest.raises(KeyboardInterrupt, match=left):
        run(data, lm_folder, tmp_path / "out", **settings(save_steps=every))
    assert (tmp_path / "out" / "clipcap-last").exists() == ("holds" in left)


def test_a_run_that_goes_on_by_another_measure_makes_another_best(data, lm_folder, tmp_path, messages):
    captions = [f"{n} red plates" for n in range(ENOUGH)]
    chosen = settings(val=str(feature_file(tmp_path / "val.pkl", captions)), tune="none", val_captions=128)
    out = tmp_path / "out"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 2, 0)
        run(data, lm_folder, out, **chosen, select="loss")
    shutil.copytree(out, tmp_path / "same")
    run(data, lm_folder, out, **chosen, resume=True)
    assert "compared by another measure (--select)" in " ".join(messages())
    assert same(weights(out / "clipcap-best"), weights(out / "clipcap-last"))
    run(data, lm_folder, tmp_path / "same", **chosen, resume=True, select="loss")
    assert "another measure" not in " ".join(messages())


@pytest.mark.parametrize("tune", ["full", "lora", "none"])
@pytest.mark.parametrize(
    "epoch, step, save_steps", [(1, 0, 0), (1, 2, 1), (2, 1, 2)], ids=["epoch", "mid", "earlier"]
)
def test_resumed_run_equals_an_unbroken_one(data, lm_folder, tmp_path, tune, epoch, step, save_steps):
    if tune == "lora":
        pytest.importorskip("peft", reason="the lora extra is not installed")
    chosen = settings(tune=tune, mapping_type="mlp" if tune == "full" else "transformer")
    unbroken = run(data, lm_folder, tmp_path / "unbroken", **chosen)
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, epoch, step)
        run(data, lm_folder, tmp_path / "broken", **chosen, save_steps=save_steps)
    broken = run(data, lm_folder, tmp_path / "broken", **chosen, resume=True)
    for name in ("last", "best"):
        assert same(weights(unbroken / f"clipcap-{name}"), weights(broken / f"clipcap-{name}"))
    states = [(folder / "clipcap-last" / "training_state.pt").read_bytes() for folder in (unbroken, broken)]
    assert states[0] == states[1]
    assert metrics(broken) == metrics(unbroken)
    assert [line["epoch"] for line in metrics(broken)] == [0, 1, 2]


def test_so_does_one_whose_captions_share_prefixes(lm_folder, tmp_path):
    captions = [(c, c + " again", "it is " + c)[: 1 + i % 3] for i, c in enumerate(CAPTIONS)]
    data = feature_file(tmp_path / "several.pkl", captions)
    unbroken = run(data, lm_folder, tmp_path / "unbroken", **settings())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 1, 2)
        run(data, lm_folder, tmp_path / "broken", **settings(), save_steps=1)
    broken = run(data, lm_folder, tmp_path / "broken", **settings(), resume=True)
    assert same(weights(unbroken / "clipcap-last"), weights(broken / "clipcap-last"))
    assert metrics(broken) == metrics(unbroken)


def test_a_run_that_saved_nothing_starts_from_the_beginning(data, lm_folder, tmp_path, monkeypatch, messages):
    unbroken = run(data, lm_folder, tmp_path / "unbroken", **settings())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        stop_at(patch, 0, 1)
        run(data, lm_folder, tmp_path / "broken", **settings())
    broken = run(data, lm_folder, tmp_path / "broken", **settings(), resume=True)
    nothing = f"no run in {tmp_path / 'broken'} to go on with (no clipcap-last)"
    said = f"warning: --resume: {nothing}; starting from the beginning"
    assert said in messages()
    assert same(weights(unbroken / "clipcap-last"), weights(broken / "clipcap-last"))


@pytest.mark.parametrize("failing", range(1, 10))
def test_interrupted_in_any_checkpoint_write(data, lm_folder, tmp_path, monkeypatch, failing):
    """Three writes an epoch: `best`, numbered, `last`."""
    write, count = CaptionTask.write, 0

    def interrupted(self, folder, scores):
        nonlocal count
        count += 1
        write(self, folder, scores)
        if count == failing:
            raise KeyboardInterrupt

    unbroken = run(data, lm_folder, tmp_path / "unbroken", **settings())
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CaptionTask, "write", interrupted)
        run(data, lm_folder, tmp_path / "broken", **settings())
    assert not list((tmp_path / "broken").glob(".*draft"))
    broken = run(data, lm_folder, tmp_path / "broken", **settings(), resume=True)
    for path in unbroken.glob("clipcap-*"):
        assert same(weights(path), weights(broken / path.name))
    assert metrics(broken) == metrics(unbroken)


def test_a_finished_run_is_left_as_it_is(data, lm_folder, tmp_path):
    out = run(data, lm_folder, tmp_path, **settings())
    before = {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    run(data, lm_folder, tmp_path, **settings(), resume=True)
    assert {p: p.read_bytes() for p in out.rglob("*") if p.is_file()} == before


@pytest.fixture(scope="module")
def out(data, lm_folder, tmp_path_factory):
    """A finished run."""
    return run(data, lm_folder, tmp_path_factory.mktemp("run"), **settings(val=None))


class TestAnotherRunIsRefused:
    @pytest.mark.parametrize(
        "changes, said",
        [
            ({"epochs": 2}, "has epochs 3, this command 2: give the same data and options"),
            ({"bs": 4}, "has bs 2, this command 4"),
            ({"lr": 0.5}, "has lr 0.001, this command 0.5"),
            ({"seed": 1}, "has seed 42, this command 1"),
            ({"dropout": False}, "has dropout True, this command False"),
            ({"tune": "none"}, "has tune full, this command none"),
            ({"max_tokens": 5}, "label tokens"),
        ],
    )
    def test_by_its_options(self, data, lm_folder, out, changes, said):
        with pytest.raises(ClipcapError, match=f"--resume: the run in .* {said}"):
            run(data, lm_folder, out, **settings(val=None, **changes), resume=True)

    def test_by_more_epochs_and_the_way_to_go_on_is_said(self, data, lm_folder, out, tmp_path):
        said = r"this command 4: to train on, begin another from its weights: --weights_dir (.*) --out_dir NEW"
        with pytest.raises(ClipcapError, match=said) as error:
            run(data, lm_folder, out, **settings(val=None, epochs=4), resume=True)
        start = re.search(said, str(error.value))[1]
        more = run(data, lm_folder, tmp_path, **settings(val=None, epochs=1, lr=0.0), weights_dir=start)
        assert same(weights(more / "clipcap-last"), weights(out / "clipcap-last"))

    def test_by_the_number_of_captions(self, lm_folder, out, tmp_path):
        more = feature_file(tmp_path / "more.pkl", [*CAPTIONS, "a ninth caption"])
        with pytest.raises(ClipcapError, match="has captions 8, this command 9"):
            run(more, lm_folder, out, **settings(val=None), resume=True)

    def test_by_the_captions_themselves(self, lm_folder, out, tmp_path):
        other = feature_file(tmp_path / "other.pkl", CAPTIONS[::-1])
        with pytest.raises(ClipcapError, match=r"has checksum of the captions \d+, this command \d+"):
            run(other, lm_folder, out, **settings(val=None), resume=True)

    def test_but_files_may_have_moved(self, data, lm_folder, out, tmp_path):
        moved = feature_file(tmp_path / "moved.pkl")
        run(moved, lm_folder, out, **settings(val=None, keep=5, save_steps=1, patience=9), resume=True)

    def test_and_so_is_a_damaged_state(self, data, lm_folder, out, tmp_path):
        state = out / "clipcap-last" / "training_state.pt"
        state.write_bytes(state.read_bytes()[:1000])
        with pytest.raises(ClipcapError, match=r"training_state\.pt: cannot resume from it"):
            run(data, lm_folder, out, **settings(val=None), resume=True)


class TestTheBestCheckpointOfAnInterruptedRun:
    """Stopped after two of three epochs."""

    @pytest.fixture
    def stopped(self, data, lm_folder, tmp_path, monkeypatch):
        with monkeypatch.context() as patch:
            stop_at(patch, 2, 0)
            with pytest.raises(KeyboardInterrupt):
                run(data, lm_folder, tmp_path / "run", **settings())
        return tmp_path / "run"

    @pytest.mark.parametrize(
        "name, length",
        [("model.safetensors", 64), ("model.safetensors", 0), ("config.json", 8), ("tokenizer/tokenizer.json", 512)],
    )
    def test_must_not_be_damaged(self, data, lm_folder, stopped, name, length):
        os.truncate(stopped / "clipcap-best" / name, length)
        before = {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()}
        with pytest.raises(ClipcapError, match=r"best checkpoint of this run is lost .*: delete .*clipcap-best, and"):
            run(data, lm_folder, stopped, **settings(), resume=True)
        assert {p: p.read_bytes() for p in stopped.rglob("*") if p.is_file()} == before

    @pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
    def test_nor_may_one_of_an_epoch_be(self, data, lm_folder, stopped, name):
        os.truncate(stopped / "clipcap-000" / name, 8)
        with pytest.raises(
            ClipcapError, match=r"a checkpoint of this run is damaged .*: delete .*clipcap-000, and go"
        ):
            run(data, lm_folder, stopped, **settings(), resume=True)
        shutil.rmtree(stopped / "clipcap-000")
        run(data, lm_folder, stopped, **settings(), resume=True)
        assert not (stopped / "clipcap-000").exists() and (stopped / "clipcap-002").is_dir()

    @pytest.mark.parametrize("name", ["config.json", "tokenizer/tokenizer.json", "tokenizer/tokenizer_config.json"])
    def test_last_is_whole_again_though_no_epoch_is_left(self, data, lm_folder, tmp_path, messages, name):
        last = run(data, lm_folder, tmp_path, **settings()) / "clipcap-last"
        before = {path.relative_to(last): path.read_bytes() for path in last.rglob("*") if path.is_file()}
        os.truncate(last / name, 8)
        run(data, lm_folder, tmp_path, **settings(), resume=True)
        assert f"warning: {last / name}: missing or damaged: {last} is written again" in messages()
        assert {path.relative_to(last): path.read_bytes() for path in last.rglob("*") if path.is_file()} == before

    def test_is_made_anew_by_the_epochs_to_come_where_it_is_gone(self, data, lm_folder, stopped):
        shutil.rmtree(stopped / "clipcap-best")
        run(data, lm_folder, stopped, **settings(), resume=True)
        assert same(weights(stopped / "clipcap-best"), weights(stopped / "clipcap-last"))

    def test_is_said_to_be_lost_where_no_epoch_is_left(self, data, lm_folder, tmp_path):
        out = run(data, lm_folder, tmp_path, **settings())
        shutil.rmtree(out / "clipcap-best")
        with pytest.raises(ClipcapError, match=r"best checkpoint of this run is lost .*: use .*clipcap-last$"):
            run(data, lm_folder, out, **settings(), resume=True)


def kill_when(running: Running, reached, timeout_s: float = 120) -> None:
    """Stop the run in its tracks when `reached()`, and kill it if that still holds; else let it go on."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and running.alive:
        if reached():
            running.kill(signal.SIGSTOP)
            if reached():
                break
            running.kill(signal.SIGCONT)
        time.sleep(0.0005)
    running.kill()
    ended = running.wait()
    assert ended.killed, f"ended before it could be killed: {ended}"


def test_killed_training_processes_end_with_the_same_weights(data, lm_folder, tmp_path):
    chosen = settings(epochs=12, save_every=4)
    unbroken = run(data, lm_folder, tmp_path / "unbroken", **chosen)
    out = tmp_path / "broken"
    words = flags(options(data, lm_folder, out, **chosen, save_steps=1))

    def start(*more) -> Running:
        return Running(["train", *words, *more], tmp_path / "log")

    def epochs() -> int:
        log = out / "metrics.jsonl"
        return log.read_text().count("\n") if log.exists() else 0

    kill_when(start(), lambda: any(out.glob(".clipcap-last.*draft")) and (out / "clipcap-last").is_dir())
    assert any(out.glob(".clipcap-last.*draft"))  # killed inside a write that replaces a checkpoint
    kill_when(start("--resume"), lambda: epochs() >= 4)
    kill_when(start("--resume"), lambda: epochs() >= 7 and any(out.glob(".clipcap-best.*draft")))
    last = start("--resume").wait()
    assert last.status == 0, last
    for path in unbroken.glob("clipcap-*"):
        assert same(weights(path), weights(out / path.name))
    assert metrics(out) == metrics(unbroken)
    assert not list(out.glob(".*"))
    state = [torch.load(d / "clipcap-last" / "training_state.pt", weights_only=True) for d in (out, unbroken)]
    assert state[0]["progress"] == state[1]["progress"]
