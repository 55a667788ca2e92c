"""Files of `torch.save` as tensors and plain data: none of their code is run, no memory taken beyond their size.

torch's own reader refuses a file for one object beside its tensors (options of a training, a function), and allocates
what a header claims. Here such objects stay descriptions (`PickledObject`), and storages are read as they lie in the
file, in both formats: the zip of torch 1.6 and later, and the stream of pickles before it.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from clipcap.runtime.safe_load.objects import rebuild_tensor
from clipcap.runtime.safe_load.tensors import MAGIC, PROTOCOL, describe, stored_member, stored_values
from clipcap.runtime.safe_load.unpickle import Named, PickledObject, UnreadablePickle, plain_data

_ANY_NAME = re.compile(r".*", re.DOTALL)  # descriptions only: nothing that is named is imported
_DEEPEST = 100  # lists within lists
_MOST_SHARED = 4  # a tied head is a second name for the same numbers; a file of views would fill the memory


class UnsafeFileError(ValueError):
    """A file that claims more than it holds."""


def load_tensors(path: Path) -> Any:
    """What `torch.load` gives of a file, in either of its formats, on the CPU; other objects as `PickledObject`.

    Raises:
        UnsafeFileError: it would take more memory than its size.
        Exception: damaged and hostile files: UnreadablePickle, BadZipFile, EOFError, struct.error, …
    """
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            content = _from_zip(archive, path.stat().st_size)
    else:
        with path.open("rb") as file:
            content = _from_stream(file, path.stat().st_size)
    _check(content, path.stat().st_size)
    return content


def _from_zip(archive: zipfile.ZipFile, size: int) -> Any:
    if any(member.compress_type != zipfile.ZIP_STORED for member in archive.infolist()):
        raise UnsafeFileError("holds compressed data, which torch does not write")
    if sum(member.file_size for member in archive.infolist()) > size:  # members that lie over each other
        raise UnsafeFileError("claims more data than the file has bytes")
    names = set(archive.namelist())
    index = next((name for name in names if name.endswith("/data.pkl") and name.count("/") == 1), None)
    if index is None:
        raise UnreadablePickle("is an archive, but not one of torch.save")
    folder = index.removesuffix("data.pkl")
    if f"{folder}byteorder" in names and stored_member(archive, f"{folder}byteorder") != b"little":
        raise UnreadablePickle("is of a big-endian machine")
    storages: dict[str, Tensor] = {}

    def storage(reference: PickledObject) -> Tensor:
        dtype, key, count = describe(reference)
        if key not in storages:  # several tensors may share one
            data = bytearray(stored_member(archive, f"{folder}data/{key}"))
            storages[key] = stored_values(data, dtype, count)
        return storages[key].view(dtype)

    return plain_data(io.BytesIO(stored_member(archive, index)), _calls(storage), _ANY_NAME, lenient=True)


def _from_stream(file: BinaryIO, size: int) -> Any:
    """The format before torch 1.6: pickles, then the storages, each behind its length."""
    magic, protocol, system = (plain_data(file, {}, _ANY_NAME, lenient=True) for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not isinstance(system, dict) or not system.get("little_endian"):
        raise UnreadablePickle("is no file of torch.save")
    start, references = file.tell(), {}

    def note(reference: PickledObject) -> None:
        dtype, key, count = describe(reference)
        references[key] = dtype, count

    plain_data(file, _calls(note, lambda *_: None), _ANY_NAME, lenient=True)
    keys = plain_data(file, {}, _ANY_NAME, lenient=True)
    if not isinstance(keys, list) or not references.keys() <= {key for key in keys if isinstance(key, str)}:
        raise UnreadablePickle("holds a tensor without its numbers")
    storages = {}
    for key in keys:
        dtype, count = references.get(key, (None, 0))
        if dtype is None or struct.unpack("<q", file.read(8)) != (count,):
            raise UnreadablePickle("holds a tensor whose sizes contradict each other")
        length = count * dtype.itemsize
        if length > size:
            raise UnsafeFileError(f"holds a tensor of {length:,} bytes, the file has {size:,}")
        storages[key] = stored_values(bytearray(file.read(length)), dtype, count)
    file.seek(start)
    return plain_data(file, _calls(lambda reference: storages[describe(reference)[1]]), _ANY_NAME, lenient=True)


def _calls(
    storage: Callable[[PickledObject], Any], rebuild: Callable[..., Any] = rebuild_tensor
) -> dict[str, Callable[..., Any]]:
    """The functions that torch names in its files, by the storages that they are given."""

    def tensor(reference: PickledObject, *shape: Any) -> Any:
        return rebuild(storage(reference), *shape)

    def of_type(function: Named, _type: Any, args: tuple, _state: Any) -> Any:
        """A tensor of a class of its own, which is dropped."""
        call = calls.get(function.name)
        return call(*args) if call else PickledObject(function.name, args)

    calls = {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch._tensor._rebuild_from_type_v2": of_type,
        "collections.OrderedDict": lambda *_: {},  # its items follow
        "collections.defaultdict": lambda *_: {},
    }
    return calls


def _check(content: Any, size: int) -> None:
    """Views of the same numbers, each of which a network copies, must not be many; nor lists deep."""
    pending, seen, total = [(content, 0)], set(), 0
    while pending:
        value, depth = pending.pop()
        if isinstance(value, Tensor):
            total += value.numel() * value.element_size()
            if total > _MOST_SHARED * size:
                raise UnsafeFileError(f"holds tensors of more than {_MOST_SHARED} times its size")
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            if depth > _DEEPEST:
                raise UnsafeFileError(f"holds lists more than {_DEEPEST} deep")
            seen.add(id(value))
            pending += [(part, depth + 1) for part in (value.values() if isinstance(value, dict) else value)]


def named_tensors(content: Any) -> dict[str, Tensor] | None:
    """The tensors of a whole network that was saved as an object, as its state dict; None for anything else.

    torch keeps the parameters, buffers and parts of a network in three dictionaries of each module.
    """
    found: dict[str, Tensor] = {}
    pending, seen = [("", content)], set()
    while pending:
        prefix, module = pending.pop()
        state = module.state if isinstance(module, PickledObject) else None
        if not isinstance(state, dict) or not isinstance(state.get("_modules"), dict) or id(module) in seen:
            return None
        seen.add(id(module))
        for kind in ("_parameters", "_buffers"):
            own = state.get(kind)
            values = own.items() if isinstance(own, dict) else ()
            found |= {f"{prefix}{name}": value for name, value in values if isinstance(value, Tensor)}
        pending += [(f"{prefix}{name}.", part) for name, part in state["_modules"].items() if part is not None]
    return found


def is_finite(tensor: Tensor) -> bool:
    """Whether no number is NaN or infinite."""
    if tensor.dtype not in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        return True
    if tensor.sum(dtype=torch.float32).isfinite():  # one pass; NaN and infinity stay in a sum
        return True
    return bool(tensor.isfinite().all())
