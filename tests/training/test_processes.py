"""Two real processes train as one does, and whoever expects two and gets one is told."""

from __future__ import annotations

import os
import re
import signal
import time
from pathlib import Path

import pytest
import torch
from conftest import CAPTIONS
from support.launched import PATIENCE_S, forked_in_two, start_torchrun, torchrun
from support.small import feature_file, flags, metrics, options, run, same, weights

from clipcap.errors import ClipcapError
from tests.faults.forked import Ended

NINE = [*CAPTIONS, "a ninth caption of a plate"]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Nine captions: of a last batch of one, the second process has no share."""
    return feature_file(tmp_path_factory.mktemp("data") / "features.pkl", NINE)


def in_two(chosen, folder) -> list[Ended]:
    """Training with these options in two processes."""
    return forked_in_two(folder / "log", "train", *flags(chosen))


def test_two_processes_with_half_the_batch_train_as_one(data, lm_folder, tmp_path):
    val = feature_file(tmp_path / "val.pkl", NINE[:5], seed=1)
    chosen = {"val": str(val), "epochs": 3, "dropout": False, "grad_clip": 1.0, "val_captions": 5}
    one = run(data, lm_folder, tmp_path / "one", bs=4, **chosen)
    done = torchrun(*flags(options(data, lm_folder, tmp_path / "two", bs=2, **chosen)))
    assert done.returncode == 0, done.stderr
    assert "2 processes on cpu" in done.stderr
    assert done.stderr.count("epoch 0:") == 1
    assert "Warning" not in done.stderr
    for line, other in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert line == pytest.approx(other, abs=1e-5)
    ours, theirs = weights(tmp_path / "two" / "clipcap-last"), weights(one / "clipcap-last")
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    with pytest.raises(ClipcapError, match="has processes 2, this command 1: start 2 again"):
        run(data, lm_folder, tmp_path / "two", bs=4, **chosen, resume=True)


def test_two_processes_share_out_captions_that_share_prefixes(lm_folder, tmp_path):
    captions = [(c, c + " again", "it is " + c)[: 1 + i % 3] for i, c in enumerate(NINE)]
    data = feature_file(tmp_path / "several", captions)  # a folder: one writes its tokens, the other waits
    chosen = {"val": "0.3", "epochs": 2, "dropout": False}
    one = run(data, lm_folder, tmp_path / "one", bs=6, **chosen)
    both = in_two(options(data, lm_folder, tmp_path / "two", bs=3, **chosen), tmp_path)
    assert [rank.status for rank in both] == [0, 0], both
    assert "captions of an image share its prefix" in both[0].err
    for line, other in zip(metrics(one), metrics(tmp_path / "two"), strict=True):
        assert line == pytest.approx(other, abs=1e-5)
    ours, theirs = weights(tmp_path / "two" / "clipcap-last"), weights(one / "clipcap-last")
    torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)
    assert len(list((data / "cache").glob("*.arrays"))) == 2


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the processes of a run are found in /proc")
def test_a_run_of_which_one_process_was_killed_ends_with_the_same_weights(lm_folder, data, tmp_path):
    chosen = {"epochs": 12, "save_steps": 1, "save_every": 12, "bs": 1}
    unbroken = in_two(options(data, lm_folder, tmp_path / "unbroken", **chosen), tmp_path)
    assert [rank.status for rank in unbroken] == [0, 0], unbroken
    broken, log = options(data, lm_folder, tmp_path / "broken", **chosen), tmp_path / "broken" / "metrics.jsonl"
    with start_torchrun(*flags(broken)) as process:
        deadline = time.monotonic() + PATIENCE_S
        while time.monotonic() < deadline and not (log.is_file() and log.read_text().count("\n") > 2):
            time.sleep(0.005)
        os.kill(max(children(process.pid)), signal.SIGKILL)
        process.communicate(timeout=PATIENCE_S)
    assert process.returncode != 0
    assert 2 < log.read_text().count("\n") < 12
    resumed = in_two({**broken, "resume": True}, tmp_path)
    assert [rank.status for rank in resumed] == [0, 0], resumed
    assert "resumed from" in resumed[0].err
    ours, theirs = (weights(tmp_path / name / "clipcap-last") for name in ("broken", "unbroken"))
    assert same(ours, theirs)
    assert metrics(tmp_path / "broken") == metrics(tmp_path / "unbroken")


def children(pid: int) -> list[int]:
    """The processes that this one has started."""
    stats = (path.read_text() for path in Path("/proc").glob("[0-9]*/stat") if path.exists())
    fields = [(int(stat.split()[0]), stat.rpartition(")")[2].split()) for stat in stats]
    return [child for child, (_, parent, *_) in fields if int(parent) == pid]


def test_an_image_of_the_second_process_is_named_by_all(lm_folder, tmp_path):
    data = feature_file(tmp_path / "f.pkl", NINE, nan_rows=[4])
    for rank in in_two(options(data, lm_folder, tmp_path / "out", bs=5, epochs=1), tmp_path):
        assert rank.one_line and "photo4 (its features are not finite)" in rank.one_line, rank


def test_the_images_of_all_processes_are_named_where_a_run_diverges(lm_folder, data, tmp_path):
    said = re.compile(r"step 1: a batch with images photo\d, photo\d; the run has diverged")
    for rank in in_two(options(data, lm_folder, tmp_path / "out", bs=1, lr=1e30), tmp_path):
        assert rank.one_line and said.search(rank.one_line), rank
