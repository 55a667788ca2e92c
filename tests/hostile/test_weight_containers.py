"""Weights in whatever holds them, and what lies in their place: read, or refused by what it is, not waited for."""

from __future__ import annotations

import gzip
import os
import pickle

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import load_checkpoint, save_checkpoint
from clipcap.models.encoders.load import load_encoder
from clipcap.models.original import export_reference
from clipcap.runtime.safe_load.torch_file import load_tensors
from tests.hostile.test_weights import same, under


@pytest.fixture(scope="module")
def state(lm_folder, tmp_path_factory, make_model):
    """A captioner's tensors under the original's names."""
    path = tmp_path_factory.mktemp("state") / "captioner.pt"
    export_reference(make_model(), path)
    return torch.load(path, weights_only=True)


def arrays(state):
    return {name: tensor.numpy() for name, tensor in state.items()}


def pickled(content, path):
    path.write_bytes(pickle.dumps(content))


CONTAINERS = {
    "arrays of NumPy": lambda s, path: torch.save(arrays(s), path),
    "arrays in the old format": lambda s, path: torch.save(
        {"model": arrays(s)}, path, _use_new_zipfile_serialization=False
    ),
    "a plain pickle of arrays": lambda s, path: pickled(arrays(s), path),
    "a plain pickle of tensors": lambda s, path: pickled(s, path),
    "a plain pickle of parameters": lambda s, path: pickled(
        {name: torch.nn.Parameter(tensor) for name, tensor in s.items()}, path
    ),
    "big-endian arrays": lambda s, path: torch.save({n: a.astype(">f4") for n, a in arrays(s).items()}, path),
    "a complex tensor beside them": lambda s, path: torch.save({**s, "freqs_cis": torch.ones(3) * 1j}, path),
    "whole numbers of two bytes beside them": lambda s, path: torch.save(
        {**s, "index": torch.ones(3, dtype=torch.uint16)}, path
    ),
}


@pytest.mark.parametrize("kind", CONTAINERS)
def test_weights_are_read_from(kind, state, lm_folder, tmp_path):
    CONTAINERS[kind](state, tmp_path / "c.pt")
    assert same(load_checkpoint(tmp_path / "c.pt", lm=str(lm_folder)).model, state)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
def test_numbers_of_eight_bits_are_the_weights(zipped, state, lm_folder, tmp_path):
    name = "clip_project.model.0.weight"
    eight = {**state, name: state[name].to(torch.float8_e4m3fn)}
    torch.save(eight, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    assert same(load_checkpoint(tmp_path / "c.pt", lm=str(lm_folder)).model, {**state, name: eight[name].float()})
    eight[name].view(torch.uint8)[0] = 0x7F  # NaN
    torch.save(eight, tmp_path / "c.pt", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ClipcapError, match=f"{name} holds NaN"):
        load_checkpoint(tmp_path / "c.pt", lm=str(lm_folder))


def test_a_traced_captioner_is_read_as_data(state, lm_folder, tmp_path):
    from tests.hostile.test_weights import module_of

    class Traced(torch.nn.Module):
        def __init__(self, network):
            super().__init__()
            self.clip_project, self.gpt = network.clip_project, network.gpt

        def forward(self, x):
            return x

    with pytest.warns((FutureWarning, DeprecationWarning)):
        torch.jit.save(torch.jit.trace(Traced(module_of(state)), torch.ones(1)), str(tmp_path / "c.pt"))
    assert same(load_checkpoint(tmp_path / "c.pt", lm=str(lm_folder)).model, state)


def test_a_checkpoint_called_a_tar_is_found_in_its_folder(state, lm_folder, tmp_path):
    torch.save({"state_dict": state, "epoch": 3}, tmp_path / "model_best.pth.tar")
    assert same(load_checkpoint(tmp_path, lm=str(lm_folder)).model, state)


FORMS = {
    "sparse": (lambda t: t.to_sparse(), r"is stored in a form of its own \(sparse_tensor\)"),
    "whole numbers": (lambda t: t.to(torch.int8), "is stored as int8, as of a quantised network"),
    "complex numbers": (lambda t: t.to(torch.complex64), "is stored as complex64"),
    "without numbers": (lambda t: torch.empty(t.shape, device="meta"), "is stored in a form of its own"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_tensor_in_another_form_is_named(form, state, lm_folder, tmp_path):
    change, said = FORMS[form]
    name = "clip_project.model.0.weight"
    torch.save({**state, name: change(state[name])}, tmp_path / "c.pt")
    with pytest.raises(ClipcapError, match=f"{name} {said}"):
        load_checkpoint(tmp_path / "c.pt", lm=str(lm_folder))


def test_whole_numbers_are_no_weights_of_a_checkpoint_or_an_encoder(make_model, tokenizer, clip_file, tmp_path):
    from safetensors.torch import load_file

    folder = save_checkpoint(make_model(), tokenizer, tmp_path / "saved")
    stored = load_file(folder / "model.safetensors")
    stored["mapper.model.0.weight"] = stored["mapper.model.0.weight"].to(torch.int8)
    save_file(stored, folder / "model.safetensors")
    with pytest.raises(ClipcapError, match=r"mapper\.model\.0\.weight is stored as int8"):
        load_checkpoint(folder)
    clip = torch.load(clip_file, weights_only=True)
    torch.save({**clip, "visual.proj": clip["visual.proj"].to(torch.int32)}, tmp_path / "clip.pt")
    with pytest.raises(ClipcapError, match=r"visual\.proj is stored as int32"):
        load_encoder(str(tmp_path / "clip.pt"), "cpu")


def test_one_array_under_many_names_takes_no_memory_for_each(tmp_path):
    numbers = np.zeros(1000, np.float32)
    torch.save({str(n): numbers for n in range(100)}, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="4 times its size"):
        load_tensors(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n",
            "is a pointer of Git LFS.*git lfs pull",
        ),
        (b"\n<!DOCTYPE html><html>Virus scan warning</html>", "is a web page.*download it again"),
        (gzip.compress(b"x" * 100), "is compressed by gzip"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), r"is weights of Keras"),
        (b"GGUF\x03" + bytes(99), r"is a language model.*--lm with the ending \.gguf"),
    ],
    ids=["lfs", "page", "gzip", "keras", "gguf"],
)
@pytest.mark.parametrize("name", ["c.pt", "model.safetensors"])
def test_what_a_download_left_in_place_of_weights_is_named(name, content, said, tmp_path):
    (tmp_path / name).write_bytes(content)
    for load in (load_checkpoint, lambda path: load_encoder(str(path), "cpu")):
        with pytest.raises(ClipcapError, match=f"{tmp_path / name}: {said}"):
            load(tmp_path / name)


def test_an_archive_that_is_cut_short_is_said_to_be(state, tmp_path):
    torch.save(state, tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes((tmp_path / "c.pt").read_bytes()[:-500])
    with pytest.raises(ClipcapError, match=r"is cut short: an archive of torch\.save without its end"):
        load_checkpoint(tmp_path / "c.pt")


@pytest.mark.parametrize("name", ["c.pt", "model.safetensors", "clip.pt", "locked_image.safetensors"])
def test_pipes_are_not_waited_for(name, make_model, tokenizer, tmp_path):
    os.mkfifo(tmp_path / name)
    for load in (load_checkpoint, lambda path: load_encoder(str(path), "cpu")):
        for path in (tmp_path, tmp_path / name):
            with pytest.raises(ClipcapError) as error:
                load(path)
            assert "\n" not in str(error.value)
    folder = save_checkpoint(make_model(), tokenizer, tmp_path / "saved")
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")
    with pytest.raises(ClipcapError, match="is a pipe, not a file"):
        load_checkpoint(folder)


def test_links_that_lead_nowhere_are_named(tmp_path):
    (tmp_path / "c.pt").symlink_to("gone.pt")
    with pytest.raises(ClipcapError, match=r"a link to gone\.pt, which is not there"):
        load_checkpoint(tmp_path / "c.pt")


def test_a_name_with_a_nul_character_is_one_line(tmp_path, capsys):
    from clipcap.cli.main import main

    with pytest.raises(ClipcapError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "a\0b")
    (tmp_path / "run.yaml").write_text('img: ["a\\0b"]\n')
    assert main(["predict", "--config", str(tmp_path / "run.yaml")]) == 1
    assert capsys.readouterr().err.count("clipcap: error: ") == 1


def test_parts_of_a_network_are_joined_first(state, tmp_path):
    for number in range(2):
        torch.save({"module": state}, tmp_path / f"mp_rank_0{number}_model_states.pt")
    with pytest.raises(ClipcapError, match="tensors in parallel"):
        load_checkpoint(tmp_path)
    torch.save({"module": {name: torch.empty(0) for name in state}}, tmp_path / "zero.pt")
    with pytest.raises(ClipcapError, match=r"its tensors are empty.*zero_to_fp32"):
        load_checkpoint(tmp_path / "zero.pt")


def test_an_adapter_inside_a_captioner_is_named(state, lm_folder, tmp_path):
    name = "gpt.transformer.h.0.attn.c_attn."
    adapted = {k.replace("c_attn.weight", "c_attn.base_layer.weight"): v for k, v in state.items()}
    torch.save({**adapted, f"{name}lora_A.default.weight": torch.ones(2, 64)}, tmp_path / "c.pt")
    with pytest.raises(ClipcapError, match=r"is of an adapter: merge it"):
        load_checkpoint(tmp_path / "c.pt", lm=str(lm_folder))


@pytest.mark.parametrize("flag", ["--load_pt", "--lm", "--clip_model_type", "--features"])
def test_an_empty_option_is_not_taken_for_its_default(flag, capsys):
    from clipcap.cli.main import main

    assert main(["predict", flag, ""]) == 1
    assert f"{flag} is empty" in capsys.readouterr().err


def test_arrays_from_other_devices_are_read(tmp_path):
    class OfDevice:
        """As torch pickles a tensor of a device whose storage it cannot write."""

        def __reduce__(self):
            from torch._utils import _rebuild_device_tensor_from_numpy

            return _rebuild_device_tensor_from_numpy, (np.arange(3.0), torch.float64, "xla:0", False)

    torch.save({"w": OfDevice()}, tmp_path / "x.pt")
    assert torch.equal(load_tensors(tmp_path / "x.pt")["w"], torch.arange(3.0, dtype=torch.float64))


def test_prefixes_of_compilers_and_processes_come_off_in_any_order(state, lm_folder, tmp_path):
    for prefix in ("_orig_mod.module.", "module._orig_mod.", "model.module._orig_mod."):
        torch.save({"model": under(prefix, state)}, tmp_path / "c.pt")
        assert same(load_checkpoint(tmp_path / "c.pt", lm=str(lm_folder)).model, state)
