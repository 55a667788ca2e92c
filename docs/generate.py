"""Write the parts of the documents that come from the code: `python docs/generate.py`.

A generated part lies between `<!-- made: NAME -->` and `<!-- end -->`, in README.md or in a page of docs/. Flags come
from the argument parser, the floors from tests/test_structure.py, the file map from the first line of each docstring,
and the measurements from the README of each benchmark.
"""

from __future__ import annotations

import argparse
import ast
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from clipcap.cli.main import build_parser

REPO = Path(__file__).resolve().parents[1]
PAGES = (REPO / "README.md", *sorted((REPO / "docs").rglob("*.md")))
BENCHMARKS = sorted((REPO / "benchmarks").glob("*/*/README.md"))
MANY = 5  # flags that subcommands share, from which on they are listed once
_BLOCK = re.compile(r"(<!-- made: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
_DEFAULT = re.compile(r" \(default: ((?:[^()]|\([^()]*\))*)\)$")


def commands() -> str:
    """Every command with its arguments and flags, as `--help` shows them."""
    return "\n".join(part for parser in subparsers(build_parser()) for part in _command(parser))


def subparsers(parser: argparse.ArgumentParser) -> list[argparse.ArgumentParser]:
    """The parsers of the commands below this one."""
    below = [action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    return list(below[0].values()) if below else []


def _command(parser: argparse.ArgumentParser) -> Iterator[str]:
    below = subparsers(parser)
    yield f"## `{parser.prog}{_metavar(parser)}`\n\n{_sentence(parser.description)}\n"
    if not below:
        yield from _tables(parser, skip=set())
        return
    yield from (f"- `{sub.prog}`: {_sentence(sub.description)}" for sub in below)
    yield ""
    shared = set.intersection(*({_key(action) for action in _shown(sub)} for sub in below))
    if len(shared) < MANY:
        shared = set()
    first = below[0]
    if shared:
        yield from _tables(first, skip={_key(action) for action in _shown(first)} - shared)
    for sub in below:
        if any(_key(action) not in shared for action in _shown(sub)):
            yield f"### `{sub.prog}`\n"
            yield from _tables(sub, skip=shared)


def _metavar(parser: argparse.ArgumentParser) -> str:
    names = [a.metavar for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return f" {names[0]}" if names else ""


def _sentence(text: str | None) -> str:
    text = _escaped((text or "").strip())
    return text and text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _shown(parser: argparse.ArgumentParser) -> list[argparse.Action]:
    """The arguments and flags that the help of a parser lists."""
    hidden = (argparse._HelpAction, argparse._SubParsersAction)
    return [a for a in parser._actions if a.help != argparse.SUPPRESS and not isinstance(a, hidden)]


def _key(action: argparse.Action) -> tuple:
    return (*action.option_strings, action.dest, action.help)


def _tables(parser: argparse.ArgumentParser, skip: set[tuple]) -> Iterator[str]:
    """A table for each titled group of flags."""
    shown = [action for action in _shown(parser) if _key(action) not in skip]
    groups = [(group.title, [a for a in group._group_actions if a in shown]) for group in parser._action_groups]
    groups = [(title, actions) for title, actions in groups if actions]
    for title, actions in groups:
        if len(groups) > 1 and title not in ("positional arguments", "options"):
            yield f"**{title[0].upper() + title[1:]}**\n"
        yield from ("| argument | default | meaning |", "| --- | --- | --- |", *map(_row, actions), "")


def _row(action: argparse.Action) -> str:
    names = action.option_strings or [action.metavar or action.dest]
    meaning = " ".join((action.help or "").replace("%%", "%").split())
    default = _DEFAULT.search(meaning)
    meaning = _DEFAULT.sub("", meaning)
    if action.choices:
        meaning += f" ({', '.join(f'`{choice}`' for choice in action.choices)})"
    meaning = re.sub(r"(?<![\w`-])(--\w+)", r"`\1`", _escaped(meaning))
    return f"| {', '.join(f'`{name}`' for name in names)} | {_code(default[1]) if default else ''} | {meaning} |"


def _escaped(text: str) -> str:
    """A text of the help without what Markdown takes for a sign."""
    return re.sub(r"([|*])", r"\\\1", text).replace("<", "&lt;")


def _code(default: str) -> str:
    """A default as code, where it is a value and not a sentence."""
    return _escaped(default) if " " in default else f"`{default}`"


def floors() -> str:
    """The packages from the ground floor up, with the first sentence of their docstrings."""
    rows = sorted(((floor, name) for name, floor in _floors().items() if _home(name)))
    cells = [f"| {floor} | {_link(name)} | {_summary(_home(name))} |" for floor, name in rows]
    return "\n".join(["| floor | package | what it holds |", "| --- | --- | --- |", *cells]) + "\n"


def _floors() -> dict[str, int]:
    tree = ast.parse((REPO / "tests" / "test_structure.py").read_text(encoding="utf-8"))
    assigned = (node for node in tree.body if isinstance(node, ast.Assign))
    return next(ast.literal_eval(node.value) for node in assigned if node.targets[0].id == "FLOORS")


def _home(name: str) -> Path | None:
    """The file whose docstring says what a package or module holds."""
    paths = (REPO / "clipcap" / name / "__init__.py", REPO / "clipcap" / f"{name}.py")
    return next((path for path in paths if path.is_file()), None)


def _link(name: str) -> str:
    return f"`{name}/`" if _home(name).name == "__init__.py" else f"`{name}.py`"


def file_map() -> str:
    """A line for each module of the package: its name and the first line of its docstring."""
    lines = []
    for folder in [REPO / "clipcap", *sorted(path.parent for path in (REPO / "clipcap").rglob("*/__init__.py"))]:
        paths = [path for path in sorted(folder.glob("*.py")) if path.stem != "__init__"]
        width = max((len(path.name) for path in paths), default=0)
        lines += ["", f"{folder.relative_to(REPO)}/  {_summary(folder / '__init__.py')}".rstrip()]
        lines += [f"  {path.name:{width}}  {_summary(path)}".rstrip() for path in paths]
    return "\n".join(["```text", *lines[1:], "```"]) + "\n"


def _summary(path: Path) -> str:
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    return docstring.splitlines()[0] if docstring else ""


def measurements() -> str:
    """Of each benchmark: its question, the command that repeats it, and its tables with what they are headed by."""
    return "\n".join(_benchmark(path) for path in BENCHMARKS)


def _benchmark(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    title = re.match(r"# (.+)\n", text)[1]
    command = re.search(r"^```(?:console|bash)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)[1]
    lines = [line if line.startswith(("$ ", " ")) else f"$ {line}" for line in command.splitlines()]
    parts = re.split(r"\n\s*\n", text.split(command)[-1])
    parts = [part for part in parts if not part.startswith(("#", "```", "!"))]
    tables = []  # each with the paragraph before it, which says where it was measured
    for before, part in zip(["", *parts], parts):
        if part.startswith("|"):
            tables += [before, part] if before and not before.startswith("|") else [part]
    name = path.parent.relative_to(REPO)
    source = f"Setup and analysis: [{name}](../{name}/README.md)."
    return "\n\n".join([f"### {title}", source, "\n".join(["```console", *lines, "```"]), *tables]) + "\n"


MAKERS: dict[str, Callable[[], str]] = {
    "commands": commands,
    "floors": floors,
    "file_map": file_map,
    "measurements": measurements,
}


def renewed(text: str) -> str:
    """A document with every generated part written anew."""
    return _BLOCK.sub(lambda block: block[1] + MAKERS[block[2]]() + block[3], text)


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
