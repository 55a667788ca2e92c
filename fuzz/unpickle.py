"""Fuzz the readers of pickles: feature files, storages inside of them, TorchScript archives.

python fuzz/unpickle.py fuzz/corpus/unpickle -max_total_time=60
"""

from __future__ import annotations

import sys

import atheris
from in_memory import folder_in_memory

with atheris.instrument_imports(include=["clipcap", "pickletools"]):
    from clipcap.errors import ClipcapError
    from clipcap.features.files import read_features
    from clipcap.runtime.safe_load.tensors import load_storage
    from clipcap.runtime.safe_load.torchscript import is_scripted, scripted_state
    from clipcap.runtime.safe_load.unpickle import UnreadablePickle

PLACE = folder_in_memory() / "f.pkl"


def feature_file(data: bytes) -> None:
    """A feature pickle, with everything that is asked of features."""
    PLACE.write_bytes(data)
    try:
        features = read_features(PLACE)
    except ClipcapError as error:
        assert "\n" not in str(error)
        return
    assert len(features.captions) == len(features.caption_rows)
    assert len(features.image_ids) == features.num_images
    features.rows([0]), list(features.captions)


def storage(data: bytes) -> None:
    """A torch storage; `plain_data` says in one line whatever it raises."""
    try:
        load_storage(data)
    except Exception:
        return


def archive(data: bytes) -> None:
    """A TorchScript archive."""
    PLACE.write_bytes(data)
    try:
        if is_scripted(PLACE):
            scripted_state(PLACE)
    except UnreadablePickle:
        return


READERS = (feature_file, storage, archive)


def one_input(data: bytes) -> None:
    """The first byte chooses the reader."""
    if data:
        READERS[data[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
