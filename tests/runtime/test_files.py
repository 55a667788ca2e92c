"""What libraries say of a full disk becomes one line that says so."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from support.disks import resize
from transformers import AutoTokenizer

from clipcap.errors import ClipcapError
from clipcap.runtime.disk_arrays import write_npy
from clipcap.runtime.files import replaced_folder, writing


def save_tokenizer(lm_folder, place):
    AutoTokenizer.from_pretrained(lm_folder).save_pretrained(place)


def save_tensors(_, place):
    torch.save({"a": torch.randn(9000)}, place / "state.pt")


def save_array(_, place):
    with open(place / "a.npy", "wb") as file:
        write_npy(file, np.arange(9000))


@pytest.mark.parametrize("save", [save_tokenizer, save_tensors, save_array])
def test_a_full_disk_is_said_whoever_writes(save, lm_folder, tmp_path, small_disk):
    save(lm_folder, tmp_path)
    pages = max(path.stat().st_size for path in tmp_path.iterdir() if path.is_file()) // 4096
    said = r"model: cannot be written \(.*No space left on device.*\): free some space or choose another place"
    for size in range(1, pages + 1):
        place = resize(small_disk, size * 4096) / "model"
        with pytest.raises(ClipcapError, match=said), writing(place), replaced_folder(place) as draft:
            save(lm_folder, draft)
        assert not list(small_disk.iterdir())


def test_a_mistake_in_the_code_is_no_full_disk(tmp_path):
    with pytest.raises(KeyError), writing(tmp_path):
        raise KeyError("name")


@pytest.mark.parametrize("values", [np.arange(9), np.zeros((3, 2), np.float16), np.arange(6).reshape(2, 3)[:, ::2]])
def test_arrays_have_the_bytes_of_numpy(values):
    ours, numpys = io.BytesIO(), io.BytesIO()
    write_npy(ours, values)
    np.save(numpys, np.ascontiguousarray(values))
    assert ours.getvalue() == numpys.getvalue()
