"""Fuzz the readers of weights: files of torch.save in both formats, TorchScript archives, and what they hold.

python fuzz/weights.py fuzz/corpus/weights -max_total_time=60
"""

from __future__ import annotations

import sys

import atheris
from in_memory import folder_in_memory

with atheris.instrument_imports(include=["clipcap", "pickletools", "zipfile"]):
    from clipcap.errors import ClipcapError
    from clipcap.models.encoders.openai_weights import ANCHORS as CLIP
    from clipcap.models.original import ANCHORS as CAPTIONER
    from clipcap.runtime.safe_load.torchscript import is_scripted, scripted_state
    from clipcap.runtime.safe_load.unpickle import UnreadablePickle
    from clipcap.runtime.safe_load.weights import read_weights_file
    from clipcap.training.run_state import check_state

PLACE = folder_in_memory() / "w.pt"


def weights(data: bytes) -> None:
    """A file of torch.save: tensors by name that are finite, or one line."""
    PLACE.write_bytes(data)
    for anchors in (CAPTIONER, CLIP):
        try:
            found = read_weights_file(PLACE, anchors)
        except ClipcapError as error:
            assert "\n" not in str(error)
            continue
        assert found.tensors and "\n" not in found.note
        assert all(tensor.isfinite().all() for tensor in found.tensors.values() if tensor.is_floating_point())


def archive(data: bytes) -> None:
    """A TorchScript archive."""
    PLACE.write_bytes(data)
    try:
        if is_scripted(PLACE):
            scripted_state(PLACE)
    except UnreadablePickle:
        return


def training_state(data: bytes) -> None:
    """The content of a training state is sound, or one line says what is wrong."""
    from clipcap.runtime.safe_load.torch_file import load_tensors

    PLACE.write_bytes(data)
    try:
        content = load_tensors(PLACE)
    except Exception:  # `resume` reports whatever it is in one line
        return
    try:
        check_state(content, PLACE)
    except ClipcapError as error:
        assert "\n" not in str(error)


READERS = (weights, archive, training_state)


def one_input(data: bytes) -> None:
    """The first byte chooses the reader."""
    if data:
        READERS[data[0] % len(READERS)](data[1:])


if __name__ == "__main__":
    atheris.Setup(sys.argv, one_input)
    atheris.Fuzz()
