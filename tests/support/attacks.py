"""Pickles that make a trusting reader run code, one for every instruction that can."""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from pathlib import Path

INSTRUCTIONS = (
    "REDUCE", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "BUILD", "EXT1", "EXT2", "EXT4", "GLOBAL",
    "nested",
)  # fmt: skip
FUNCTIONS = ("os.system", "builtins.exec", "builtins.eval", "subprocess.call", "builtins.open", "pathlib.Path.touch")
CONTAINERS = ("raw", "legacy", "zip")
EXTENSION = 0xE5  # a code that the tests register, as a program with extensions of its own would
_TORCH = (0x1950A86A20F9469CFC6C, 1001, {"protocol_version": 1001, "little_endian": True, "type_sizes": {}})


def attack(instruction: str, function: str, canary: Path) -> bytes:
    """A pickle, from PROTO to STOP, that creates `canary` where it is trusted."""
    module, _, name = function.partition(".")
    words = _words(function, canary)
    args = b"(" + b"".join(map(_text, words)) + b"t"
    named = f"c{module}\n{name}\n".encode()
    if "." in name:  # a dotted name, which protocol 4 resolves
        named = _text(module) + _text(name) + b"\x93"
    items = b"".join(map(_text, words))
    bodies = {
        "REDUCE": named + args + b"R",
        "STACK_GLOBAL": _text(module) + _text(name) + b"\x93" + args + b"R",
        "INST": b"(" + items + f"i{module}\n{name}\n".encode(),
        "OBJ": b"(" + named + items + b"o",
        "NEWOBJ": b"csupport.attacks\nMaker\n" + args + b"\x81",
        "NEWOBJ_EX": b"csupport.attacks\nMaker\n" + args + b"}\x92",
        "BUILD": b"csupport.attacks\nEmpty\n)\x81}"
        + _text("__setstate__")
        + named
        + b"sb"
        + items[: len(_text(words[0]))]
        + b"b",
        "EXT1": bytes((0x82, EXTENSION)) + args + b"R",
        "EXT2": b"\x83" + struct.pack("<H", EXTENSION) + args + b"R",
        "EXT4": b"\x84" + struct.pack("<i", EXTENSION) + args + b"R",
        "GLOBAL": b"chostile_module\nvalue\n",  # importing it is enough
        "nested": b"cpickle\nloads\n(B" + _counted(b"\x80\x04" + named + args + b"R.") + b"tR",
    }
    return b"\x80\x04" + bodies[instruction] + b"."


class Empty:
    """An object that takes any state."""


class Maker:
    """Creates the file that it is made with the name of."""

    def __new__(cls, *words: str) -> Maker:
        Path(words[-1].split("'")[1] if "'" in words[-1] else words[-1].split()[-1]).touch()
        return object.__new__(cls)


def _words(function: str, canary: Path) -> list[str]:
    code = f"open('{canary}', 'w')"
    return {
        "os.system": [f"touch {canary}"],
        "builtins.exec": [code],
        "builtins.eval": [code],
        "subprocess.call": [f"{canary.parent}/touch"],
        "builtins.open": [str(canary), "w"],
        "pathlib.Path.touch": [str(canary)],
    }[function]


def _text(text: str) -> bytes:
    return b"X" + _counted(text.encode())


def _counted(data: bytes) -> bytes:
    return struct.pack("<I", len(data)) + data


def in_features(payload: bytes) -> bytes:
    """A dictionary whose first value is the attack, as a feature file would hold it."""
    inner = payload[2:-1]
    return b"\x80\x04}" + _text("clip_embedding") + inner + b"s" + _text("captions") + b"]s."


def in_container(payload: bytes, container: str) -> bytes:
    """As a file that `torch.load` would unpickle: bare, in the format of before torch 1.6, or in the zip of after."""
    if container == "raw":
        return payload
    if container == "legacy":
        return b"".join(pickle.dumps(part, protocol=2) for part in _TORCH) + payload + pickle.dumps([])
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")
    return stream.getvalue()
