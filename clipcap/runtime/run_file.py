"""The options of a command in a YAML file: written with every run, and taken by every command as `--config`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from clipcap.errors import ClipcapError
from clipcap.options import Options, read_options
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.text import one_line, printable

RUN_FILE = "run.yaml"
_NOT_STORED = ("resume",)  # how a command is run, and nothing of the run


def write_run_file(folder: Path, command: str, options: Mapping[str, Any]) -> None:
    """Write `run.yaml` into a folder: the options that have a value.

    Args:
        command: that takes them, such as `train`.
        options: by the names of their flags.
    """
    chosen = {name: value for name, value in options.items() if value is not None and name not in _NOT_STORED}
    text = f"# clipcap {command} --config {RUN_FILE}\n" + yaml.safe_dump(chosen, sort_keys=False, allow_unicode=True)
    with writing(folder / RUN_FILE):
        folder.mkdir(parents=True, exist_ok=True)
        with replaced_file(folder / RUN_FILE) as draft:
            draft.write_text(text, encoding="utf-8", errors="backslashreplace")


def read_run_file(path: str, config_class: type[Options]) -> dict[str, Any]:
    """The options in a YAML file, checked and converted as those of a command line.

    Raises:
        ClipcapError: it cannot be read, is not a mapping of options, or has an unknown option or a bad value.
    """
    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise ClipcapError(f"--config {printable(path)}: cannot be read ({one_line(error)[:200]})") from error
    if not isinstance(content, dict):
        raise ClipcapError(f"--config {printable(path)}: holds no options: write NAME: VALUE a line")
    return read_options(config_class, {str(name): value for name, value in content.items()}, f"--config {path}")
