"""A command in two processes that share the CPU: started by torchrun, or forked off this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from conftest import REPO

from tests.faults.forked import Ended, two_ranks

PATIENCE_S = 240  # other tests run beside these


def start_torchrun(*words: str) -> subprocess.Popen:
    """`train.py` with these words."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    return subprocess.Popen(
        [*command, *words],
        cwd=REPO,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def torchrun(*words: str) -> subprocess.CompletedProcess:
    """`train.py` with these words, to its end."""
    with start_torchrun(*words) as process:
        out, err = process.communicate(timeout=PATIENCE_S)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def forked_in_two(log: Path, *words: object) -> list[Ended]:
    """The command with these words, to its end: it costs what it computes, since nothing is imported again."""
    return [running.wait(PATIENCE_S) for running in two_ranks(words, log)]
