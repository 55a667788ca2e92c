"""What the package reports goes to its logger: the command shows it on stderr, a program hears what it asks for."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from support.road import REPO, draw_photos, run, save_captioner
from support.small import feature_file

from clipcap.cli.console import messages_on_stderr
from clipcap.runtime.messages import logger

PROGRAM = """
import logging, sys
from clipcap.training.config import TrainConfig
from clipcap.training.train import train

data, lm, folder = sys.argv[1:]

def trained(name):
    for stream in sys.stdout, sys.stderr:
        print(f"=== {name}", file=stream, flush=True)
    train(TrainConfig.of(data=data, lm=lm, out_dir=f"{folder}/{name}", epochs=1, val=data, tune="none"))

trained("as it comes")
usual = logging.getLogger("clipcap").level
logging.getLogger("clipcap").setLevel(logging.ERROR)
trained("silenced")
logging.getLogger("clipcap").setLevel(usual)
logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(name)s %(levelname)s %(message)s")
trained("asked for")
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return feature_file(tmp_path_factory.mktemp("data") / "f.pkl")


@pytest.fixture(scope="module")
def program(data, lm_folder, tmp_path_factory) -> dict[str, tuple[str, str]]:
    """(stdout, stderr) of each training of a program that uses the package."""
    command = [sys.executable, "-c", PROGRAM, data, lm_folder, tmp_path_factory.mktemp("program")]
    done = subprocess.run(list(map(str, command)), cwd=REPO, check=True, capture_output=True, text=True)
    out, err = (
        dict(part.split("\n", 1) for part in stream.split("=== ")[1:]) for stream in (done.stdout, done.stderr)
    )
    return {name: (out[name], err[name]) for name in ("as it comes", "silenced", "asked for")}


def test_a_program_that_trains_prints_nothing_and_can_silence_warnings(program):
    warning = "validation will look better than it is"
    out, err = program["as it comes"]
    assert out == "" and warning in err and "train_loss" not in err
    out, err = program["silenced"]
    assert out == "" and warning not in err


def test_a_program_gets_progress_where_it_asks_for_it(program):
    lines = program["asked for"][0].splitlines()
    assert any(line.startswith("clipcap INFO training on 8 captions of 8 images") for line in lines)
    assert any(line.startswith("clipcap INFO epoch 0: train_loss") for line in lines)


def test_the_command_shows_messages_on_stderr_and_results_on_stdout(lm_folder, clip_file, tmp_path, capsys):
    folder, photos = save_captioner(tmp_path / "c", lm_folder, clip_file), draw_photos(tmp_path, 2)
    photos[0].write_bytes(b"no picture")
    status, out, err = run(
        capsys, "predict", "--load_pt", folder, "--img", *photos, "--device", "cpu", "--max_new_tokens", 4
    )
    assert status == 1 and len(out) == 1 and out[0].startswith(f"{photos[1]}\t")
    assert err[-2].startswith(f"warning: skipped {photos[0]}: not an image")
    assert err[-1] == "1 of 2 images captioned, 1 left out for the reasons above"
    assert any(str(folder) in line and not line.startswith("warning: ") for line in err[:-2])


def test_the_logger_is_a_programs_own_again_after_the_command(capsys):
    before = logger.level, logger.propagate, list(logger.handlers)
    with messages_on_stderr():
        logger.info("a note")
        logger.warning("a doubt")
        logger.debug("a detail")
    assert capsys.readouterr().err.splitlines() == ["a note", "warning: a doubt"]
    assert (logger.level, logger.propagate, logger.handlers) == before


def test_only_the_first_process_of_a_run_speaks(monkeypatch, caplog):
    caplog.set_level(logging.INFO, "clipcap")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        logger.info("from %s", rank)
    assert caplog.messages == ["from 0"]
