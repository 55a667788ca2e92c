"""Commands that are disturbed end right or in one line, and run again give the undisturbed result: a short version.

The long one is `python -m tests.faults.run`.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import REPO

_PROGRAM = """
import sys
from pathlib import Path
from tests.faults import inject
from tests.faults.forked import warm_up
from tests.faults.outcome import Bench, table
from tests.faults.work import WORKS, prepare
warm_up()
root = Path(sys.argv[1])
stage, found = prepare(root / "stage", root / "log"), []
for name in sys.argv[2:]:
    bench = Bench(WORKS[name], stage, root / name)
    found += inject.random_kills(bench, 2)
    found += inject.kills_before_changes(bench, 3)
    found += inject.truncated_on_the_way(bench, 0.6, most=1)
    try:
        found += inject.full_disks(bench, 1)
        found += inject.read_only(bench)
    except PermissionError as error:
        print("skipped:", error)
print(table(found))
sys.exit(not all(injection.good for injection in found))
"""


@pytest.mark.parametrize("name", ["parse", "index"])
def test_a_disturbed_command_loses_nothing(name, tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM, tmp_path, name], cwd=REPO, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    assert " 0 lost, wrong or unclear" in done.stdout
