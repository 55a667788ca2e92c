"""Files of `torch.save` as tensors and plain data: none of their code is run, no memory taken beyond their size.

torch's own reader refuses a file for one object beside its tensors (options of a training, a function), and allocates
what a header claims. Here such objects stay descriptions (`PickledObject`), and storages are read as they lie in the
file, in both formats: the zip of torch 1.6 and later, and the stream of pickles before it. Plain pickles of tensors
and of arrays, which scripts write by `pickle.dump`, are read alike; arrays of NumPy become tensors.
"""

from __future__ import annotations

import io
import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from clipcap.runtime.safe_load.objects import CALLS, array_values, rebuild_tensor
from clipcap.runtime.safe_load.tensors import MAGIC, PROTOCOL, describe, stored_member, stored_values
from clipcap.runtime.safe_load.unpickle import Named, PickledObject, UnreadablePickle, plain_data

_ANY_NAME = re.compile(r".*", re.DOTALL)  # descriptions only: nothing that is named is imported
_DEEPEST = 100  # lists within lists
# Types of numbers that torch has had no storages of their own for.
_DTYPES = {
    f"torch.{name}": dtype
    for name in (
        "uint16", "uint32", "uint64", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float8_e5m2fnuz",
    )
    if (dtype := getattr(torch, name, None)) is not None
}  # fmt: skip
_ARRAYS = re.compile(r"numpy\._?core\.(multiarray\._reconstruct|numeric\._frombuffer)")
_DEVICE_ARRAY = "torch._utils._rebuild_device_tensor_from_numpy"  # of a TPU and its kin
_PLAIN = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
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
    content = _with_arrays(content)
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
    if file.read(2) == b"PK":
        raise UnreadablePickle("is cut short: an archive of torch.save without its end")
    file.seek(0)
    parameters = {"torch._utils._rebuild_parameter": lambda data, *_: data}
    magic = plain_data(file, CALLS | parameters, _ANY_NAME, lenient=True)
    if isinstance(magic, dict):
        return magic  # of pickle.dump
    protocol, system = (plain_data(file, {}, _ANY_NAME, lenient=True) for _ in range(2))
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

    def of_dtype(reference: PickledObject, offset: int, size: tuple, stride: tuple, *more: Any) -> Any:
        """A tensor of a type of numbers that is named beside its bytes."""
        dtype = _DTYPES.get(getattr(more[2], "name", ""))
        if dtype is None:
            return PickledObject("torch._utils._rebuild_tensor_v3", more)
        values = storage(reference)
        return rebuild(values if values is None else values.view(dtype), offset, size, stride)

    def of_type(function: Named, _type: Any, args: tuple, _state: Any) -> Any:
        """A tensor of a class of its own, which is dropped."""
        call = calls.get(function.name)
        return call(*args) if call else PickledObject(function.name, args)

    calls = {
        "torch._utils._rebuild_tensor": tensor,
        "torch._utils._rebuild_tensor_v2": tensor,
        "torch._utils._rebuild_tensor_v3": of_dtype,
        "torch._utils._rebuild_parameter": lambda data, *_: data,
        "torch._utils._rebuild_parameter_with_state": lambda data, *_: data,
        "torch._tensor._rebuild_from_type_v2": of_type,
        "_codecs.encode": CALLS["_codecs.encode"],  # bytes of an array, in protocol 2
        "collections.OrderedDict": lambda *_: {},  # its items follow
        "collections.defaultdict": lambda *_: {},
    }
    return calls


def _with_arrays(content: Any) -> Any:
    """What was saved, with the arrays of NumPy in its dictionaries and lists as tensors; one that is shared once."""
    found: dict[int, Any] = {}
    pending, seen = [content], set()
    while pending:
        value = pending.pop()
        if not isinstance(value, (dict, list)) or id(value) in seen:
            continue
        seen.add(id(value))
        for place, part in value.items() if isinstance(value, dict) else enumerate(value):
            if isinstance(part, PickledObject):
                if id(part) not in found:
                    found[id(part)] = _of_array(part)
                value[place] = found[id(part)]
            pending.append(part)
    return content


def _of_array(array: PickledObject) -> Any:
    """The tensor of a pickled array of numbers; anything else as it is."""
    if array.name == _DEVICE_ARRAY and array.args and isinstance(array.args[0], PickledObject):
        array = array.args[0]
    if not _ARRAYS.fullmatch(array.name):
        return array
    try:
        values = np.asarray(array_values(array))
        return torch.from_numpy(values.astype(values.dtype.newbyteorder("="), copy=True))
    except Exception:  # texts, objects, and arrays of which nothing fits together: described, not read
        return array


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
    if not tensor.is_floating_point():
        return True
    if tensor.dtype not in _PLAIN:  # of eight bits, of which torch computes nothing
        tensor = tensor.float()
    if tensor.sum(dtype=torch.float32).isfinite():  # one pass; NaN and infinity stay in a sum
        return True
    return bool(tensor.isfinite().all())
