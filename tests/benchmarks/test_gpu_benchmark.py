"""The script for a GPU runs from end to end, at tiny sizes on a CPU."""

from __future__ import annotations

import os
import subprocess
import sys

from conftest import REPO


def test_the_script_for_a_gpu_measures_all_stages_into_one_table(tmp_path):
    words = ["bash", "benchmarks/speed/gpu.sh", str(tmp_path / "gpu.md"), "--tiny", "--device", "cpu"]
    env = {**os.environ, "PYTHON": sys.executable}
    done = subprocess.run(words, cwd=REPO, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    table = (tmp_path / "gpu.md").read_text(encoding="utf-8")
    assert "left out" not in table and "| stage 0" not in table
    for stage in (
        "from JPEGs",
        "encoder alone, 4 images",
        "frozen, batch 4",
        "tuned, batch 2",
        "beam 5, 2",
        "sampling, 1",
    ):
        assert stage in table
