"""Names of the hub: uploaded, downloaded, found in the cache; and one line where that cannot be."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time

import pytest
from conftest import REPO
from huggingface_hub import constants
from support.hub_stand_in import hub

from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import load_checkpoint, save_checkpoint
from clipcap.models.language_model import load_lm, load_lm_config, load_tokenizer
from clipcap.runtime.hub import fetch_repository
from clipcap.runtime.text import one_line


def python(code: str, home, **environment) -> subprocess.CompletedProcess:
    """A fresh process, since the hub's client reads its settings when it is imported."""
    settings = {"HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", **environment}
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=REPO,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_checkpoint_goes_to_the_hub_and_comes_back(make_model, tokenizer, tmp_path, monkeypatch):
    folder = save_checkpoint(make_model(), tokenizer, tmp_path / "run-best")
    photos = "[torch.linspace(-1, 1, 32), torch.linspace(1, 0, 32)]"
    captions = f"print(captioner({photos}))"
    push = "print(captioner.push_to_hub('someone/food', token='secret'))"
    load = "import torch; from clipcap import Captioner; captioner = Captioner.from_pretrained({!r})"
    with hub() as server:
        sent = python(f"{load.format(str(folder))}; {push}; {captions}", tmp_path / "a", HF_ENDPOINT=server.address)
        assert sent.returncode == 0, sent.stderr
        assert server.private == {"someone/food": True}
        uploaded = server.repositories["someone/food"]
        here = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
        assert set(uploaded) - {".gitattributes"} == here
        assert uploaded["model.safetensors"] == (folder / "model.safetensors").read_bytes()
        there = f"{load.format('someone/food')}; {captions}"
        back = python(there, tmp_path / "b", HF_ENDPOINT=server.address)
        assert back.returncode == 0, back.stderr
    address, *said = sent.stdout.splitlines()
    assert address == f"{server.address}/someone/food"
    assert back.stdout.splitlines() == said
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "b" / "hub"))
    assert load_checkpoint("someone/food").model.config.prefix_length == 4  # offline, from the cache


def test_the_command_pushes_a_checkpoint_whose_card_names_the_repository(make_model, tokenizer, tmp_path):
    folder = save_checkpoint(make_model(), tokenizer, tmp_path / "run-best", note="- CIDEr-D: 1.234\n")
    command = "from clipcap.cli.main import main; raise SystemExit(main(['push', {!r}, 'someone/food', *{!r}]))"
    with hub() as server:
        settings = {"HF_ENDPOINT": server.address, "HF_TOKEN": "secret"}
        sent = python(command.format(str(folder), ["--public"]), tmp_path / "a", **settings)
        assert (sent.returncode, sent.stdout) == (0, f"{server.address}/someone/food\n"), sent.stderr
        assert not server.private["someone/food"]
        card = server.repositories["someone/food"]["README.md"].decode()
        assert 'from_pretrained("someone/food")("photo.jpg")' in card and "CIDEr-D: 1.234" in card
        refused = python(command.format(str(folder), []), tmp_path / "a", **{**settings, "HF_TOKEN": "wrong"})
    assert refused.returncode == 1 and len(refused.stderr.splitlines()) == 1
    assert 'from_pretrained(".")("photo.jpg")' in (folder / "README.md").read_text()


def test_a_run_that_could_not_be_uploaded_ends_before_any_work(tmp_path):
    code = "from clipcap import train; train(data='nowhere.pkl', push_to_hub='someone/food')"
    with hub() as server:
        done = python(code, tmp_path, HF_ENDPOINT=server.address, HF_TOKEN="wrong")
    assert "--push_to_hub someone/food: " in done.stderr and "hf auth login" in done.stderr


def test_what_the_hub_refuses_is_one_line(make_model, tokenizer, tmp_path):
    folder = save_checkpoint(make_model(), tokenizer, tmp_path / "run-best")
    code = f"""
from clipcap import Captioner, ClipcapError
from clipcap.models.checkpoint import load_checkpoint
captioner = Captioner.from_pretrained({str(folder)!r})
for what in (lambda: captioner.push_to_hub("someone/food", token="wrong"), lambda: load_checkpoint("someone/absent")):
    try:
        what()
    except ClipcapError as error:
        print(error)
"""
    with hub() as server:
        done = python(code, tmp_path / "home", HF_ENDPOINT=server.address)
    refused, absent = done.stdout.splitlines()
    assert refused.startswith(f"someone/food: not uploaded to {server.address}: ") and "401" in refused
    assert absent.startswith("--load_pt someone/absent: no such path here, and the hub says: ")


def test_a_hub_that_cannot_be_reached_is_said_within_seconds(monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
    started = time.monotonic()
    with pytest.raises(ClipcapError, match=r"'someone/food' is not .*http://127.0.0.1:9 cannot be reached"):
        load_checkpoint("someone/food")
    assert time.monotonic() - started < 10


def test_offline_a_name_says_how_to_bring_the_files():
    said = r"the checkpoint 'someone/food' is not on this machine .*HF_HUB_OFFLINE is set.*`hf download someone/food`"
    with pytest.raises(ClipcapError, match=said):
        load_checkpoint("someone/food")
    with pytest.raises(ClipcapError, match=r"the language model 'gpt2-absent' is not .* or pass --lm FOLDER"):
        load_lm("gpt2-absent")


@pytest.mark.parametrize("name", ["./runs/food", "runs/food.pt", "/nowhere/food", "~/food", "a/b/c", "runs"])
def test_local_paths_are_no_names_of_the_hub(name):
    assert fetch_repository(name, "checkpoint", "--load_pt") == name


def test_a_mistyped_folder_is_no_name_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    with pytest.raises(ClipcapError, match=r"runs/fodo: no such checkpoint"):
        load_checkpoint("runs/fodo")


class TestLanguageModel:
    def test_an_incomplete_one_is_refused_instead_of_filled_with_random_numbers(self, lm_folder, tmp_path):
        from safetensors.torch import load_file, save_file

        folder = shutil.copytree(lm_folder, tmp_path / "lm")
        state = load_file(folder / "model.safetensors")
        save_file({k: v for k, v in state.items() if "h.1.mlp" not in k}, folder / "model.safetensors")
        with pytest.raises(ClipcapError, match=r"lm: its weights lack transformer\.h\.1\.mlp\.\S+: the files are"):
            load_lm(str(folder))

    def test_one_saved_without_its_head_is_whole(self, lm_folder, tmp_path):
        model = load_lm(str(lm_folder))
        model.transformer.save_pretrained(tmp_path / "base")
        again = load_lm(str(tmp_path / "base"))
        assert all(a.equal(b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))

    def test_a_truncated_one_is_said_in_one_line(self, lm_folder, tmp_path):
        folder = shutil.copytree(lm_folder, tmp_path / "lm")
        weights = folder / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        with pytest.raises(ClipcapError, match=r"--lm .*lm: cannot load the language model") as error:
            load_lm(str(folder))
        assert "\n" not in str(error.value)

    def test_half_precision_files_are_used_in_float32(self, lm_folder, tmp_path):
        import torch

        load_lm(str(lm_folder)).half().save_pretrained(tmp_path / "half")
        assert {p.dtype for p in load_lm(str(tmp_path / "half")).parameters()} == {torch.float32}

    def test_encoders_and_translators_are_refused(self, tmp_path):
        from transformers import BertConfig, T5Config

        for config in (BertConfig(), T5Config()):
            config.save_pretrained(tmp_path / config.model_type)
            with pytest.raises(ClipcapError, match=f"is a {config.model_type} model, which does not continue text"):
                load_lm_config(str(tmp_path / config.model_type))

    def test_missing_folder_and_empty_tokenizer(self, lm_folder, tmp_path):
        with pytest.raises(ClipcapError, match=r"--lm ./nowhere: there is no such folder"):
            load_lm("./nowhere")
        bare = tmp_path / "bare"
        bare.mkdir()
        shutil.copy(lm_folder / "config.json", bare)
        with pytest.raises(ClipcapError, match="bare"):
            load_tokenizer(str(bare))


def test_one_line_is_one_bounded_line():
    assert one_line(ValueError("a\n  b\tc")) == "a b c"
    assert one_line(KeyError()) == "KeyError"
    assert len(one_line(ValueError("x" * 9999))) == 300
