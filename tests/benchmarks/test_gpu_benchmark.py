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
    assert "left out" not in table and "| stage " not in table.split("| --- ")[-1]
    for stage in (
        "all food, batch 8, here 4",
        "GPT-2 tuned: all food",
        "LoRA, image tokens",
        "beam, 2 images",
        "sample, 1 images",
        "encoder, 4 images",
        "from JPEGs",
        "`clipcap parse`, 32 photos",
        "`clipcap train --objective reward`",
        "`clipcap train-clip-gpt`",
        "`clipcap predict --features`",
    ):
        assert stage in table
