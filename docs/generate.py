"""Renews the parts of the README that are made from the code: `python docs/generate.py`.

Option tables come from the configs, the file map from the first line of each module's docstring. They stand between
`<!-- made: NAME -->` and `<!-- end -->`.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import MISSING, Field
from pathlib import Path
from typing import Literal, get_args, get_origin

from clipcap.app.config import AppConfig
from clipcap.captioning.config import PredictConfig
from clipcap.clip_gpt.config import TrainClipGptConfig
from clipcap.evaluation.config import CompareConfig, EvaluateConfig
from clipcap.features.config import ParseConfig
from clipcap.options import Options, flags_of
from clipcap.training.config import TrainConfig

REPO = Path(__file__).resolve().parents[1]
README = REPO / "README.md"
_BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def markdown_table(config_class: type[Options]) -> str:
    """The flags of a config as a Markdown table."""
    rows = [_row(flag.field, _choices(flag.hint)) for flag in flags_of(config_class).values()]
    return "\n".join(["| flag | default | meaning |", "| --- | --- | --- |", *rows]) + "\n"


def _row(field: Field, choices: tuple[str, ...]) -> str:
    names = [field.name, *field.metadata["aliases"]]
    default = field.default if field.default is not MISSING else field.default_factory()
    if default is True:
        names.append(f"no_{field.name}")
    shown = "on" if default is True else "" if default is False or default in (None, "") else f"`{default}`"
    meaning = re.sub(r"([|*])", r"\\\1", field.metadata["help"])
    if choices:
        meaning += f" ({', '.join(f'`{choice}`' for choice in choices)})"
    return f"| {', '.join(f'`--{name}`' for name in names)} | {shown} | {meaning} |"


def _choices(hint: object) -> tuple[str, ...]:
    """The words that a `Literal` or `Literal | None` takes."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return next((get_args(part) for part in get_args(hint) if get_origin(part) is Literal), ())


def file_map() -> str:
    """A line per module of the package: its name and the first line of its docstring."""
    lines = []
    folders = [REPO / "clipcap", *sorted(path.parent for path in (REPO / "clipcap").rglob("*/__init__.py"))]
    for folder in (str(path.relative_to(REPO)) for path in folders):
        paths = [path for path in sorted((REPO / folder).glob("*.py")) if path.stem != "__init__"]
        width = max((len(path.name) for path in paths), default=0)
        lines += ["", f"{folder}/{_summary(REPO / folder / '__init__.py')}"]
        lines += [f"  {path.name:{width}}{_summary(path)}" for path in paths]
    return "\n".join(["```text", *lines[1:], "```"]) + "\n"


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return f"  {docstring.splitlines()[0]}" if docstring else ""


MAKERS: dict[str, Callable[[], str]] = {
    "parse_options": lambda: markdown_table(ParseConfig),
    "train_options": lambda: markdown_table(TrainConfig),
    "predict_options": lambda: markdown_table(PredictConfig),
    "clip_gpt_options": lambda: markdown_table(TrainClipGptConfig),
    "evaluate_options": lambda: markdown_table(EvaluateConfig),
    "compare_options": lambda: markdown_table(CompareConfig),
    "app_options": lambda: markdown_table(AppConfig),
    "file_map": file_map,
}


def renewed(text: str) -> str:
    """The README with every made part made anew."""
    return _BLOCK.sub(lambda block: block[1] + MAKERS[block[2]]() + block[3], text)


if __name__ == "__main__":
    README.write_text(renewed(README.read_text(encoding="utf-8")), encoding="utf-8")
