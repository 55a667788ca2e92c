"""How an option is declared, checked and made a command-line flag.

The fields of the `config.py` files are the flags, the options tables of the docs and what checkpoints store: nothing
else declares a default.
"""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, replace
from functools import cache
from types import MappingProxyType
from typing import Any, ClassVar, Literal, NoReturn, Self, TypeVar, Union, get_args, get_origin, get_type_hints

from clipcap.errors import ClipcapError

Recipe = Literal["default", "reference"]
T = TypeVar("T", bound="Options")
_EMPTY = ("stop_token", "prefix")  # options that mean something as an empty text, which is not their default
LARGEST_SEED = 2**32 - 1  # the largest that NumPy and scikit-learn accept


def option(default: Any, help: str, aliases: tuple[str, ...] = (), group: str | None = None) -> Any:
    """A config field: its meaning, other names of its flag, and its group in `--help` (default: its class's)."""
    return field(default=default, metadata={"help": help, "aliases": aliases, "group": group})


def part(config_class: type[Options]) -> Any:
    """A config field that holds a smaller config; the flags of both lie side by side on the command line."""
    return field(default_factory=config_class, metadata={"part": config_class})


@dataclass(frozen=True)
class Options:
    """Base of the configs: frozen dataclasses whose fields are options, or `part`s with options of their own.

    >>> config = TrainConfig.of(data="train.pkl", epochs=3)  # the names of the flags, whatever part they lie in
    >>> config.features.data, config.loop.epochs
    ('train.pkl', 3)
    >>> config.with_options(epochs=5).loop.epochs
    5
    """

    group: ClassVar[str] = "data"  # where `--help` lists the options of this class

    def __init_subclass__(cls, group: str | None = None, **kwargs: Any):
        super().__init_subclass__(**kwargs)
        cls.group = group or cls.group

    @classmethod
    def of(cls, **options: Any) -> Self:
        """Build the config from options by the names of their flags, and from whole parts by theirs.

        Raises:
            ClipcapError: an option is unknown; the message names the nearest.
        """
        return _build(cls, _by_name(cls, options))

    def with_options(self, **options: Any) -> Self:
        """A copy in which these options are replaced, by the names of their flags.

        Raises:
            ClipcapError: an option is unknown; the message names the nearest.
        """
        return _replaced(self, _by_name(type(self), options))

    def flat(self) -> dict[str, Any]:
        """Every option by the name of its flag."""
        values: dict[str, Any] = {}
        for f in fields(self):
            value = getattr(self, f.name)
            for name, option in (value.flat() if "part" in f.metadata else {f.name: value}).items():
                values.setdefault(name, option)
        return values


def _by_name(config_class: type[Options], options: Mapping[str, Any]) -> dict[str, Any]:
    """The options under their own names instead of their aliases; an unknown name or choice is refused."""
    flags = flags_of(config_class)
    names = {name: name for name in (*flags, *(f.name for f in fields(config_class) if "part" in f.metadata))}
    names |= {alias: name for name, flag in flags.items() for alias in flag.field.metadata["aliases"]}
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            raise ClipcapError(f"{config_class.__name__} has no option {name!r}{hint}")
    named = {names[name]: value for name, value in options.items()}
    for name, value in named.items():
        if name in flags:
            _check_choice(flags[name], value)
    return named


def _check_choice(flag: Flag, value: Any) -> None:
    choices = _flag_type(flag.hint)[1]
    if choices and value not in choices and not (value is None and type(None) in get_args(flag.hint)):
        raise ClipcapError(f"{flag.field.name} is {value!r:.60}, not one of {', '.join(choices)}")


def _build(config_class: type[T], options: Mapping[str, Any]) -> T:
    """A config from the options that belong to it or to its parts."""
    values = {}
    for f in fields(config_class):
        if f.name in options:
            values[f.name] = options[f.name]
        elif "part" in f.metadata:
            values[f.name] = _build(f.metadata["part"], options)
    return config_class(**values)


def _replaced(config: T, options: Mapping[str, Any]) -> T:
    values = {}
    for f in fields(config):
        if f.name in options:
            values[f.name] = options[f.name]
        elif "part" in f.metadata:
            values[f.name] = _replaced(getattr(config, f.name), options)
    return replace(config, **values)


def given(config_class: type[T], config: T | None, options: Mapping[str, Any]) -> T:
    """The config that a function was called with: one, or options by keyword, or one with options over it.

    Raises:
        ClipcapError: an option is unknown; the message names the nearest.
    """
    return config_class.of(**options) if config is None else config.with_options(**options)


@dataclass(frozen=True)
class Flag:
    """A flag of a command: the field that declares it, the field's type, and its group in `--help`."""

    field: Field
    hint: Any
    group: str


@cache  # a source of `clipcap parse` has the flags of the others
def flags_of(config_class: type[Options]) -> Mapping[str, Flag]:
    """The options of a config and of its parts, by name.

    Where several parts declare one name, one flag sets them all, and the first declares its help.
    """
    hints = get_type_hints(config_class)
    found: dict[str, Flag] = {}
    for f in fields(config_class):
        if "part" in f.metadata:
            for name, flag in flags_of(f.metadata["part"]).items():
                found.setdefault(name, flag)
        else:
            found[f.name] = Flag(f, hints[f.name], f.metadata["group"] or config_class.group)
    return MappingProxyType(found)


def at_least(name: str, value: float, least: float) -> None:
    """Refuse an option that is below `least` or not a number."""
    if not value >= least:
        raise ClipcapError(f"--{name} must be at least {least}, got {value}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse an option outside of [low, high]."""
    if not low <= value <= high:
        raise ClipcapError(f"--{name} must lie between {low} and {high}, got {value}")


# The order of the groups in a command's help.
GROUPS = ("data", "query", "index", "model", "training", "decoding", "scores", "page", "output", "machine")


class HelpGroups:
    """The titled groups of arguments in a command's help, made when they are first asked for."""

    def __init__(self, parser: argparse.ArgumentParser):
        self.parser = parser
        self._groups: dict[str, argparse._ArgumentGroup] = {}

    def __getitem__(self, title: str) -> argparse._ArgumentGroup:
        if title not in self._groups:
            self._groups[title] = self.parser.add_argument_group(title)
        return self._groups[title]

    def order(self) -> None:
        """List the groups in the order of `GROUPS`, after argparse's own."""
        own = {id(group): GROUPS.index(title) for title, group in self._groups.items()}
        self.parser._action_groups.sort(key=lambda group: own.get(id(group), -1))


def add_flags(groups: HelpGroups, config_class: type[Options], without: Collection[str] = ()) -> None:
    """One flag per option, but for those `without`; type, choices and help come from the field alone.

    A flag that is not given stays out of the namespace, so that `from_flags` can tell a choice from a default.
    """
    for name, flag in flags_of(config_class).items():
        if name not in without:
            _add_flag(groups[flag.group], flag)


def _add_flag(group: argparse._ArgumentGroup, flag: Flag) -> None:
    f = flag.field
    kind, choices = _flag_type(flag.hint)
    names = ["--" + name for name in (f.name, *f.metadata["aliases"])]
    common: dict[str, Any] = {"dest": f.name, "default": argparse.SUPPRESS}
    text = (f.metadata["help"] + _default(f)).replace("%", "%%")
    if _takes_several(flag.hint):
        group.add_argument(*names, nargs="+", action=_OneOrMore, type=str, help=text, **common)
    elif kind is not bool:
        group.add_argument(*names, type=kind, choices=choices, help=text, **common)
    elif f.default is True:  # users need to know how to turn it off
        group.add_argument(*names, f"--no_{f.name}", action=_Switch, nargs=0, help=text, **common)
    else:
        group.add_argument(*names, action="store_true", help=text, **common)
        group.add_argument(f"--no_{f.name}", action="store_false", help=argparse.SUPPRESS, **common)


class _OneOrMore(argparse.Action):
    """A word, or several as a tuple."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None):
        setattr(namespace, self.dest, values[0] if len(values) == 1 else tuple(values))


class _Switch(argparse.Action):
    """`--x` and `--no_x`, shown together."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None):
        setattr(namespace, self.dest, not (option_string or "").startswith("--no_"))


def _default(f: Field) -> str:
    """The default of a flag for its help; nothing where the help names it already, or where it is off or not set."""
    if f.default is None or f.default is False or f.default == "" or "(default: " in f.metadata["help"]:
        return ""
    return " (default: on)" if f.default is True else f" (default: {f.default})"


def _takes_several(hint: Any) -> bool:
    """Whether a field's type is `str | tuple[str, ...]`."""
    return any(get_origin(a) is tuple for a in get_args(hint))


def _flag_type(hint: Any) -> tuple[type, tuple | None]:
    """(type, choices) of a field; `X | None` counts as X, and so does `X | tuple[X, ...]`."""
    if _takes_several(hint):
        return str, None
    if get_origin(hint) is not Literal and type(None) in get_args(hint):
        hint = Union[tuple(a for a in get_args(hint) if a is not type(None))]  # noqa: UP007
    if get_origin(hint) is Literal:
        return str, get_args(hint)
    return hint, None


def from_flags(config_class: type[T], args: argparse.Namespace) -> T:
    """Build a config from the flags that were given.

    Raises:
        ClipcapError: one is empty, as a variable of the shell that is not set leaves it.
    """
    given = {name: getattr(args, name) for name in flags_of(config_class) if hasattr(args, name)}
    for name, value in given.items():
        if value == "" and name not in _EMPTY and flags_of(config_class)[name].field.default != "":
            raise ClipcapError(f"--{name} is empty: give it a value, or leave it out (is a shell variable not set?)")
    return _build(config_class, given)


def read_options(config_class: type[Options], values: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Options from a file by their own names, converted to their types as the words of a command line are.

    Raises:
        ClipcapError: an option is unknown, or its value of another kind; the message begins with `where`.
    """
    try:
        named = _by_name(config_class, values)
    except ClipcapError as error:
        raise ClipcapError(f"{where}: {error}") from error
    return {
        name: _converted(flags_of(config_class)[name], value, f"{where}: {name}") for name, value in named.items()
    }


def _converted(flag: Flag, value: Any, where: str) -> Any:
    kind, _ = _flag_type(flag.hint)  # a choice is one of those that there are: `_by_name` has checked
    if value is None and type(None) in get_args(flag.hint):
        return None
    if _takes_several(flag.hint) and isinstance(value, list):
        if value and all(isinstance(one, str) for one in value):
            return tuple(value) if len(value) > 1 else value[0]
        raise ClipcapError(f"{where} is {value!r:.60}, not a list of texts")
    try:
        if not isinstance(value, (str, int, float)) or isinstance(value, bool) != (kind is bool):
            raise ValueError
        converted = value if kind is bool else kind(value)
        if kind is int and converted != float(value):
            raise ValueError
    except (TypeError, ValueError) as error:
        raise ClipcapError(f"{where} is {value!r:.60}, not of type {kind.__name__}") from error
    return converted


class FlagParser(argparse.ArgumentParser):
    """ArgumentParser that accepts hyphens for underscores and no abbreviations, and reports errors in one line."""

    def __init__(self, **kwargs: Any):
        super().__init__(allow_abbrev=False, **kwargs)
        self.set_defaults(parser=self)  # the innermost command's is what `parse_args` finds

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As in argparse, but the error for an unknown flag names the known flag that is spelt most like it."""
        namespace, unknown = self.parse_known_args(args, namespace)
        if unknown:
            name = unknown[0].partition("=")[0].replace("-", "_").replace("__", "--", 1)
            near = difflib.get_close_matches(name, namespace.parser._option_string_actions, 1)
            hint = f"; did you mean {near[0]}?" if near and name.startswith("--") else ""
            namespace.parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
        return namespace

    def parse_known_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """As in argparse, after the hyphens of every known flag are turned into underscores."""
        words = [self._underscored(word) for word in (sys.argv[1:] if args is None else args)]
        return super().parse_known_args(words, namespace)

    def _underscored(self, word: str) -> str:
        name, equals, value = word.partition("=")
        candidate = "--" + name[2:].replace("-", "_")
        known = name.startswith("--") and candidate in self._option_string_actions
        return candidate + equals + value if known else word

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        """As in argparse, but a word that is no choice is answered by the one spelt most like it."""
        names = [] if action.choices is None else [str(choice) for choice in action.choices]
        near = difflib.get_close_matches(str(value), names, 1)
        if near and value not in names:
            raise argparse.ArgumentError(action, f"invalid choice: {value!r}; did you mean {near[0]}?")
        super()._check_value(action, value)

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"clipcap: error: {message} (flags: {self.prog} --help)\n")
