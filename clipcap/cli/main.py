"""The `clipcap` command: builds parsers from the table of commands, and runs the chosen command.

The module of a command is imported when the command runs, so that `--help` and errors in the flags appear at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import logging
import os
import sys
from collections.abc import Collection, Iterable, Sequence
from importlib import import_module
from typing import Any

import clipcap
from clipcap.cli.commands import COMMANDS, Command
from clipcap.cli.console import messages_on_stderr
from clipcap.errors import ClipcapError
from clipcap.options import FlagParser, HelpGroups, Options, add_flags, flags_of, from_flags
from clipcap.runtime import processes
from clipcap.runtime.heavy_imports import heavy_imports
from clipcap.runtime.messages import logger
from clipcap.runtime.streams import ensure_streams, report_shrunk_files
from clipcap.runtime.text import printable
from clipcap.runtime.waiting_threads import let_threads_sleep

COLUMN = 20  # column at which `clipcap --help` describes a command


LONGEST_ERROR = 1200  # characters; a message may quote content of a file


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one line on stderr and status 1 (2: flags), an interrupt in status 130."""
    ensure_streams()
    report_shrunk_files()
    for stream in (
        sys.stdout,
        sys.stderr,
    ):  # file names and captions may not fit the terminal's encoding
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        with messages_on_stderr():
            status = run(argv)
        sys.stdout.flush()
        return status
    except ClipcapError as error:
        return _failed(str(error))
    except KeyboardInterrupt as interrupt:  # its text states what the command leaves on disk
        left = f"; {printable(str(interrupt))}" if str(interrupt) else ""
        print(f"clipcap: interrupted{left}", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of the pipe (head) has closed it
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own last flush
            return 0
        where = f" {error.filename}:" if error.filename else ""
        return _failed(f"{where} {error.strerror or error}")
    except ValueError as error:
        if "embedded null" not in str(error):
            raise
        return _failed("a name of a file holds a NUL character, which no file has: check the options and lists")
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            return _failed("the GPU's memory is full: lower --batch_size, or use --device cpu")
        if processes.lost(error):
            return _failed(processes.LOST)
        raise
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # of tokenizers and safetensors, which are written in Rust
            raise
        return _failed(f"a library gave up on a damaged or hostile file ({error}): fetch its files again")
    finally:
        processes.leave()


def _failed(message: str) -> int:
    line = printable(" ".join(message.split()))
    if len(line) > LONGEST_ERROR:
        line = f"{line[: LONGEST_ERROR // 2]} … {line[-LONGEST_ERROR // 4 :]}"
    print(f"clipcap: error: {line}", file=sys.stderr)
    return 1


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command that `argv` names (default: the command line's); returns its exit status."""
    words = sys.argv[1:] if argv is None else argv
    args = build_parser(named=words).parse_args(words)
    command: Command = args.row
    if getattr(args, "quiet", False):
        logger.setLevel(logging.WARNING)
    config_class = command.config_class()
    if config_class is not None and getattr(args, "run_file", None):
        _add_options(args, command, config_class)
    for name, meaning in command.required.items():
        if not getattr(args, name, None):
            raise ClipcapError(f"--{name} is missing: {meaning}")
    result = _function(command, args)
    if command.prints and os.environ.get("RANK", "0") == "0":  # one line, however many processes
        print(command.prints.format(result))
    return int(command.failed(result))


def _add_options(args: argparse.Namespace, command: Command, config_class: type[Options]) -> None:
    """Add the options and arguments of --config; those of the command line override them."""
    from clipcap.runtime.run_file import read_run_file

    arguments = dict(zip(args.arguments, command.arguments, strict=True))
    texts = {name: one.several for name, one in arguments.items() if one.takes_text}
    for name, value in read_run_file(args.run_file, config_class, texts, args.command).items():
        if not hasattr(args, name):
            setattr(args, name, value)
    for name, one in arguments.items():
        if hasattr(args, name):
            continue
        if one.required:
            metavar = one.settings.get("metavar", name)
            raise ClipcapError(f"{metavar} is missing, on the command line and in --config {args.run_file}")
        setattr(args, name, one.settings.get("default"))


def _function(command: Command, args: argparse.Namespace) -> Any:
    """Call the function of a command with its config and arguments."""
    config_class = command.config_class()
    config = {} if config_class is None else {"config": from_flags(config_class, args)}
    arguments = {name: getattr(args, name) for name in args.arguments}
    module, name = command.run.split(":")
    let_threads_sleep()
    with heavy_imports(command=True):
        function = getattr(import_module(module), name)
    return function(**config, **arguments, **command.constants)


def build_parser(commands: Iterable[Command] = COMMANDS, named: Collection[str] | None = None) -> FlagParser:
    """All commands; with their flags, but for those that are not among the `named` (to start sooner)."""
    parser = FlagParser(
        prog="clipcap", usage="clipcap COMMAND [OPTIONS]", epilog=_listed(commands),
        description="Caption images: parse, train, predict (ClipCap).",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("--version", "-V", action="version", version=f"clipcap {clipcap.__version__}")
    below = parser.add_subparsers(
        required=True, metavar="COMMAND", dest="command", prog="clipcap", help=argparse.SUPPRESS
    )
    for command in commands:
        _add(below, command, named)
    return parser


def _listed(commands: Iterable[Command]) -> str:
    """The commands in groups, for `clipcap --help`."""
    groups: dict[str, list[str]] = {}
    for command in commands:
        groups.setdefault(command.group, []).append(f"  {command.name:{COLUMN}}{command.help}")
    listed = "\n\n".join("\n".join([f"{group}:", *lines]) for group, lines in groups.items())
    return f"{listed}\n\n`clipcap COMMAND --help` lists the options of a command."


def _add(parsers: argparse._SubParsersAction, command: Command, named: Collection[str] | None) -> None:
    """Add a command, and those below it."""
    description = command.description or f"{command.help[0].upper()}{command.help[1:]}."
    parser = parsers.add_parser(command.name, help=command.help, description=description)
    if named is not None and command.name not in named:
        return
    if command.below:
        parser.usage = f"{parser.prog} {command.metavar} [OPTIONS]"
        below = parser.add_subparsers(required=True, metavar=command.metavar, dest="below", prog=parser.prog)
        for row in command.below:
            _add(below, row, named)
        return
    groups = HelpGroups(parser)
    config_class = command.config_class()
    in_file = config_class is not None and "config" not in flags_of(config_class) and _names_a_file(named)
    added = [
        groups[one.group].add_argument(*one.names, **(one.optional_settings if in_file else one.settings))
        for one in command.arguments
    ]
    if config_class is not None:
        add_flags(groups, config_class, command.without)
    if config_class is not None and "--config" not in parser._option_string_actions:
        groups["data"].add_argument(
            "--config", dest="run_file", metavar="RUN.yaml", default=None,
            help="options from a YAML file, such as a run's run.yaml; flags override it",
        )  # fmt: skip
    groups["machine"].add_argument(
        "--quiet", action="store_true", help="no messages and progress bars, only warnings"
    )
    groups.order()
    needed = [_usage(action) for action in added if action.required]
    parser.usage = " ".join([parser.prog, *needed, "[OPTIONS]"])
    parser.set_defaults(row=command, arguments=[action.dest for action in added])


def _names_a_file(words: Collection[str] | None) -> bool:
    """Whether --config is among the words of a command line: what it requires may be in that file."""
    return any(word.partition("=")[0] == "--config" for word in words or ())


def _usage(action: argparse.Action) -> str:
    """The text of a required argument in the usage line."""
    name = str(action.metavar or action.dest.upper())
    if action.choices:
        name = f"{{{','.join(map(str, action.choices))}}}"
    several = f"{name} [{name} ...]" if action.nargs == "+" else name
    return f"{action.option_strings[0]} {several}" if action.option_strings else several
