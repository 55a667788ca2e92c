"""Fuzz the entries of an index, which Arrow maps and believes: whatever the bytes, rows are read or refused.

python fuzz/entries.py fuzz/corpus/entries -max_total_time=60
"""

from __future__ import annotations

import sys

import atheris
from in_memory import folder_in_memory

with atheris.instrument_imports(include=["clipcap"]):
    from clipcap.errors import ClipcapError
    from clipcap.retrieval.entries import StoredCatalogue, map_entries

PLACE = folder_in_memory() / "entries.arrow"


def one_input(data: bytes) -> None:
    """A file of entries, of which every row is read."""
    PLACE.write_bytes(data)
    try:
        table = map_entries(PLACE)
        catalogue = StoredCatalogue([table], [0], [])
        for row in range(min(len(table), 1000)):
            catalogue.entry(row)
    except ClipcapError as error:
        assert "\n" not in str(error)


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
