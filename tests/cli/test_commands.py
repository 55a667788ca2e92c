"""The table of commands: its help, its functions, and what the shell completes."""

from __future__ import annotations

import argparse
import inspect
import json
import re
import shutil
import subprocess
from importlib import import_module
from pathlib import Path

import pytest
from support.road import run

import clipcap
from clipcap.cli.commands import COMMANDS, Command
from clipcap.cli.completion import completion
from clipcap.cli.main import build_parser
from clipcap.options import GROUPS, flags_of

FLAGS = json.loads((Path(__file__).parent / "flags.json").read_text(encoding="utf-8"))


def rows(commands=COMMANDS, path=()):
    """Every row that runs something, by the words that lead to it."""
    for command in commands:
        here = (*path, command.name)
        if command.below:
            yield from rows(command.below, here)
        else:
            yield here, command


def parsers(parser=None, path=()):
    """Every parser, by the words that lead to it."""
    parser = parser or build_parser()
    yield path, parser
    for action in parser._actions:
        for name, below in action.choices.items() if isinstance(action, argparse._SubParsersAction) else ():
            yield from parsers(below, (*path, name))


ROWS = dict(rows())


@pytest.mark.parametrize("path", ROWS, ids=" ".join)
def test_the_function_of_a_row_takes_what_the_row_gives_it(path):
    command = ROWS[path]
    module, name = command.run.split(":")
    function = getattr(import_module(module), name)
    arguments = next(parser for words, parser in parsers() if words == path).get_default("arguments")
    config = {"config": None} if command.config else {}
    inspect.signature(function).bind(**config, **dict.fromkeys(arguments), **command.constants)


def test_commands_keep_the_flags_they_have():
    """What users and their scripts type: a name may be added, none may go."""
    now = {" ".join(path): sorted(parser._option_string_actions) for path, parser in parsers()}
    assert FLAGS.keys() <= now.keys()
    lost = {name: sorted(set(flags) - set(now[name])) for name, flags in FLAGS.items()}
    assert {name: flags for name, flags in lost.items() if flags} == {}


def test_every_option_is_listed_under_a_title_of_the_help():
    for command in ROWS.values():
        titles = {flag.group for flag in flags_of(config).values()} if (config := command.config_class()) else set()
        assert titles | {one.group for one in command.arguments} <= set(GROUPS), command.name


@pytest.mark.parametrize("path", [path for path, _ in parsers()], ids=lambda path: " ".join(path) or "clipcap")
def test_help_fits_80_columns(path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    status, lines, _ = run(capsys, *path, "--help")
    assert status == 0
    assert [line for line in lines if len(line) > 80] == []


def test_help_lists_the_commands_and_the_options_in_groups(capsys):
    text = "\n".join(run(capsys, "--help")[1])
    titles = list(dict.fromkeys(command.group for command in COMMANDS))
    assert {"make features", "train", "caption", "search", "evaluate", "other"} <= set(titles)
    assert re.findall(r"^([a-z ]+):$", text, re.MULTILINE) == ["options", *titles]
    text = "\n".join(run(capsys, "predict", "--help")[1])
    assert re.findall(r"^([a-z ]+):$", text, re.MULTILINE) == [
        "options", "data", "model", "decoding", "output", "machine",
    ]  # fmt: skip


def test_version(capsys):
    assert run(capsys, "--version")[:2] == (0, [f"clipcap {clipcap.__version__}"])


def test_what_a_command_cannot_do_without_is_named_before_anything_is_loaded(capsys):
    for words in (["parse", "food"], ["contrastive", "coco"]):
        assert run(capsys, *words)[2] == [
            "clipcap: error: --data_path is missing: the folder (or file) of the image-caption set"
        ]


def test_a_new_row_is_a_command():
    row = Command("sum", "adds numbers", "builtins:sum", group="other", constants={})
    parser = build_parser([*COMMANDS, row])
    assert parser.parse_args(["sum"]).row is row
    assert "sum                 adds numbers" in parser.format_help()


# --- completion ---------------------------------------------------------------------------------------------------


def completed(*words: str) -> list[str]:
    """What bash offers after these words, the last of which is being typed."""
    script = completion("bash") + f"\nCOMP_WORDS=({' '.join(repr(w) for w in words)})\nCOMP_CWORD={len(words) - 1}\n"
    done = subprocess.run(
        ["bash", "-c", script + '_clipcap; printf "%s\\n" "${COMPREPLY[@]}"'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.split()


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_completes_commands_flags_and_choices():
    assert completed("clipcap", "train-c") == ["train-clip-gpt"]
    assert completed("clipcap", "parse", "co") == ["coco", "conceptual"]
    assert completed("clipcap", "parse", "conceptual", "--down") == ["--download"]
    assert completed("clipcap", "train", "--data", "x.pkl", "--prefix_l") == [
        "--prefix_length",
        "--prefix_length_clip",
    ]
    assert completed("clipcap", "train", "--tune", "") == ["none", "lora", "full"]
    assert completed("clipcap", "train", "--data", "tr") == []  # bash goes on with the names of files


def _in_fish(flag):
    return f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_every_command_and_flag(shell, capsys):
    status, lines, _ = run(capsys, "completion", shell)
    text = "\n".join(lines)
    assert status == 0
    for path, parser in parsers():
        shown = [f for a in parser._actions for f in a.option_strings if a.help is not argparse.SUPPRESS]
        dashed = [_in_fish(flag) if shell == "fish" else flag for flag in shown]
        assert all(word in text for word in (*path, *(flag for flag in dashed if flag != "-h")))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_sound(shell):
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    subprocess.run([shell, "-n"], input=completion(shell), text=True, check=True)
