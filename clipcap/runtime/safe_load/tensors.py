"""The bytes of a torch storage inside a pickle: torch's own format, written the same every time and read by hand.

A pickled tensor holds the bytes of a `torch.save`d storage. torch writes a memory address into them (the storage's
key), so that no two files are alike; and `torch.load` before 2.6 can be made to run code. The format is small and
has not changed since 2017, hence both directions are here.
"""

from __future__ import annotations

import io
import pickle
import re
import struct
import zipfile

import numpy as np
import torch
from torch import Tensor

from clipcap.runtime.safe_load.unpickle import Named, PickledObject, UnreadablePickle, plain_data

MAGIC = 0x1950A86A20F9469CFC6C
PROTOCOL = 1001
_SYSTEM = {
    "protocol_version": PROTOCOL,
    "little_endian": True,
    "type_sizes": {"short": 2, "int": 4, "long": 4},
}
_KEY = "0"  # torch: the address of the storage
STORAGES = {
    "torch.HalfStorage": torch.float16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
}
_INERT = re.compile("|".join(map(re.escape, STORAGES)))


def storage_bytes(values: np.ndarray) -> bytes:
    """A float16 or float32 array as the bytes that `torch.save` would write of its storage, address apart."""
    storage_class = {"float16": torch.HalfStorage, "float32": torch.FloatStorage}[values.dtype.name]
    stream = io.BytesIO()
    for part in (MAGIC, PROTOCOL, _SYSTEM):
        pickle.dump(part, stream, protocol=2)
    reference = pickle.dumps(("storage", storage_class, _KEY, "cpu", values.size, None), protocol=2)
    stream.write(reference.removesuffix(pickle.STOP) + pickle.BINPERSID + pickle.STOP)
    pickle.dump([_KEY], stream, protocol=2)
    stream.write(struct.pack("<q", values.size))
    return b"".join((stream.getvalue(), np.ascontiguousarray(values).reshape(-1).view(np.uint8).data))


def load_storage(data: bytes | str) -> Tensor:
    """The values of a storage as a 1-D tensor in memory of its own; CUDA storages come to the CPU.

    Args:
        data: what `torch.save` wrote, in the format of before torch 1.6 or the zip of after; as text by Python 2.
    """
    data = data.encode("latin-1") if isinstance(data, str) else data
    return _from_zip(data) if data[:2] == b"PK" else _from_stream(data)


def _from_stream(data: bytes) -> Tensor:
    stream = io.BytesIO(data)
    magic, protocol, system = (plain_data(stream, {}, _INERT) for _ in range(3))
    if (magic, protocol) != (MAGIC, PROTOCOL) or not system["little_endian"]:
        raise UnreadablePickle("holds a tensor that torch did not write")
    reference = plain_data(stream, {}, _INERT)
    plain_data(stream, {}, _INERT)  # the list of keys: this one storage
    dtype, _, count = describe(reference)
    if struct.unpack("<q", stream.read(8)) != (count,):
        raise UnreadablePickle("holds a tensor whose sizes contradict each other")
    return stored_values(memoryview(data)[stream.tell() :], dtype, count)


def _from_zip(data: bytes) -> Tensor:
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        index = next(name for name in archive.namelist() if name.endswith("data.pkl"))
        folder = index.removesuffix("data.pkl")
        dtype, key, count = describe(plain_data(io.BytesIO(stored_member(archive, index)), {}, _INERT))
        if f"{folder}byteorder" in archive.namelist() and stored_member(archive, f"{folder}byteorder") != b"little":
            raise UnreadablePickle("holds a tensor of a big-endian machine")
        return stored_values(memoryview(stored_member(archive, f"{folder}data/{key}")), dtype, count)


def stored_member(archive: zipfile.ZipFile, name: str) -> bytes:
    """The bytes of a member of an archive of torch, stored without compression."""
    if archive.getinfo(name).compress_type != zipfile.ZIP_STORED:  # torch never compresses; a zip bomb does
        raise UnreadablePickle("holds a compressed tensor, which torch does not write")
    return archive.read(name)


def describe(reference: PickledObject) -> tuple[torch.dtype, str, int]:
    """(dtype, key, number of values) of a storage, from its persistent id."""
    kind, storage_class, key, _, count, *_ = reference.args
    if kind != "storage" or not isinstance(storage_class, Named) or type(count) is not int or count < 0:
        raise UnreadablePickle("holds a tensor that torch did not write")
    if storage_class.name not in STORAGES or not isinstance(key, str):
        raise UnreadablePickle(f"holds numbers of a kind that no network here has ({storage_class.name[:60]})")
    return STORAGES[storage_class.name], key, count


def stored_values(data: memoryview | bytearray, dtype: torch.dtype, count: int) -> Tensor:
    """`count` numbers out of bytes, as a 1-D tensor; a bytearray becomes its memory, other bytes are copied."""
    size = count * dtype.itemsize
    if len(data) < size:
        raise UnreadablePickle(f"holds a tensor of {size:,} bytes, but the file has only {len(data):,}")
    if not count:
        return torch.empty(0, dtype=dtype)
    return torch.frombuffer(data if isinstance(data, bytearray) else bytearray(data[:size]), dtype=dtype, count=count)
