"""Pickles read as plain data: nothing that a file names is ever imported or called.

A pickle is a program for a small stack machine. The machine here knows only the instructions that data needs. The
functions and classes named in the file stay names: the caller maps the few it understands to functions of its own
(`calls`), objects of the libraries it expects (`inert`) become a `PickledObject`, which holds what the file says
about them, and every other name is refused. Python's own unpickler with a filtered `find_class` would save four
seconds on COCO's 566,000 captions, but ten bytes make it take all memory (a memo index), or crash (hashing a
deep tuple).
"""

from __future__ import annotations

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO


class UnreadablePickle(ValueError):
    """The pickle is damaged, or asks for something that data does not need."""


@dataclass(frozen=True, eq=False)
class Named:
    """A function or class the pickle names."""

    name: str


@dataclass(slots=True, eq=False, repr=False)  # may hold itself, so neither compared nor printed
class PickledObject:
    """An object as the pickle describes it: its class or function, arguments and state."""

    name: str
    args: tuple
    state: Any = None


def plain_data(
    stream: BinaryIO, calls: Mapping[str, Callable[..., Any]], inert: re.Pattern[str], lenient: bool = False
) -> Any:
    """The object of the next pickle in `stream`, made of plain values, `PickledObject`s and results of `calls`.

    Args:
        stream: positioned at the start of the pickle; afterwards at its end.
        calls: our functions, which replace those that the file names.
        inert: names that become `PickledObject`s.
        lenient: what the file does to such objects (items, further calls) is passed over, not refused.

    Raises:
        UnreadablePickle: says what is wrong and at which byte.
    """
    machine = _Machine(calls, inert, lenient)
    try:
        for opcode, arg, position in pickletools.genops(stream):
            machine.position = position or 0
            machine.step(opcode.name, arg)
        return machine.result
    except UnreadablePickle:
        raise
    except Exception as error:  # whatever a hostile file makes of the values, it is the file that is wrong
        if not stream.read(1):
            raise UnreadablePickle(f"truncated at {stream.tell():,} bytes") from error
        reason = " ".join(str(error).split())[:100]
        raise UnreadablePickle(
            f"damaged near byte {machine.position:,} ({type(error).__name__}: {reason})"
        ) from error


_LONGEST_INT = 4096  # bits; Python refuses to print the longest
_LITERALS = frozenset(
    [
        *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
        *("UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8"),
        *("SHORT_BINBYTES", "BINBYTES", "BINBYTES8", "BYTEARRAY8"),
    ]
)
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_KEYS = (str, int, float, bool, type(None), PickledObject, Named)
_PYTHON2_STRINGS = frozenset(("STRING", "BINSTRING", "SHORT_BINSTRING"))
_IGNORED = frozenset(("PROTO", "FRAME"))


class _Machine:
    def __init__(self, calls: Mapping[str, Callable[..., Any]], inert: re.Pattern[str], lenient: bool):
        self.calls, self.inert, self.lenient = calls, inert, lenient
        self.stack: list = []
        self.outer: list[list] = []  # the stacks below each open mark
        self.memo: dict[int, Any] = {}
        self.position = 0
        self.handed = 0  # bytes given to calls
        self.result: Any = None

    def step(self, opcode: str, arg: Any) -> None:
        """Carry out one instruction."""
        if opcode in _LITERALS:
            if type(arg) is int and arg.bit_length() > _LONGEST_INT:
                raise UnreadablePickle(f"holds a whole number of {arg.bit_length():,} bits, which no data needs")
            self.stack.append(arg)
        elif opcode in _STEPS:
            _STEPS[opcode](self, arg)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _PYTHON2_STRINGS:
            self.stack.append(_python2_text(arg))
        elif opcode not in _IGNORED:
            raise UnreadablePickle(f"refused the pickle instruction {opcode} at byte {self.position:,}")

    def _memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def _put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def _get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def _mark(self, _: None) -> None:
        self.outer.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list:
        items, self.stack = self.stack, self.outer.pop()
        return items

    def _empty_list(self, _: None) -> None:
        self.stack.append([])

    def _list(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(items)

    def _append(self, _: None) -> None:
        self._extend([self.stack.pop()])

    def _appends(self, _: None) -> None:
        self._extend(self._since_mark())

    def _passes_over(self) -> bool:
        """Whether the topmost object takes whatever it is given."""
        return self.lenient and type(self.stack[-1]) in (PickledObject, Named)

    def _extend(self, items: list) -> None:
        if self._passes_over():
            return
        if type(self.stack[-1]) is not list:
            raise TypeError("appends to something that is not a list")
        self.stack[-1].extend(items)

    def _tuple(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append(tuple(items))

    def _last(self, count: int) -> None:
        if len(self.stack) < count:
            raise IndexError("the stack is too short")
        self.stack[-count:] = [tuple(self.stack[-count:])]

    def _empty_dict(self, _: None) -> None:
        self.stack.append({})

    def _dict(self, _: None) -> None:
        items = self._since_mark()
        self.stack.append({})
        self._update(items)

    def _set_item(self, _: None) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def _set_items(self, _: None) -> None:
        self._update(self._since_mark())

    def _update(self, items: list) -> None:
        if self._passes_over():
            return
        target = self.stack[-1]
        if type(target) is not dict:
            raise TypeError("sets items of something that is not a dictionary")
        keys = items[::2]
        if self.lenient:
            keys = [key if type(key) in _KEYS else PickledObject("a key", (key,)) for key in keys]
        elif any(type(key) is not str and type(key) is not int for key in keys):  # others can be slow to hash
            raise TypeError("a dictionary key that is neither text nor a whole number")
        target.update(zip(keys, items[1::2], strict=True))

    def _global(self, module_and_name: str) -> None:
        self.stack.append(self._named(*module_and_name.split(" ", 1)))

    def _stack_global(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(self._named(module, name))

    def _named(self, module: str, name: str) -> Named:
        full = f"{module!s:.100}.{name!s:.100}" if type(module) is type(name) is str else "a name that is not text"
        if full not in self.calls and not self.inert.fullmatch(full):
            shown = " ".join(full.split())
            raise UnreadablePickle(f"refused to load {shown}, which no feature file needs (byte {self.position:,})")
        return Named(full)

    def _instance(self, module_and_name: str) -> None:
        args = tuple(self._since_mark())
        self.stack.append(PickledObject(self._named(*module_and_name.split(" ", 1)).name, args))

    def _reduce(self, _: None) -> None:
        args, function = self.stack.pop(), self.stack.pop()
        if self.lenient and type(function) is PickledObject:  # such as what `getattr` gives
            self.stack.append(PickledObject(f"a result of {function.name}"[:200], (args,)))
            return
        if type(args) is not tuple or type(function) is not Named:
            raise TypeError("calls something that is not a function")
        call = self.calls.get(function.name)
        if call:  # may copy what it is given, so that using one value many times would fill the memory
            self.handed += sum(len(arg) for arg in args if isinstance(arg, (bytes, bytearray, str)))
            if self.handed > 4 * self.position:
                raise ValueError("the same bytes again and again")
        self.stack.append(call(*args) if call else PickledObject(function.name, args))

    def _new_object(self, _: None) -> None:
        named, args = self.stack.pop(), self.stack.pop()
        self.stack.append(args)
        self._reduce(None)
        if named:
            self.stack.append(PickledObject("arguments by name", (self.stack.pop(), named)))

    def _build(self, _: None) -> None:
        state = self.stack.pop()
        if type(self.stack[-1]) is dict:  # an OrderedDict of torch: what it has besides its items is dropped
            return
        if self.lenient and type(self.stack[-1]) is not PickledObject:
            return
        if type(self.stack[-1]) is not PickledObject:
            raise TypeError("gives a state to what has none")
        self.stack[-1].state = state

    def _persistent(self, _: None) -> None:
        self.stack.append(PickledObject("persistent id", self.stack.pop()))

    def _stop(self, _: None) -> None:
        self.result = self.stack.pop()


_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "MEMOIZE": _Machine._memoize,
    **dict.fromkeys(("PUT", "BINPUT", "LONG_BINPUT"), _Machine._put),
    **dict.fromkeys(("GET", "BINGET", "LONG_BINGET"), _Machine._get),
    "MARK": _Machine._mark,
    "EMPTY_LIST": _Machine._empty_list,
    "LIST": _Machine._list,
    "APPEND": _Machine._append,
    "APPENDS": _Machine._appends,
    "TUPLE": _Machine._tuple,
    "TUPLE1": lambda machine, _: machine._last(1),
    "TUPLE2": lambda machine, _: machine._last(2),
    "TUPLE3": lambda machine, _: machine._last(3),
    "EMPTY_DICT": _Machine._empty_dict,
    "DICT": _Machine._dict,
    "SETITEM": _Machine._set_item,
    "SETITEMS": _Machine._set_items,
    "GLOBAL": _Machine._global,
    "STACK_GLOBAL": _Machine._stack_global,
    "INST": _Machine._instance,
    "REDUCE": _Machine._reduce,
    "NEWOBJ_EX": _Machine._new_object,
    "EMPTY_SET": lambda machine, _: machine.stack.append([]),  # as a list, since values may be slow to hash
    "ADDITEMS": _Machine._appends,
    "FROZENSET": _Machine._list,
    "NEWOBJ": _Machine._reduce,  # cls.__new__(cls, *args): to a machine that makes records, a call like any other
    "BUILD": _Machine._build,
    "BINPERSID": _Machine._persistent,
    "STOP": _Machine._stop,
}


def _python2_text(text: str) -> str:
    """A `str` of Python 2, which pickletools gives byte for character: text in UTF-8, or left as it is."""
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeDecodeError:
        return text
