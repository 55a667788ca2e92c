"""Language models, their tokenizers and adapters as they are found: read as transformers does, or refused."""

from __future__ import annotations

import json
import os
import shutil

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.errors import ClipcapError
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.gpt2 import load_gpt2
from clipcap.models.language_model import check_vocabulary, load_lm, load_tokenizer
from clipcap.models.lm_text import lm_text

LAYER = "transformer.h.1.ln_1.weight"


@pytest.fixture
def lm(lm_folder, tmp_path):
    """A copy of the small GPT-2."""
    shutil.copytree(lm_folder, tmp_path / "lm")
    return tmp_path / "lm"


def edited(folder, file="config.json", **entries):
    content = json.loads((folder / file).read_text())
    (folder / file).write_text(json.dumps({**content, **entries}))


def reweighted(folder, change, file="model.safetensors"):
    state = load_file(folder / file)
    change(state)
    save_file(state, folder / file, metadata={"format": "pt"})


DAMAGES = {
    "another size": (
        lambda lm: reweighted(lm, lambda s: s.update({LAYER: torch.ones(5)})),
        r"ln_1\.weight is \[5\] in its weights and \[64\] by its config.json",
    ),
    "fewer layers": (lambda lm: edited(lm, n_layer=1), r"its config\.json has fewer layers"),
    "whole numbers": (
        lambda lm: reweighted(lm, lambda s: s.update({LAYER: s[LAYER].to(torch.int8)})),
        r"ln_1\.weight is stored as I8, as of a quantised network",
    ),
    "no configuration": (lambda lm: (lm / "config.json").unlink(), r"has no config\.json"),
    "a pipe": (lambda lm: ((lm / "model.safetensors").unlink(), os.mkfifo(lm / "model.safetensors")), "is a pipe"),
    "a pointer": (
        lambda lm: (lm / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n"),
        "pointer of Git LFS",
    ),
    "a checkpoint of clipcap": (
        lambda lm: (lm / "config.json").write_text('{"format_version": 1, "model": {}}'),
        "is a checkpoint of clipcap.*--weights_dir",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_that_do_not_belong_together_are_refused(damage, lm):
    change, said = DAMAGES[damage]
    change(lm)
    with pytest.raises(ClipcapError, match=said) as error:
        load_lm(str(lm))
    assert "\n" not in str(error.value)
    assert load_gpt2(lm) is None  # by itself, to decode with, it is left to transformers as well


def test_a_model_without_a_cache_that_decoding_knows_is_refused(tmp_path):
    tf.RwkvConfig(vocab_size=50, hidden_size=32, num_hidden_layers=1).save_pretrained(tmp_path)
    with pytest.raises(ClipcapError, match=r"is a rwkv model.*a way of its own"):
        load_lm(str(tmp_path))


def recurrent(kind, vocabulary, end):
    common = {"vocab_size": vocabulary, "hidden_size": 32, "num_hidden_layers": 2, "eos_token_id": end}
    common |= {"bos_token_id": end, "pad_token_id": end}
    if kind == "mamba":
        return tf.MambaForCausalLM(tf.MambaConfig(**common, state_size=4))
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 48}
    return tf.Lfm2ForCausalLM(tf.Lfm2Config(**common, **heads, layer_types=["conv", "full_attention"]))


@pytest.mark.parametrize("kind", ["mamba", "hybrid"])
def test_recurrent_states_are_decoded_as_transformers_does(kind, lm, tokenizer, tmp_path):
    torch.manual_seed(0)
    network = recurrent(kind, len(tokenizer), tokenizer.eos_token_id)
    with torch.no_grad():  # spread the distributions
        for parameter in network.parameters():
            parameter.mul_(8 if parameter.dim() == 2 else 1)
    network.save_pretrained(tmp_path / "net")
    tokenizer.save_pretrained(tmp_path / "net")
    name = str(tmp_path / "net")
    config = ModelConfig(clip_dim=32, prefix_length=4, lm=name)
    captioner = Captioner(ClipCaptionModel(config, load_lm(name)).eval(), load_tokenizer(name), device="cpu")
    vectors = torch.randn(3, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        prefix = captioner.model.prefix(vectors)
        right = captioner.model.lm.generate(
            inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long), max_new_tokens=8,
            do_sample=False, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    for options in ({"greedy": True}, {"beam_size": 1}):
        found = captioner.caption_embeddings(vectors, DecodeConfig(max_new_tokens=8, **options))
        for ids, [caption] in zip(right.tolist(), found, strict=True):
            assert caption.token_ids == ids[: len(caption.token_ids)]
    several = captioner.caption_embeddings(vectors, DecodeConfig(max_new_tokens=8, beam_size=3))
    alone = [captioner.caption_embeddings(v[None], DecodeConfig(max_new_tokens=8, beam_size=3))[0] for v in vectors]
    assert [c[0].token_ids for c in several] == [c[0].token_ids for c in alone]


def test_a_decoder_of_an_encoder_decoder_is_used_alone(lm, tokenizer):
    edited(lm, add_cross_attention=True)
    model = ClipCaptionModel(ModelConfig(clip_dim=32, prefix_length=4, lm=str(lm)), load_lm(str(lm))).eval()
    captions = Captioner(model, tokenizer, device="cpu").caption_embeddings(
        torch.ones(1, 32), DecodeConfig(greedy=True, max_new_tokens=4)
    )
    assert captions[0][0].token_ids


def test_an_attention_that_is_not_installed_is_not_asked_for(lm):
    edited(lm, attn_implementation="flash_attention_2")
    assert load_lm(str(lm)).config._attn_implementation in ("eager", "sdpa")


@pytest.mark.parametrize("ends", [["x"], [-1, 10_000], {}, "x"])
def test_senseless_ends_in_a_generation_config_are_passed_over(ends, lm):
    network, tokenizer = load_lm(str(lm)), load_tokenizer(str(lm))
    network.generation_config.eos_token_id = ends
    assert lm_text(network, tokenizer, "none").ends == ()


class TestTokenizers:
    def refused(self, lm) -> str:
        with pytest.raises(ClipcapError) as error:
            check_vocabulary(load_lm(str(lm)), load_tokenizer(str(lm)), "--lm X")
        return str(error.value)

    def test_of_another_model_is_refused(self, lm):
        network = load_lm(str(lm))
        network.resize_token_embeddings(50)
        network.save_pretrained(lm)
        assert "the language model knows 50: they do not belong together" in self.refused(lm)

    def test_an_end_that_the_model_does_not_know_is_refused(self, lm):
        edited(lm, "tokenizer_config.json", eos_token="</s>")
        assert "for the end of texts" in self.refused(lm)

    def test_numbers_without_bound_are_refused(self, lm):
        content = json.loads((lm / "tokenizer.json").read_text())
        content["model"]["vocab"][list(content["model"]["vocab"])[5]] = 4_000_000_000
        (lm / "tokenizer.json").write_text(json.dumps(content))
        assert "tokens up to the number 4,000,000,000" in self.refused(lm)

    def test_an_added_mark_that_no_text_holds_does_no_harm(self, lm):
        tokenizer = load_tokenizer(str(lm))
        tokenizer.add_special_tokens({"pad_token": "<pad>"})
        check_vocabulary(load_lm(str(lm)), tokenizer, "--lm X")
        tokenizer.add_tokens(["apple"])
        with pytest.raises(ClipcapError, match="they do not belong together"):
            check_vocabulary(load_lm(str(lm)), tokenizer, "--lm X")

    def test_nonsense_in_its_configuration_is_one_line(self, lm):
        edited(lm, "tokenizer_config.json", model_max_length="many")
        with pytest.raises(ClipcapError, match="its tokenizer cannot be used"):
            load_tokenizer(str(lm))


@pytest.fixture(scope="module")
def adapter(lm_folder, tmp_path_factory):
    """A LoRA adapter of the small GPT-2."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    options = peft.LoraConfig(r=2, task_type="CAUSAL_LM", fan_in_fan_out=True, init_lora_weights=False)
    peft.get_peft_model(load_lm(str(lm_folder)), options).save_pretrained(folder)
    return folder


TENSORS = "adapter_model.safetensors"
ADAPTERS = {
    "a tensor is missing": (
        lambda folder: reweighted(folder, lambda s: s.pop(min(s)), TENSORS), "missing adapter keys"
    ),
    "of another model": (
        lambda folder: reweighted(
            folder, lambda s: s.update({min(s).replace("h.0.", "h.9."): torch.ones(2, 64)}), TENSORS
        ),
        "it has no .*h.9.",
    ),
    "not finite": (
        lambda folder: reweighted(folder, lambda s: s[min(s)].fill_(float("nan")), TENSORS),
        "with its adapter .* holds NaN",
    ),
    "a rank without bound": (lambda folder: edited(folder, "adapter_config.json", r=500_000_000), "has the rank 5"),
    "no weights": (lambda folder: (folder / TENSORS).unlink(), "has no adapter_model.safetensors"),
    "a pipe": (lambda folder: ((folder / TENSORS).unlink(), os.mkfifo(folder / TENSORS)), "is a pipe"),
}  # fmt: skip


@pytest.mark.parametrize("damage", ADAPTERS)
def test_a_damaged_adapter_is_refused(damage, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "adapter")
    change, said = ADAPTERS[damage]
    change(tmp_path / "adapter")
    with pytest.raises(ClipcapError, match=said):
        load_lm(str(tmp_path / "adapter"))


def test_an_adapter_that_adds_inputs_is_told_from_one_that_is_merged(lm_folder, tmp_path):
    peft = pytest.importorskip("peft")
    options = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3)
    peft.get_peft_model(load_lm(str(lm_folder)), options).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ClipcapError, match=r"of the kind PROMPT_TUNING.*changes no weights"):
        load_lm(str(tmp_path / "adapter"))
