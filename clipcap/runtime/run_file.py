"""The options of a command in a YAML file: written with every run, and taken by every command as `--config`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml

from clipcap.errors import ClipcapError
from clipcap.options import Options, read_options
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.text import one_line, printable

RUN_FILE = "run.yaml"
_NOT_STORED = ("resume",)  # how a command is run, and nothing of the run


def write_run_file(folder: Path, command: str, options: Mapping[str, Any], name: str = RUN_FILE) -> None:
    """Write `run.yaml` into a folder: the options that have a value.

    Args:
        command: that takes them, such as `train`.
        options: by the names of their flags, and of the command's other arguments.
        name: of the file.
    """
    chosen = {
        option: value for option, value in options.items() if value not in (None, []) and option not in _NOT_STORED
    }
    text = f"# clipcap {command} --config {name}\n" + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    with writing(folder / name):
        folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(folder / name) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_run_file_beside(path: Path, command: str, options: Mapping[str, Any]) -> None:
    """Write `NAME.run.yaml` beside a run's only file, `NAME`; the arguments are those of `write_run_file`."""
    write_run_file(path.parent, command, options, f"{path.name}.{RUN_FILE}")


def read_run_file(
    path: str, config_class: type[Options], arguments: Mapping[str, bool] = MappingProxyType({}), command: str = ""
) -> dict[str, Any]:
    """The options in a YAML file, checked and converted as those of a command line.

    Args:
        path: of the file.
        config_class: of the options.
        arguments: the command's other arguments that take text, and whether they take several.
        command: that takes the options.
    Raises:
        ClipcapError: it cannot be read, is not a mapping of options, or has an unknown option or a bad value.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ClipcapError(f"--config {printable(path)}: cannot be read ({one_line(error)[:200]})") from error
    if not isinstance(content, dict):
        raise ClipcapError(f"--config {printable(path)}: holds no options: write NAME: VALUE a line")
    where = f"--config {path}"
    options = {str(name): value for name, value in content.items()}
    given = {
        name: _words(options.pop(name), several, f"{where}: {name}")
        for name, several in arguments.items()
        if name in options
    }
    try:
        return {**read_options(config_class, options, where), **given}
    except ClipcapError as error:
        written = re.match(r"# clipcap (\S+)", text)
        if written is None or not command or written[1] == command:
            raise
        raise ClipcapError(f"{error}: the file is of `clipcap {written[1]}`, not of `clipcap {command}`") from error


def _words(value: Any, several: bool, where: str) -> str | list[str]:
    """The value of an argument: a text, or a list of texts."""
    words = value if isinstance(value, list) else [value]
    if not words or not all(isinstance(word, str) for word in words) or (isinstance(value, list) and not several):
        raise ClipcapError(f"{where} is {value!r:.60}, not {'a list of texts' if several else 'a text'}")
    return words if several else words[0]
