"""The container of the page: what its files name is there, and the command in them is one of ours."""

from __future__ import annotations

import json
import re
import shlex

import pytest
import yaml
from support.road import REPO

from clipcap.app.config import AppConfig
from clipcap.cli.main import build_parser

STEPS = [
    line.split(maxsplit=1)
    for line in (REPO / "Dockerfile").read_text().replace("\\\n", " ").splitlines()
    if line and not line.startswith("#")
]
COMPOSE = yaml.safe_load((REPO / "compose.yaml").read_text())


def step(name):
    return [rest for word, rest in STEPS if word == name]


@pytest.mark.parametrize("copied", step("COPY"))
def test_what_is_copied_is_there_and_not_ignored(copied):
    ignored = (REPO / ".dockerignore").read_text().splitlines()
    for name in copied.split()[:-1]:
        assert (REPO / name).exists()
        assert name.strip("./") not in ignored


def test_the_entry_point_is_a_command_that_other_machines_reach():
    program, *words = json.loads(step("ENTRYPOINT")[0])
    args = build_parser().parse_args(words)
    assert program == "clipcap"
    assert (args.command, args.host, args.port) == ("app", "0.0.0.0", AppConfig().port)
    assert step("EXPOSE") == [str(AppConfig().port)]


def test_the_page_is_published_on_this_machine_alone_with_a_limit_of_memory():
    page = COMPOSE["services"]["page"]
    assert page["ports"] == [f"127.0.0.1:{AppConfig().port}:{AppConfig().port}"]
    limit = re.fullmatch(r"(\d+)g", page["mem_limit"])
    assert f"{limit[1]} GB of memory" in (REPO / "docs" / "guide" / "app.md").read_text()


def test_it_does_not_run_as_root_and_installs_the_extra_of_the_page():
    words = [word for run in step("RUN") for word in shlex.split(run)]
    assert step("USER") == ["clipcap"]
    assert ".[app]" in words
