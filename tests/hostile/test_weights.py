"""Weights as training frameworks leave them: found, what was left out named, nothing run or allocated for them."""

from __future__ import annotations

import argparse
import json
import os
import tracemalloc
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import load_checkpoint, save_checkpoint
from clipcap.models.encoders.load import load_encoder
from clipcap.models.language_model import load_lm, load_tokenizer
from clipcap.models.original import export_reference
from clipcap.runtime.safe_load.torch_file import load_tensors


class Trap:
    """An object that runs code where it is unpickled."""

    def __reduce__(self):
        return os.system, ("echo trapped > /dev/null",)


@pytest.fixture(scope="module")
def state(lm_folder, tmp_path_factory):
    """A captioner's tensors under the original's names."""
    from clipcap.models.caption_model import ClipCaptionModel
    from clipcap.models.config import ModelConfig

    torch.manual_seed(0)
    config = ModelConfig(clip_dim=32, prefix_length=4, lm=str(lm_folder), tune="full")
    path = tmp_path_factory.mktemp("state") / "captioner.pt"
    export_reference(ClipCaptionModel(config, load_lm(str(lm_folder))).eval(), path)
    return torch.load(path, weights_only=True)


def under(prefix: str, tensors: dict) -> dict:
    return {prefix + name: tensor for name, tensor in tensors.items()}


def module_of(tensors: dict) -> torch.nn.Module:
    """A network with these tensors, saved as an object."""
    root = torch.nn.Module()
    for name, tensor in tensors.items():
        *parts, last = name.split(".")
        module = root
        for part in parts:
            if part not in module._modules:
                module.add_module(part, torch.nn.Module())
            module = module._modules[part]
        module.register_parameter(last, torch.nn.Parameter(tensor, requires_grad=False))
    return root


WRAPPED = {
    "as they are": lambda s: s,
    "Lightning": lambda s: {
        "state_dict": under("model.", s),
        "epoch": 3,
        "hyper_parameters": argparse.Namespace(a=1),
    },
    "torch.compile": lambda s: under("_orig_mod.", s),
    "compiled inside": lambda s: {name.replace("gpt.", "gpt._orig_mod.", 1): t for name, t in s.items()},
    "data parallel": lambda s: {"model": under("module.", s), "optimizer": {"state": {}, "param_groups": []}},
    "with arguments": lambda s: {"model_state_dict": s, "args": argparse.Namespace(lr=1), "path": Path("x")},
    "with code": lambda s: {"model_state_dict": s, "trap": Trap(), (1, 2): {"a"}, "kind": torch.float16},
    "a name of its own": lambda s: {"captioner_weights": under("net.", s), "loss": 0.5},
    "twice wrapped": lambda s: {"checkpoint": {"state_dict": under("module.model.", s)}, "epoch": 1},
    "a whole network": lambda s: module_of(s),
    "a loss beside it": lambda s: {**under("model.", s), "criterion.weight": torch.ones(3)},
}


def same(model, state) -> bool:
    own = {f"clip_project.{k}": v for k, v in model.mapper.state_dict().items()}
    return all(torch.equal(state[name], tensor) for name, tensor in own.items())


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("kind", WRAPPED)
def test_whatever_stands_around_weights_they_load(kind, zipped, state, lm_folder, tmp_path):
    path = tmp_path / "c.ckpt"
    torch.save(WRAPPED[kind](state), path, _use_new_zipfile_serialization=zipped)
    loaded = load_checkpoint(path, lm=str(lm_folder))
    assert same(loaded.model, state)
    named = {"Lightning": "epoch", "with code": "trap (posix.system)", "a loss beside it": "criterion.weight"}
    assert named.get(kind, "") in loaded.summary


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".index.json"])
def test_in_every_container(suffix, state, lm_folder, tmp_path):
    path = tmp_path / f"model{suffix}"
    names = sorted(name for name in state if name != "gpt.lm_head.weight")  # tied: safetensors takes it once
    if suffix == ".safetensors":
        save_file({name: state[name].contiguous() for name in names}, path)
    elif suffix == ".index.json":
        path = tmp_path / "pytorch_model.bin.index.json"
        parts = {"a.bin": names[::2], "b.bin": names[1::2]}
        for file, own in parts.items():
            torch.save({name: state[name] for name in own}, tmp_path / file)
        places = {name: file for file, own in parts.items() for name in own}
        path.write_text(json.dumps({"weight_map": places}))
    else:
        torch.save(state, path)
    assert same(load_checkpoint(path, lm=str(lm_folder)).model, state)
    assert same(load_checkpoint(tmp_path, lm=str(lm_folder)).model, state)


def parts_of(state, folder, name):
    """The tensors in two files of a folder, under a name with {}."""
    names = sorted(name for name in state if name != "gpt.lm_head.weight")
    for number, own in enumerate((names[::2], names[1::2]), 1):
        save_file({one: state[one].contiguous() for one in own}, folder / name.format(number))
    return {one: name.format(2 - place % 2) for place, one in enumerate(names, 1)}


def deepspeed(state, folder):
    (folder / "global_step10").mkdir()
    (folder / "global_step8").mkdir()
    (folder / "latest").write_text("global_step10\n")
    torch.save({"module": {}, "ds_version": "0.12"}, folder / "global_step8" / "mp_rank_00_model_states.pt")
    torch.save({"module": state, "ds_version": "0.12"}, folder / "global_step10" / "mp_rank_00_model_states.pt")


def accelerate(state, folder):
    (folder / "pytorch_model").mkdir()
    torch.save({"module": state}, folder / "pytorch_model" / "mp_rank_00_model_states.pt")
    (folder / "random_states_0.pkl").write_bytes(b"x")


def trainer(state, folder):
    for number in (500, 1000):
        (folder / f"checkpoint-{number}").mkdir()
    torch.save(under("module.", state), folder / "checkpoint-1000" / "pytorch_model.bin")
    torch.save({}, folder / "checkpoint-500" / "pytorch_model.bin")


def an_index_of_another_name(state, folder):
    places = parts_of(state, folder, "model-0000{}-of-00002.safetensors")
    (folder / "diffusion_pytorch_model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


FOLDERS = {
    "DeepSpeed": deepspeed,
    "accelerate with DeepSpeed": accelerate,
    "transformers' trainer": trainer,
    "an index of another name": an_index_of_another_name,
    "parts without an index": lambda state, folder: parts_of(state, folder, "model-0000{}-of-00002.safetensors"),
    "a tuple in a file": lambda state, folder: torch.save((state, {"epoch": 3}), folder / "last.pth"),
}


@pytest.mark.parametrize("kind", FOLDERS)
def test_the_weights_in_a_folder_of_a_training_framework_are_found(kind, state, lm_folder, tmp_path):
    FOLDERS[kind](state, tmp_path)
    assert same(load_checkpoint(tmp_path, lm=str(lm_folder)).model, state)


def test_one_part_means_all_parts_and_a_missing_one_is_named(state, lm_folder, tmp_path):
    parts_of(state, tmp_path, "model-0000{}-of-00002.safetensors")
    first, second = (tmp_path / f"model-0000{number}-of-00002.safetensors" for number in (1, 2))
    assert same(load_checkpoint(second, lm=str(lm_folder)).model, state)
    second.unlink()
    with pytest.raises(ClipcapError, match=r"model-00002-of-00002\.safetensors is not beside it: copy all files"):
        load_checkpoint(first, lm=str(lm_folder))


@pytest.mark.parametrize(
    "names, said",
    [
        (["pytorch_model_fsdp_0/.metadata", "pytorch_model_fsdp_0/__0_0.distcp"], "format_utils dcp_to_torch"),
        (["global_step10/zero_pp_rank_0_mp_rank_00_model_states.pt", "latest"], "python zero_to_fp32.py"),
    ],
    ids=["FSDP", "ZeRO"],
)
def test_weights_that_processes_share_are_named_with_what_joins_them(names, said, tmp_path):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")
    with pytest.raises(ClipcapError, match=said):
        load_checkpoint(tmp_path)


def test_of_several_networks_in_a_file_one_has_to_be_saved_alone(state, tmp_path):
    torch.save({"student": state, "teacher": state}, tmp_path / "c.pt")
    with pytest.raises(ClipcapError, match=r"holds .* several networks \(student, teacher\)"):
        load_checkpoint(tmp_path / "c.pt")


def test_an_index_names_no_files_elsewhere(state, tmp_path):
    path = tmp_path / "model.safetensors.index.json"
    for name in ("../a.bin", "/etc/passwd", 7, "model.safetensors.index.json"):
        path.write_text(json.dumps({"weight_map": {"x": name}}))
        with pytest.raises(ClipcapError, match=r"copy it again|does not lie beside"):
            load_checkpoint(path)


def test_a_mapper_alone_goes_before_the_language_model(state, lm_folder, tmp_path):
    torch.save({k: v for k, v in state.items() if k.startswith("clip_project.")}, tmp_path / "mapper.pt")
    loaded = load_checkpoint(tmp_path / "mapper.pt", lm=str(lm_folder))
    assert same(loaded.model, state) and "mapper alone" in loaded.summary


@pytest.mark.parametrize(
    "names, said",
    [
        (["Qformer.bert.embeddings.weight", "query_tokens"], "BLIP-2"),
        (["visual_encoder.blocks.0.attn.qkv.weight", "text_decoder.bert.x"], "BLIP or CoCa"),
        (["model.mm_projector.0.weight"], "LLaVA"),
        (["base_model.model.h.0.attn.c_attn.lora_A.weight"], "LoRA adapter"),
        (["encoder.embeddings.cls_token"], "vision encoder-decoder"),
        (["mapper.model.0.weight"], "without its config.json"),
        (["language_model.wte.x", "clip_project.model.0.weight"], "not a GPT-2 under the original's names"),
    ],
)
def test_captioners_of_others_are_told_apart(names, said, tmp_path):
    torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "x.pt")
    with pytest.raises(ClipcapError, match=said) as error:
        load_checkpoint(tmp_path / "x.pt")
    assert "\n" not in str(error.value)


class TestEncoders:
    def test_of_training_scripts_load(self, clip_file, tmp_path):
        state = torch.load(clip_file, weights_only=True)
        right = load_encoder(str(clip_file), "cpu").weights_id
        for content in (
            {"epoch": 5, "model_state_dict": state, "loss": 0.3},
            {"state_dict": under("model.", state), "epoch": 1},
            {"state_dict": under("module._orig_mod.", state), "args": argparse.Namespace(a=1)},
        ):
            torch.save(content, tmp_path / "clip.pt")
            assert load_encoder(str(tmp_path / "clip.pt"), "cpu").weights_id == right

    def test_of_open_clip_are_not_given_openais_activation(self, clip_file, tmp_path):
        state = torch.load(clip_file, weights_only=True)
        content = {"epoch": 1, "name": "run", "state_dict": under("module.", state)}
        torch.save(content, tmp_path / "epoch_1.pt")
        torch.save(state, tmp_path / "open_clip_pytorch_model.bin")
        for name in ("epoch_1.pt", "open_clip_pytorch_model.bin"):
            with pytest.raises(ClipcapError, match=rf"activation.*open_clip:NAME/{tmp_path}/{name}"):
                load_encoder(str(tmp_path / name), "cpu")


class TestLanguageModels:
    def test_an_adapter_of_peft_is_added_to_its_model(self, lm_folder, tmp_path):
        peft = pytest.importorskip("peft")
        torch.manual_seed(0)
        options = peft.LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False)
        adapted = peft.get_peft_model(load_lm(str(lm_folder)), options)
        adapted.save_pretrained(tmp_path / "adapter")
        right = adapted.merge_and_unload().state_dict()
        found = load_lm(str(tmp_path / "adapter")).state_dict()
        assert all(torch.allclose(found[name], tensor) for name, tensor in right.items())
        assert not torch.equal(
            found["transformer.h.0.attn.c_attn.weight"],
            load_lm(str(lm_folder)).state_dict()["transformer.h.0.attn.c_attn.weight"],
        )
        assert load_tokenizer(str(tmp_path / "adapter")).eos_token_id is not None
        with pytest.raises(ClipcapError, match=r"peft adapter.*pass it as --lm"):
            load_checkpoint(tmp_path / "adapter")

    def test_a_tokenizer_of_bert_ends_texts_with_its_separator(self, tmp_path):
        (tmp_path / "vocab.txt").write_text("\n".join(("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "红", "车")))
        (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer"}')
        (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
        tokenizer = load_tokenizer(str(tmp_path))
        assert tokenizer.eos_token == "[SEP]"

    def test_several_end_tokens_are_sound(self, lm_folder, tmp_path):
        self.changed(lm_folder, tmp_path, eos_token_id=[0, 1])
        load_lm(str(tmp_path))

    def changed(self, lm_folder, folder, **config):
        for file in lm_folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        content = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**content, **config}))

    @pytest.mark.parametrize("sizes", [{"n_inner": 20_000_000}, {"n_layer": 200, "n_embd": 4096, "n_head": 64}])
    def test_a_configuration_far_larger_than_the_weights(self, sizes, lm_folder, tmp_path):
        self.changed(lm_folder, tmp_path, **sizes)
        with pytest.raises(ClipcapError, match="the files do not belong together"):
            load_lm(str(tmp_path))

    def test_weights_that_are_not_finite(self, lm_folder, tmp_path):
        self.changed(lm_folder, tmp_path)
        state = load_file(tmp_path / "model.safetensors")
        name = "transformer.h.0.ln_1.weight"
        save_file({**state, name: torch.full_like(state[name], float("inf"))}, tmp_path / "model.safetensors",
                  metadata={"format": "pt"})  # fmt: skip
        with pytest.raises(ClipcapError, match=f"{name} holds NaN or infinity"):
            load_lm(str(tmp_path))


def test_a_captioner_that_is_not_finite_is_refused(make_model, tokenizer, state, tmp_path):
    folder = save_checkpoint(make_model(), tokenizer, tmp_path / "saved")
    stored = load_file(folder / "model.safetensors")
    stored["mapper.model.0.bias"][0] = float("nan")
    save_file(stored, folder / "model.safetensors")
    torch.save({**state, "clip_project.model.0.bias": torch.tensor([float("-inf")])}, tmp_path / "x.pt")
    for path in (folder, tmp_path / "x.pt"):
        with pytest.raises(ClipcapError, match=r"model.0.bias holds NaN or infinity"):
            load_checkpoint(path)


class TestMemory:
    """No file makes more than it holds."""

    def taken(self, path, load) -> int:
        tracemalloc.start()
        with pytest.raises((ClipcapError, ValueError)):
            load(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return peak

    @pytest.mark.parametrize(
        "name, tensor",
        [("positional_embedding", torch.zeros(50_000, 1)), ("ln_final.weight", torch.zeros(19_200)),
         ("positional_embedding", torch.zeros(20_000, 64))],
        ids=["positions", "width", "positions that fit"],
    )  # fmt: skip
    def test_a_clip_of_other_sizes(self, name, tensor, clip_file, tmp_path):
        torch.save({**torch.load(clip_file, weights_only=True), name: tensor.half()}, tmp_path / "clip.pt")
        with pytest.raises(ClipcapError, match="its tensors are not those of OpenAI's CLIP"):
            load_encoder(str(tmp_path / "clip.pt"), "cpu")

    def test_a_mapper_whose_second_matrix_is_thin(self, state, lm_folder, tmp_path):
        thin = {**state, "clip_project.model.2.weight": torch.zeros(64 * 4000, 1)}
        torch.save(thin, tmp_path / "x.pt")
        with pytest.raises(ClipcapError, match=r"clip_project.model.0.bias is \[128\] there and \[128000\] here"):
            load_checkpoint(tmp_path / "x.pt", lm=str(lm_folder))

    def test_layers_that_have_a_name_alone(self, state, lm_folder, tmp_path):
        named = {f"gpt.transformer.h.{n}.x": torch.zeros(1) for n in range(5, 5000)}
        torch.save({**state, **named}, tmp_path / "x.pt")
        with pytest.raises(ClipcapError, match="parameters, but"):
            load_checkpoint(tmp_path / "x.pt", lm=str(lm_folder))

    def test_views_of_the_same_numbers(self, tmp_path):
        numbers = torch.zeros(1000)
        torch.save({str(n): numbers for n in range(100)}, tmp_path / "x.pt")
        with pytest.raises(ValueError, match="4 times its size"):
            load_tensors(tmp_path / "x.pt")

    def test_a_stream_that_claims_a_terabyte(self, tmp_path):
        torch.save({"w": torch.zeros(1000)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
        data = (tmp_path / "x.pt").read_bytes()
        old, new = (1000).to_bytes(2, "little"), (65_535).to_bytes(2, "little")
        (tmp_path / "x.pt").write_bytes(data.replace(b"M" + old, b"M" + new))
        assert self.taken(tmp_path / "x.pt", load_tensors) < 2**20
