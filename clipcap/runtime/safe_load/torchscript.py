"""The tensors of a TorchScript archive, read as data.

`torch.jit.load` runs what the archive holds: a `__setstate__` in it may write any file. The tensors stand in a pickle
of the archive and in members beside it, and the code says by name which of them are parameters and buffers.
"""

from __future__ import annotations

import io
import re
import zipfile
from pathlib import Path
from typing import Any

from torch import Tensor

from clipcap.runtime.safe_load.objects import rebuild_tensor
from clipcap.runtime.safe_load.tensors import STORAGES, describe, stored_member, stored_values
from clipcap.runtime.safe_load.unpickle import PickledObject, UnreadablePickle, plain_data

_MOST_MODULES = 10_000  # OpenAI's largest has under 3,000
_LONGEST_NAME = 1000  # characters
_MODULE = r"__torch__(?:\.\w+)+"
# What objects hold besides tensors and plain data: their classes, and lists and devices by TorchScript's own names.
_INERT = re.compile("|".join((_MODULE, r"torch\.jit\._pickle\.\w+", r"torch\.device", *map(re.escape, STORAGES))))
_CLASS = re.compile(r"^class (\w+)\(Module\):\n  __parameters__ = \[(.*?)\]\n  __buffers__ = \[(.*?)\]", re.MULTILINE)
_QUOTED = re.compile(r'"([^"]*)"')


def is_scripted(path: Path) -> bool:
    """Whether a file is a TorchScript archive: a zip with a constants.pkl, which `torch.save` does not write."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except OSError:
        raise
    except Exception:  # on damaged archives zipfile raises almost anything
        return False


def scripted_state(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name, as `torch.jit.load(path).state_dict()` would give them, on the CPU.

    Raises:
        UnreadablePickle: truncated, damaged, or made of what no network needs.
    """
    try:
        return _state(path)
    except UnreadablePickle:
        raise
    except Exception as error:  # zipfile and zlib let through almost anything
        raise UnreadablePickle(f"damaged ({type(error).__name__})") from error


def _state(path: Path) -> dict[str, Tensor]:
    with zipfile.ZipFile(path) as archive:
        if sum(member.compress_size for member in archive.infolist()) > path.stat().st_size:
            raise UnreadablePickle("claims more data than the file has bytes")
        index = next(name for name in archive.namelist() if name.endswith("/data.pkl") and name.count("/") == 1)
        folder, storages = index.removesuffix("data.pkl"), {}

        def tensor(reference: PickledObject, *shape: Any) -> Tensor:
            dtype, key, count = describe(reference)
            if key not in storages:  # one that several tensors share is read once
                storages[key] = stored_values(memoryview(stored_member(archive, f"{folder}data/{key}")), dtype, count)
            return rebuild_tensor(storages[key], *shape)

        if f"{folder}byteorder" in archive.namelist() and stored_member(archive, f"{folder}byteorder") != b"little":
            raise UnreadablePickle("is of a big-endian machine")
        calls = {
            "torch._utils._rebuild_tensor_v2": tensor,
            "collections.OrderedDict": lambda *_: {},
        }
        root = plain_data(io.BytesIO(stored_member(archive, index)), calls, _INERT)
        return _tensors(root, _declared(archive, folder))


def _declared(archive: zipfile.ZipFile, folder: str) -> dict[str, set[str]]:
    """The names of each class's parameters and buffers; other tensors of a module do not belong to its state."""
    declared = {}
    for name in archive.namelist():
        if name.startswith(f"{folder}code/") and name.endswith(".py"):
            module = name.removeprefix(f"{folder}code/").removesuffix(".py").replace("/", ".")
            for found in _CLASS.finditer(_code(archive, name)):
                declared[f"{module}.{found[1]}"] = {*_QUOTED.findall(found[2]), *_QUOTED.findall(found[3])}
    return declared


def _code(archive: zipfile.ZipFile, name: str, most: int = 16 * 2**20) -> str:
    """A source file, which torch does compress."""
    with archive.open(name) as file:
        text = file.read(most + 1)
    if len(text) > most:
        raise UnreadablePickle(f"holds code of more than {most:,} bytes")
    return text.decode("utf-8")


def _tensors(root: Any, declared: dict[str, set[str]]) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    pending, seen = [("", root)], set()
    while pending:
        prefix, module = pending.pop()
        if id(module) in seen:  # names would have no end, or add up to more than memory
            raise UnreadablePickle("holds a module within itself, or twice")
        seen.add(id(module))
        if len(seen) > _MOST_MODULES:
            raise UnreadablePickle(f"holds more than {_MOST_MODULES:,} modules")
        if len(prefix) > _LONGEST_NAME:
            raise UnreadablePickle(f"holds names of more than {_LONGEST_NAME:,} characters")
        if not isinstance(module, PickledObject) or not isinstance(module.state, dict):
            raise UnreadablePickle("holds a module without a state")
        own = declared.get(module.name, set())
        for name, value in module.state.items():
            if isinstance(value, PickledObject) and value.name in declared:
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, Tensor) and name in own:
                found[f"{prefix}{name}"] = value
    return found
