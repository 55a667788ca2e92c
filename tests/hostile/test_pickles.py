"""Files that would run code where they are trusted, through the commands that read them: one line, nothing run."""

from __future__ import annotations

import copyreg
import io
import json
import os
import pickle
import shutil
import struct
import sys
import warnings
import zipfile
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from support.attacks import CONTAINERS, EXTENSION, FUNCTIONS, INSTRUCTIONS, attack, in_container, in_features
from support.road import draw_photos, draw_set, run, save_captioner
from support.small import feature_file, flags, options
from support.small import run as train

CASES = [(i, f) for i in INSTRUCTIONS for f in (FUNCTIONS if i in ("REDUCE", "INST", "OBJ") else FUNCTIONS[:2])]
NAMED = [f"{instruction}-{function}" for instruction, function in CASES]


@pytest.fixture
def canary(tmp_path, monkeypatch):
    """A file that is there once code has run; all that an attack would find on a machine is there for it."""
    place = tmp_path / "canary"
    touch = tmp_path / "touch"
    touch.write_text(f"#!/bin/sh\n: > {place}\n")
    touch.chmod(0o755)
    (tmp_path / "hostile_module.py").write_text(f"open({str(place)!r}, 'w')\nvalue = 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "hostile_module", raising=False)
    copyreg.add_extension("os", "system", EXTENSION)
    yield place
    copyreg.remove_extension("os", "system", EXTENSION)


def refused(capsys, *words) -> str:
    """The one line with which a command ends."""
    status, _, err = run(capsys, *words)
    assert status == 1
    said = [line for line in err if line.startswith("clipcap: error: ")]
    assert len(said) == 1 and not [line for line in err if "Traceback" in line]
    assert len(said[0]) < 700
    return said[0]


@pytest.mark.parametrize(("instruction", "function"), CASES, ids=NAMED)
def test_the_attacks_run_where_they_are_trusted(instruction, function, canary):
    payload = attack(instruction, "os.system" if instruction.startswith("EXT") else function, canary)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        with suppress(TypeError, AttributeError):
            pickle.loads(payload)
    assert canary.exists()


@pytest.mark.parametrize(("instruction", "function"), CASES, ids=NAMED)
def test_as_feature_files(instruction, function, canary, tmp_path, capsys):
    path = tmp_path / "f.pkl"
    path.write_bytes(in_features(attack(instruction, function, canary)))
    assert str(path) in refused(capsys, "features", "info", path)
    assert not canary.exists()


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    return draw_photos(tmp_path_factory.mktemp("photo"), 1)[0]


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_as_checkpoints_and_encoders(instruction, container, canary, photo, tmp_path, capsys):
    path, function = tmp_path / "c.pt", FUNCTIONS[INSTRUCTIONS.index(instruction) % len(FUNCTIONS)]
    path.write_bytes(in_container(attack(instruction, function, canary), container))
    common = ("--img", photo, "--device", "cpu")
    assert str(path) in refused(capsys, "predict", "--load_pt", path, *common)
    assert str(path) in refused(capsys, "explain", "--load_pt", "demo", "--clip_model_type", path, *common)
    assert not canary.exists()


@pytest.fixture(scope="module")
def finished(tmp_path_factory, lm_folder):
    """A finished run: (flags, its folder)."""
    folder = tmp_path_factory.mktemp("run")
    chosen = options(feature_file(folder / "f.pkl"), lm_folder, folder / "run", epochs=1)
    train(folder / "f.pkl", lm_folder, folder / "run", epochs=1)
    return chosen, folder / "run"


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_as_the_state_of_a_training(instruction, container, finished, canary, capsys):
    chosen, folder = finished
    state = folder / "clipcap-last" / "training_state.pt"
    state.write_bytes(in_container(attack(instruction, "os.system", canary), container))
    assert str(state) in refused(capsys, "train", *flags(chosen), "--resume")
    assert not canary.exists()


@pytest.fixture(scope="module")
def captioner(tmp_path_factory, lm_folder, clip_file):
    return save_captioner(tmp_path_factory.mktemp("c") / "captioner", lm_folder, clip_file, tune="none")


WEIGHT_FILES = ("pytorch_model.bin", "adapter_model.bin", "model.safetensors")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("name", WEIGHT_FILES)
def test_as_weights_of_a_language_model(name, container, canary, lm_folder, captioner, photo, tmp_path, capsys):
    """Where transformers itself reads the file: no weights but these, of this name."""
    folder = tmp_path / "lm"
    shutil.copytree(lm_folder, folder)
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(in_container(attack("REDUCE", "os.system", canary), container))
    line = refused(capsys, "predict", "--load_pt", captioner, "--lm", folder, "--img", photo, "--device", "cpu")
    assert str(folder) in line
    assert not canary.exists()


@pytest.mark.parametrize("answer", ["y\n", ""])
@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_code_beside_the_weights_is_neither_run_nor_offered(
    file, answer, canary, lm_folder, captioner, photo, tmp_path, capsys, monkeypatch
):
    folder = tmp_path / "lm"
    shutil.copytree(lm_folder, folder)
    code = f"open({str(canary)!r}, 'w')\nfrom transformers import GPT2Config as C, GPT2LMHeadModel as M\n"
    (folder / "evil.py").write_text(code + "from transformers import PreTrainedTokenizerFast as T\n")
    content = json.loads((folder / file).read_text())
    content["auto_map"] = {
        "AutoConfig": "evil.C",
        "AutoModelForCausalLM": "evil.M",
        "AutoTokenizer": ["evil.T", "evil.T"],
    }
    content |= {"model_type": "evil"} if file == "config.json" else {"tokenizer_class": "T"}
    (folder / file).write_text(json.dumps(content))
    monkeypatch.setattr(sys, "stdin", io.StringIO(answer * 9))
    status, _, err = run(capsys, "predict", "--load_pt", captioner, "--lm", folder, "--img", photo, "--device", "cpu")
    assert not canary.exists()
    assert not any("[y/N]" in line or "Traceback" in line for line in err)
    assert status in (0, 1)  # a tokenizer of a class that is not known is read by what its files say


class Scripted(torch.nn.Module):
    """A network whose archive runs code when it is loaded."""

    def __init__(self):
        super().__init__()
        self.proj = torch.nn.Linear(2, 2)

    @torch.jit.export
    def __getstate__(self):
        return (torch.ones(2), self.training)

    @torch.jit.export
    def __setstate__(self, state: tuple[torch.Tensor, bool]):
        torch.save(state[0], "canary")
        self.training = state[1]

    def forward(self, x):
        return self.proj(x)


@pytest.mark.filterwarnings("ignore")
def test_a_torchscript_archive_is_read_without_running_it(photo, tmp_path, capsys, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # where the code would write
    path = tmp_path / "clip.pt"
    torch.jit.script(Scripted()).save(str(path))
    line = refused(
        capsys, "explain", "--load_pt", "demo", "--clip_model_type", path, "--img", photo, "--device", "cpu"
    )
    assert str(path) in line
    assert not os.path.exists("canary")
    with suppress(RuntimeError):
        torch.jit.load(str(path))
    assert os.path.exists("canary")  # what torch itself does with it


def stretched() -> dict[str, torch.Tensor]:
    return {"gpt.a": torch.zeros(1, dtype=torch.float16).expand(10**6, 10**7)}


def greedy_zip() -> bytes:
    """A compressed archive of 64 MB in as many kB."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        with archive.open("archive/data.pkl", "w") as member:
            for _ in range(64):
                member.write(bytes(2**20))
        archive.writestr("archive/version", "3\n")
    return stream.getvalue()


def saved(value) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


BOMBS = {
    "a stretched number": lambda: saved(stretched()),
    "a zip bomb": greedy_zip,
    "a storage of a petabyte": lambda: in_container(
        b"\x80\x02((X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
        b"\x8a\x08" + struct.pack("<q", 2**50) + b"Ntt."[:2] + b"Q.", "legacy"),
    "deep lists": lambda: in_container(b"\x80\x02" + b"]" * 20_000 + b"a" * 19_999 + b".", "zip"),
    "a text of 4 GB": lambda: in_container(b"\x80\x02X\xff\xff\xff\xff.", "zip"),
    "a memo index": lambda: in_container(b"\x80\x02}r\xff\xff\xff\x7f.", "zip"),
    "an archive of nothing": lambda: in_container(b"", "zip"),
    "a path that climbs": lambda: in_container(b"\x80\x02}.", "zip").replace(b"archive/", b"../../a/"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BOMBS)
def test_checkpoints_that_would_fill_the_memory(kind, photo, tmp_path, capsys):
    path = tmp_path / "c.pt"
    path.write_bytes(BOMBS[kind]())
    for words in (["--load_pt", path], ["--load_pt", "demo", "--clip_model_type", path]):
        command = "predict" if len(words) == 2 else "explain"
        assert str(path) in refused(capsys, command, *words, "--img", photo, "--device", "cpu")


def header(length: int, text: bytes) -> bytes:
    return struct.pack("<Q", length) + text


SAFETENSORS = {
    "a header of 2**60 bytes": header(2**60, b"{}"),
    "no JSON": header(2, b"[["),
    "deep nesting": header(100_000, b"[" * 100_000),
    "a tensor beyond the end": header(59, b'{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,36000]}}  '),
    "a shape of 2**62": header(68, b'{"a":{"dtype":"F32","shape":[4611686018427387904],"data_offsets":[0,4]}}'),
    "nothing": b"",
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_hostile_safetensors(kind, captioner, photo, tmp_path, capsys):
    folder = tmp_path / "c"
    shutil.copytree(captioner, folder)
    (folder / "model.safetensors").write_bytes(SAFETENSORS[kind])
    assert str(folder) in refused(capsys, "predict", "--load_pt", folder, "--img", photo, "--device", "cpu")


def changed(path: Path, **changes) -> None:
    content = json.loads(path.read_text())
    content["model"].update(changes)
    path.write_text(json.dumps(content))


CONFIGS = {
    "huge clip_dim": lambda p: changed(p, clip_dim=10**9),
    "huge prefix": lambda p: changed(p, prefix_length=10**9),
    "huge layers": lambda p: changed(p, mapping_type="transformer", num_layers=10**9),
    "huge clip tokens": lambda p: changed(p, mapping_type="transformer", prefix_length_clip=10**9),
    "huge rank": lambda p: changed(p, tune="lora", lora_rank=10**9),
    "no heads": lambda p: changed(p, num_heads=0),
    "a list for a number": lambda p: changed(p, clip_dim=[1]),
    "an unknown option": lambda p: changed(p, __class__="os.system"),
    "NaN for a number": lambda p: changed(p, prefix_length=float("nan")),
    "deep nesting": lambda p: p.write_text("[" * 100_000),
    "no object": lambda p: p.write_text("3"),
    "not UTF-8": lambda p: p.write_bytes(b"\xff\xfe{}"),
    "nothing": lambda p: p.write_bytes(b""),
    "a version of text": lambda p: p.write_text('{"format_version": "x", "model": {}}'),
    "another's path as the language model": lambda p: changed(p, lm="../../../../etc"),
}


@pytest.mark.parametrize("kind", CONFIGS)
def test_hostile_configurations(kind, captioner, photo, tmp_path, capsys):
    folder = tmp_path / "c"
    shutil.copytree(captioner, folder)
    CONFIGS[kind](folder / "config.json")
    refused(capsys, "predict", "--load_pt", folder, "--img", photo, "--device", "cpu")


LM_CONFIGS = {
    "layers": {"n_layer": 10**9},
    "width": {"n_embd": 10**12},
    "words": {"vocab_size": 10**12},
    "negative": {"vocab_size": -1},
    "text": {"n_layer": "x"},
    "list": {"n_embd": [1]},
    "positions": {"n_positions": 10**12},
    "heads": {"n_head": 0},
    "a kernel from elsewhere": {"_attn_implementation": "somebody/kernel"},
    "an unknown activation": {"activation_function": "os.system"},
}


@pytest.mark.parametrize("kind", LM_CONFIGS)
def test_hostile_configurations_of_language_models(kind, captioner, lm_folder, photo, tmp_path, capsys):
    folder = tmp_path / "lm"
    shutil.copytree(lm_folder, folder)
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**content, **LM_CONFIGS[kind]}))
    line = refused(capsys, "predict", "--load_pt", captioner, "--lm", folder, "--img", photo, "--device", "cpu")
    assert str(folder) in line


TOKENIZERS = {
    "nothing": b"",
    "deep nesting": b"[" * 100_000,
    "no object": b"3",
    "another model": b'{"model": {"type": "os.system"}}',
    "not UTF-8": b"\xff\xfe",
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_hostile_tokenizers(kind, captioner, photo, tmp_path, capsys):
    folder = tmp_path / "c"
    shutil.copytree(captioner, folder)
    (folder / "tokenizer" / "tokenizer.json").write_bytes(TOKENIZERS[kind])
    line = refused(capsys, "predict", "--load_pt", folder, "--img", photo, "--device", "cpu")
    assert str(folder) in line


def test_a_hostile_encoder_ends_parsing_before_anything_is_written(canary, tmp_path, capsys):
    path, photos = tmp_path / "c.pt", draw_set(tmp_path / "set", 1)
    path.write_bytes(in_container(attack("REDUCE", "os.system", canary), "zip"))
    words = ("--data_path", photos, "--clip_model_type", path, "--out", tmp_path / "f.pkl", "--device", "cpu")
    assert str(path) in refused(capsys, "parse", "custom", *words)
    assert not canary.exists() and not (tmp_path / "f.pkl").exists()
