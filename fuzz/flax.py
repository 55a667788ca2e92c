"""Fuzz the reader of parameters that flax stored: whatever the bytes, arrays by name or one line.

python fuzz/flax.py fuzz/corpus/flax -max_total_time=60
"""

from __future__ import annotations

import sys

import atheris
from in_memory import folder_in_memory

with atheris.instrument_imports(include=["clipcap"]):
    from clipcap.runtime.safe_load.flax_msgpack import MsgpackError, read_parameters

PLACE = folder_in_memory() / "flax_model.msgpack"


def one_input(data: bytes) -> None:
    """A file of parameters, of which every array is read."""
    PLACE.write_bytes(data)
    try:
        found = read_parameters(PLACE)
    except MsgpackError:
        return
    for stored in found.values():
        assert stored.tensor().shape == stored.shape


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
