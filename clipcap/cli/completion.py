"""`clipcap completion SHELL`: a script that completes commands, flags and choices, made from the parser.

The script holds all it needs, so that completing a word starts no Python.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from clipcap.cli.main import build_parser

BASH = """\
_clipcap() {{
    local word place="" last="${{COMP_WORDS[COMP_CWORD-1]}}" current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case "$place $word" in
            {commands}) place="$place $word" ;;
        esac
    done
    case "$place $last" in
{choices}
    esac
    if [[ -z "$words" ]]; then
        case "$place" in
{flags}
        esac
    fi
    # Flags only where one begins; where nothing is left, `-o default` completes the names of files.
    local hidden="-*"
    [[ "$current" == -* ]] && hidden=""
    COMPREPLY=($(compgen -W "$words" -X "$hidden" -- "$current"))
}}
complete -o default -F _clipcap clipcap
"""
ZSH = "#compdef clipcap\nautoload -U +X bashcompinit && bashcompinit\n"


def completion(shell: str) -> str:
    """The script for bash, zsh or fish."""
    parsers = dict(_parsers(build_parser(), ()))
    return {"bash": _bash, "zsh": lambda found: ZSH + _bash(found), "fish": _fish}[shell](parsers)


Words = tuple[str, ...]  # the words that lead to a parser: (), ("train",), ("parse", "food")


def _parsers(parser: argparse.ArgumentParser, path: Words) -> Iterator[tuple[Words, argparse.ArgumentParser]]:
    """A parser and all below it."""
    yield path, parser
    for name, below in _below(parser).items():
        yield from _parsers(below, (*path, name))


def _below(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    actions = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return {name: below for action in actions for name, below in action.choices.items()}


def _flags(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The flags that the help lists."""
    return (a for a in parser._actions if a.option_strings and a.help is not argparse.SUPPRESS)


def _words(parser: argparse.ArgumentParser) -> list[str]:
    """What may follow a command: the commands below it or the choices of its arguments, and its flags."""
    choices = [str(c) for a in parser._actions if not a.option_strings and a.choices for c in a.choices]
    return choices + [flag for action in _flags(parser) for flag in action.option_strings]


def _bash(parsers: dict[Words, argparse.ArgumentParser]) -> str:
    def place(path: Words) -> str:
        return "".join(f" {word}" for word in path)

    commands = "|".join(f'"{place(path)}"' for path in parsers if path)
    flags = [
        f'            "{place(path)}") words="{" ".join(_words(parser))}" ;;' for path, parser in parsers.items()
    ]
    choices = [
        f'        "{place(path)} {flag}") words="{" ".join(map(str, action.choices))}" ;;'
        for path, parser in parsers.items()
        for action in _flags(parser)
        if action.choices
        for flag in action.option_strings
    ]
    return BASH.format(commands=commands, flags="\n".join(flags), choices="\n".join(choices)).rstrip()


def _fish(parsers: dict[Words, argparse.ArgumentParser]) -> str:
    lines = []
    for path, parser in parsers.items():
        below = _below(parser)
        where = [f"__fish_seen_subcommand_from {word}" for word in path]
        where += [f"not __fish_seen_subcommand_from {' '.join(below)}"] if below else []
        condition = "; and ".join(where)
        head = f"complete -c clipcap -n '{condition}'"
        helps = {a.dest: a.help for action in parser._actions for a in getattr(action, "_choices_actions", ())}
        lines += [f"{head} -f -a {name} -d {_quoted(helps[name])}" for name in below]
        for action in _flags(parser):
            names = [
                f"-l {flag[2:]}" if flag.startswith("--") else f"-s {flag[1:]}" for flag in action.option_strings
            ]
            takes = f" -x -a {_quoted(' '.join(map(str, action.choices)))}" if action.choices else ""
            takes = takes or (" -r" if action.nargs != 0 else "")
            lines.append(f"{head} {' '.join(names)}{takes} -d {_quoted(action.help or '')}")
        lines += [
            f"{head} -f -a {_quoted(' '.join(map(str, action.choices)))}"
            for action in parser._actions
            if not action.option_strings and action.choices and not isinstance(action, argparse._SubParsersAction)
        ]
    return "\n".join(lines)


def _quoted(text: str) -> str:
    """A single-quoted word of fish; `%%` of argparse's help is a `%`."""
    return "'" + text.replace("%%", "%").replace("\\", "\\\\").replace("'", "\\'") + "'"
