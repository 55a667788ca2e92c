"""Threads sleep while they wait, where the user says nothing else and torch is not there yet."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from support.road import REPO

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


def test_a_command_lets_the_threads_of_torch_sleep():
    assert environment_of_a_command() == str({"OMP_WAIT_POLICY": "PASSIVE", "GOMP_SPINCOUNT": "1000"})


@pytest.mark.parametrize(("name", "value"), [("OMP_WAIT_POLICY", "ACTIVE"), ("KMP_BLOCKTIME", "200")])
def test_what_the_user_says_of_waiting_is_left_alone(name, value):
    assert environment_of_a_command(**{name: value}) == str({name: value})


def test_a_program_that_has_imported_torch_keeps_its_environment():
    assert environment_of_a_command(before="import torch") == "{}"
