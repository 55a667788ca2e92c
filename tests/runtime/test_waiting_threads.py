"""Threads sleep while they wait on a busy machine, unless the user decides, or torch is imported already."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.road import REPO

from clipcap.runtime.waiting_threads import SLEEPING

BUSY = "os.getloadavg = lambda: (2.0, 0, 0)"
POLICY = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME", "KMP_LIBRARY")
COMMAND = """
import os
{before}
from clipcap.cli.main import main
main(["doctor"])
print({{name: os.environ[name] for name in {names} if name in os.environ}})
"""


def environment_of_a_command(before: str = "", **given: str) -> str:
    """The variables of waiting after a command has run in a new process."""
    env = {name: value for name, value in os.environ.items() if name not in POLICY} | given
    code = COMMAND.format(before=before, names=POLICY)
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=REPO, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("load", "found"), [(2.0, SLEEPING), (0.1, {})], ids=["busy", "idle"])
def test_a_command_lets_the_threads_of_torch_sleep_on_a_busy_machine(load, found):
    assert environment_of_a_command(f"os.getloadavg = lambda: ({load}, 0, 0)") == str(found)


def test_a_system_that_counts_no_load_is_idle():
    assert environment_of_a_command("del os.getloadavg") == "{}"


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("KMP_BLOCKTIME", "200")])
def test_what_the_user_says_of_waiting_is_left_alone(name, value):
    assert environment_of_a_command(BUSY, **{name: value}) == str({name: value})


def test_a_program_that_has_imported_torch_keeps_its_environment():
    assert environment_of_a_command(f"{BUSY}; import torch") == "{}"
