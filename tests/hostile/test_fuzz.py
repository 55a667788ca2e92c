"""A short run of every fuzz target over its corpus; the long ones are run by hand (fuzz/README.md)."""

from __future__ import annotations

import os
import resource
import subprocess
import sys

import pytest
from conftest import REPO

TARGETS = ("unpickle", "readers", "weights", "entries", "flax")


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_and_a_few_seconds_of_new_inputs_break_nothing(target, tmp_path):
    pytest.importorskip("atheris", reason="no atheris: pip install atheris (Linux on x86-64)")
    # A new process takes over the peak memory of the one that starts it, and the limit counts it.
    limit = 2048 + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    words = ["-max_total_time=5", "-timeout=60", "-max_len=8192", f"-rss_limit_mb={limit}"]
    words.append(f"-artifact_prefix={tmp_path}/")
    done = subprocess.run(
        [sys.executable, REPO / "fuzz" / f"{target}.py", tmp_path, REPO / "fuzz" / "corpus" / target, *words],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [str(REPO), *sys.path]))},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Done " in done.stderr
