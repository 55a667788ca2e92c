"""What feature pickles are made of besides plain data: tensors, numpy values and rows of pandas.

numpy, pandas and pyarrow are not asked: their pickles differ from version to version, and reading must neither need
the version that wrote the file nor run its code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from clipcap.runtime.safe_load.tensors import load_storage
from clipcap.runtime.safe_load.unpickle import Named, PickledObject, UnreadablePickle

_DTYPE = re.compile(r"[fiub][1248]|U\d+")
_BUILTINS = ("builtins", "__builtin__")  # Python 3, Python 2
_NUMPY_CORE = ("numpy.core", "numpy._core")  # numpy 1, numpy 2


def rebuild_tensor(storage: Tensor, offset: int, size: tuple, stride: tuple, *_: object) -> Tensor:
    """`torch._utils._rebuild_tensor_v2`: a view of the storage that stays inside of it."""
    if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)):
        raise UnreadablePickle("holds a tensor of impossible shape")
    # A stride of 0 could make a shape of any size out of one value.
    if math.prod(size) > storage.numel():
        raise UnreadablePickle(f"holds a tensor of shape {list(size)}, but only {storage.numel()} values")
    return torch.as_strided(storage, size, stride, offset)  # checks the bounds itself


def _scalar(dtype: PickledObject, data: bytes | str) -> Any:
    return np.frombuffer(_bytes(data), _dtype(dtype), count=1)[0].item()


def _bytes(data: bytes | bytearray | str = b"", encoding: str = "latin-1") -> bytes:
    """The ways in which pickles of old protocols spell bytes."""
    if encoding not in ("latin-1", "latin1") or not isinstance(data, (bytes, bytearray, str)):
        raise UnreadablePickle("holds bytes in an unknown spelling")
    return data.encode("latin-1") if isinstance(data, str) else bytes(data)


def _old_instance(cls: Named, *_: object) -> PickledObject:
    return PickledObject(cls.name, ())


CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": rebuild_tensor,
    "torch.storage._load_from_bytes": load_storage,
    "collections.OrderedDict": lambda *_: {},  # of a tensor's hooks; never filled
    "pyarrow.lib.py_buffer": lambda data: data,
    "_codecs.encode": _bytes,
    **{f"{module}.{name}": _bytes for module in _BUILTINS for name in ("bytes", "bytearray")},
    **{f"{module}.multiarray.scalar": _scalar for module in _NUMPY_CORE},
    **{f"{module}._reconstructor": _old_instance for module in ("copyreg", "copy_reg")},
}
INERT = re.compile(
    r"pandas(\.\w+)+"
    r"|numpy\.(ndarray|dtype)|numpy\._?core\.(multiarray\._reconstruct|numeric\._frombuffer)"
    r"|pyarrow\.lib\.(_restore_array|type_for_alias)"
    r"|(builtins|__builtin__)\.(slice|object)"
)


def array_values(array: PickledObject) -> np.ndarray | list:
    """The values of a pickled numpy array (objects as a flat list), or of a pandas array of strings."""
    if array.name.endswith("._frombuffer"):
        data, dtype, shape, order = array.args
        return np.frombuffer(data, _dtype(dtype)).reshape(shape, order=order)
    if array.name.endswith("._reconstruct"):
        *_, shape, dtype, fortran, data = array.state
        if isinstance(data, list):
            return data
        return np.frombuffer(_bytes(data), _dtype(dtype)).reshape(shape, order="F" if fortran else "C")
    if array.name.endswith(".ArrowStringArray"):
        (description,) = array.state["_pa_array"].args
        return _arrow_strings(*description)
    inner = next(
        part for part in array.state if isinstance(part, PickledObject) and part.name.endswith("._reconstruct")
    )
    return array_values(inner)


def _arrow_strings(
    kind: PickledObject, count: int, _nulls: int, start: int, buffers: Sequence, *_: object
) -> list[str]:
    _, offsets, text = buffers
    widths = {"large_string": "<i8", "string": "<i4"}
    bounds = np.frombuffer(offsets, widths[kind.args[0]])[start : start + count + 1]
    return [text[a:b].decode("utf-8") for a, b in pairwise(bounds)]


def _dtype(record: PickledObject) -> np.dtype:
    code = record.args[0]
    if record.name != "numpy.dtype" or not _DTYPE.fullmatch(code):
        raise UnreadablePickle(f"holds numpy values of an unexpected kind ({str(code)[:20]})")
    byte_order = record.state[1] if record.state else "="
    return np.dtype(code).newbyteorder(byte_order)


def row_fields(row: PickledObject) -> dict[str, Any]:
    """The labels and values of a pickled pandas Series."""
    manager = row.state.get("_mgr") or row.state["_data"]  # pandas 1.1 renamed it
    content = manager.state[-1]["0.14.1"]  # so pandas 0.14 to 3 name the layout
    (axis,), (block,) = content["axes"], content["blocks"]
    _, index = axis.args
    return dict(zip(array_values(index["data"]), array_values(block["values"]), strict=True))
