"""Worker processes that decode: they leave with the command, and say nothing of it."""

from __future__ import annotations

import multiprocessing
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

REPO = Path(__file__).resolve().parents[2]

TENSORS = """
import glob, os, signal, socket, sys, tempfile
import torch
from torch.utils.data import Dataset
from clipcap.images.workers import decoders

class Tensors(Dataset):
    def __len__(self):
        return 20

    def __getitem__(self, index):
        if index == 10 and "a real fault" in sys.argv:
            sys.excepthook(ValueError, ValueError("a real fault"), None)
        return torch.full((1000,), index)
"""

# A main process that is interrupted while a worker hands a tensor over leaves the worker with half a handshake.
HALF_A_HANDSHAKE = """
shown = decoders(Tensors(), 1, torch.device("cpu"))
assert next(shown)[0] == 0
[listener] = glob.glob(os.path.join(tempfile.gettempdir(), "pymp-*", "listener-*"))
for _ in range(5):
    with socket.socket(socket.AF_UNIX) as half:
        half.connect(listener)
print([int(tensor[0]) for tensor in shown])
"""

# Python calls functions around a fork, in both processes, and ignores what they raise.
INTERRUPTED_FORK = """
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
    sum(range(100_000))

os.register_at_fork(after_in_parent=interrupt, after_in_child=interrupt)
try:
    decoders(Tensors(), 2, torch.device("cpu"))
except KeyboardInterrupt:
    print("interrupted", signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""


def run(program: str, *words: str) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:  # the path of a socket must be short
        return subprocess.run(
            [sys.executable, "-c", TENSORS + program, *words],
            cwd=REPO,
            env={"PATH": "", "TMPDIR": folder},
            capture_output=True,
            text=True,
        )


forked = pytest.mark.skipif(
    multiprocessing.get_start_method() != "fork", reason="processes start in another way here"
)


@forked
@pytest.mark.parametrize("fault", ["", "a real fault"])
def test_a_worker_that_is_left_while_it_hands_a_tensor_over_says_nothing(fault):
    done = run(HALF_A_HANDSHAKE, fault)
    assert done.stdout == f"{list(range(1, 20))}\n", done.stderr
    assert done.stderr == (f"ValueError: {fault}\n" if fault else "")


@forked
def test_an_interrupt_while_the_workers_start_comes_when_they_have():
    done = run(INTERRUPTED_FORK)
    assert done.stdout == "interrupted True\n" and done.stderr == ""
