"""How an option is declared, checked and made a command-line flag.

The fields of the `config.py` files are the flags, the options tables of the docs and what checkpoints store: nothing
else declares a default.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Collection, Sequence
from dataclasses import Field, field, fields
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from clipcap.errors import ClipcapError

Recipe = Literal["default", "reference"]
LARGEST_SEED = 2**32 - 1  # that NumPy and scikit-learn take


def option(default: Any, help: str, aliases: tuple[str, ...] = ()) -> Any:
    """A config field with its meaning, and other names of its flag."""
    return field(default=default, metadata={"help": help, "aliases": aliases})


def at_least(name: str, value: float, least: float) -> None:
    """Refuse an option below `least`, or not a number."""
    if not value >= least:
        raise ClipcapError(f"--{name} must be at least {least}, got {value}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse an option outside of [low, high]."""
    if not low <= value <= high:
        raise ClipcapError(f"--{name} must lie between {low} and {high}, got {value}")


T = TypeVar("T")


def add_flags(parser: argparse.ArgumentParser, config_class: type, without: Collection[str] = ()) -> None:
    """One flag per field, but for those `without`; type, choices and help come from the field alone.

    A flag that is not given stays out of the namespace, so that `from_flags` can tell a choice from a default.
    """
    hints = get_type_hints(config_class)
    for f in fields(config_class):
        if f.name in without:
            continue
        kind, choices = _flag_type(hints[f.name])
        names = ["--" + name for name in (f.name, *f.metadata["aliases"])]
        common = {"dest": f.name, "default": argparse.SUPPRESS}
        text = (f.metadata["help"] + _default(f)).replace("%", "%%")
        if kind is not bool:
            parser.add_argument(*names, type=kind, choices=choices, help=text, **common)
        elif f.default is True:  # turning it off is what one needs to know of
            parser.add_argument(*names, f"--no_{f.name}", action=_Switch, nargs=0, help=text, **common)
        else:
            parser.add_argument(*names, action="store_true", help=text, **common)
            parser.add_argument(f"--no_{f.name}", action="store_false", help=argparse.SUPPRESS, **common)


class _Switch(argparse.Action):
    """`--x` and `--no_x`, shown together."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None):
        setattr(namespace, self.dest, not option_string.startswith("--no_"))


def _default(f: Field) -> str:
    """The default of a flag as its help says it; nothing where the help says it itself, or it is off or not set."""
    if f.default is None or f.default is False or f.default == "" or "(default: " in f.metadata["help"]:
        return ""
    return " (default: on)" if f.default is True else f" (default: {f.default})"


def _flag_type(hint: Any) -> tuple[type, tuple | None]:
    """(type, choices) of a field; `X | None` counts as X."""
    if get_origin(hint) is not Literal and type(None) in get_args(hint):
        hint = Union[tuple(a for a in get_args(hint) if a is not type(None))]  # noqa: UP007
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    return hint, None


def from_flags(config_class: type[T], args: argparse.Namespace, **defaults: Any) -> T:
    """Build a config from the flags that were given, over `defaults` of the calling command."""
    given = {f.name: getattr(args, f.name) for f in fields(config_class) if hasattr(args, f.name)}
    return config_class(**{**defaults, **given})


class FlagParser(argparse.ArgumentParser):
    """ArgumentParser that takes hyphens for underscores (`--only-prefix`), no abbreviations, and errs in one line."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)
        self.set_defaults(parser=self)  # the innermost command's is what `parse_args` finds

    def parse_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As in argparse, but a flag that is not known is told with the one that is spelt most like it."""
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
            near = difflib.get_close_matches(name, namespace.parser._option_string_actions, 1)
            mend = f"; did you mean {near[0]}?" if near and name.startswith("--") else ""
            namespace.parser.error(f"unrecognized arguments: {' '.join(unknown)}{mend}")
        return namespace

    def parse_known_args(self, args: Sequence[str] | None = None, namespace: Any = None) -> Any:
        """As in argparse, after the hyphens of every known flag are turned into underscores."""
        words = [self._underscored(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(words, namespace)

    def _underscored(self, word: str) -> str:
        name, equals, value = word.partition("=")
        candidate = "--" + name[2:].replace("-", "_")
        known = name.startswith("--") and candidate in self._option_string_actions
        return candidate + equals + value if known else word

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"clipcap: error: {message} (flags: {self.prog} --help)\n")
