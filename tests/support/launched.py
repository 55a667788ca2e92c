"""A training run in two processes."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import REPO


def torchrun(*words: str) -> subprocess.CompletedProcess:
    """`train.py` with these words, started in two processes that share a CPU."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "train.py"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    return subprocess.run([*command, *words], cwd=REPO, env=environment, capture_output=True, text=True, timeout=240)
