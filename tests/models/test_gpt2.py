"""GPT-2 without transformers: the same numbers and texts, and left to transformers where it is of another kind."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel

from clipcap.captioning.cached_decoder import CachedDecoder
from clipcap.captioning.captioner import Captioner
from clipcap.errors import ClipcapError
from clipcap.models.checkpoint import load_checkpoint
from clipcap.models.gpt2 import GPT2, gpt2_config, gpt2_of, load_gpt2
from clipcap.models.gpt2_tokenizer import GPT2Tokenizer, load_gpt2_tokenizer
from clipcap.models.kernels.fused_activation import fuse_activations
from clipcap.models.kernels.switch import plain
from clipcap.models.language_model import load_tokenizer
from clipcap.runtime.bundled import DEMO, FOLDER, TUNED

SIZES = {"vocab_size": 60, "n_positions": 40, "n_embd": 24, "n_layer": 3, "n_head": 4}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A GPT-2 with random weights, as transformers stores it."""
    torch.manual_seed(0)
    lm = GPT2LMHeadModel(GPT2Config(**SIZES, n_inner=50, bos_token_id=0, eos_token_id=0))
    lm.save_pretrained(tmp_path / "lm")
    return tmp_path / "lm"


def copied_tokenizer(tmp_path: Path) -> Path:
    """The bundled GPT-2's, to be changed."""
    return shutil.copytree(FOLDER / "gpt2", tmp_path / "lm")


def rewrite(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@torch.inference_mode()
def test_logits_are_those_of_transformers_to_the_last_bit(folder):
    theirs, own = GPT2LMHeadModel.from_pretrained(folder).eval(), load_gpt2(folder)
    fuse_activations(theirs)  # as for every model that is loaded
    assert own is not None and {name for name, _ in own.named_parameters()} == dict(theirs.named_parameters()).keys()
    prefix, token = torch.randn(2, 7, 24), torch.tensor([[3], [9]])
    a, b = (lm(inputs_embeds=prefix, use_cache=True) for lm in (theirs, own))
    assert torch.equal(a.logits, b.logits) and a.logits.shape == (2, 7, 60)
    cache = next(name for name in ("cache", "past_key_values") if name in a)
    for _ in range(3):
        a = theirs(input_ids=token, use_cache=True, **{cache: a[cache]})
        b = own(input_ids=token, use_cache=True, cache=b["cache"])
        assert torch.equal(a.logits, b.logits)
    last = own(inputs_embeds=prefix, logits_to_keep=1).logits
    assert torch.equal(last, theirs(inputs_embeds=prefix, logits_to_keep=1).logits) and last.shape == (2, 1, 60)


def test_weights_named_as_on_the_hub_are_read(folder):
    """`gpt2` itself has no `transformer.` before its names, and the masks of old releases."""
    stored = {
        name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / "model.safetensors").items()
    }
    masks = {f"h.{layer}.attn.bias": torch.ones(1, 1, 40, 40) for layer in range(3)}
    expected = load_gpt2(folder)
    save_file(stored | masks, folder / "model.safetensors")
    own = load_gpt2(folder)
    assert own is not None and expected is not None
    assert all(torch.equal(a, b) for a, b in zip(own.parameters(), expected.parameters(), strict=True))


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "gpt_neo"}, {"activation_function": "relu"}, {"scale_attn_by_inverse_layer_idx": True},
        {"reorder_and_upcast_attn": True}, {"add_cross_attention": True}, {"tie_word_embeddings": False},
        {"quantization_config": {"quant_method": "awq"}}, {"n_embd": "24"}, {"n_head": 5}, {"n_layer": 2_000_000},
        {"n_layer": 4}, {"n_positions": 41}, {"layer_norm_epsilon": None}, {"n_inner": 0},
        {"num_attention_heads": 2}, {"hidden_size": 24}, {"text_config": {}},
    ],
    ids=str,
)  # fmt: skip
def test_other_kinds_and_sizes_are_left_to_transformers(folder, change):
    rewrite(folder / "config.json", **change)
    assert load_gpt2(folder) is None


def test_weights_that_transformers_reads_otherwise_are_left_to_it(folder):
    weights = folder / "model.safetensors"
    stored = load_file(weights)
    table = stored["transformer.wte.weight"]
    save_file(stored | {"lm_head.weight": table.clone()}, weights)
    assert load_gpt2(folder) is not None
    for others in ({"lm_head.weight": table + 1}, {"wte.weight": table + 1}):  # a head of its own; which of the two?
        save_file(stored | others, weights)
        assert load_gpt2(folder) is None
    save_file(stored, weights)
    (folder / "adapter_config.json").write_text("{}")  # transformers adds the adapter
    assert load_gpt2(folder) is None


def test_damaged_weights_are_left_to_transformers(folder):
    weights = folder / "model.safetensors"
    stored = load_file(weights)
    save_file(stored | {"transformer.ln_f.bias": torch.full((24,), torch.nan)}, weights)
    assert load_gpt2(folder) is None
    save_file({name: tensor for name, tensor in stored.items() if name != "transformer.ln_f.bias"}, weights)
    assert load_gpt2(folder) is None
    weights.write_bytes(weights.read_bytes()[:-5])
    assert load_gpt2(folder) is None
    weights.unlink()
    assert load_gpt2(folder) is None
    (folder / "config.json").write_text("[]")
    assert load_gpt2(folder) is None


def test_without_faster_paths_all_is_left_to_transformers(folder):
    content = json.loads((folder / "config.json").read_text())
    assert gpt2_config(content) is not None
    with plain():
        assert gpt2_config(content) is None


def test_weights_are_converted_to_float32(folder):
    content, stored = json.loads((folder / "config.json").read_text()), load_file(folder / "model.safetensors")
    own = gpt2_of(content, {f"lm.{name}": tensor.half() for name, tensor in stored.items()}, "lm.")
    assert own is not None and {parameter.dtype for parameter in own.parameters()} == {torch.float32}
    assert torch.equal(own.get_output_embeddings().weight, stored["transformer.wte.weight"].half().float())


@pytest.mark.parametrize(
    "options",
    [
        {"beam": True},
        {"beam": True, "num_captions": 3},
        {"num_captions": 4, "top_p": 0.9, "seed": 5},
        {"prompt": "Two"},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["float32", "int8", "bfloat16"])
def test_captions_are_the_same_to_the_last_bit(options, dtype):
    embeddings = torch.randn(3, 128, generator=torch.Generator().manual_seed(1))
    found = []
    for decode_only in (False, True):
        captioner = Captioner.from_pretrained(DEMO, device="cpu", dtype=dtype, decode_only=decode_only)
        assert isinstance(captioner.model.lm, GPT2) == decode_only
        assert isinstance(captioner.tokenizer, GPT2Tokenizer) == decode_only
        found.append([captioner.caption(list(rows), **options) for rows in (embeddings[:1], embeddings)])
    assert found[0] == found[1]


@torch.inference_mode()
def test_rows_are_kept_and_reordered_as_with_transformers():
    prefix = torch.randn(2, 5, 128, generator=torch.Generator().manual_seed(0))
    logits = []
    for decode_only in (False, True):
        decoder = CachedDecoder(load_checkpoint(DEMO, decode_only=decode_only).model, prefix)
        decoder.expand(3, 4, reorders=True)
        decoder.step(torch.arange(6))
        decoder.reorder(torch.tensor([2, 0, 1, 3, 3, 5]))
        decoder.step(torch.arange(6, 12))
        decoder.keep(torch.tensor([3, 4, 5]))
        decoder.step(torch.arange(3))
        logits.append(decoder.logits)
    assert torch.equal(*logits)


def test_a_language_model_in_the_checkpoint_is_read_from_it(tmp_path):
    from dataclasses import replace

    captioner = Captioner.from_pretrained(DEMO, device="cpu")
    captioner.model.config = replace(captioner.model.config, tune="full", lm_stored=True)
    captioner.save_pretrained(tmp_path / "c")
    own, theirs = (load_checkpoint(tmp_path / "c", decode_only=only) for only in (True, False))
    assert isinstance(own.model.lm, GPT2) and not isinstance(theirs.model.lm, GPT2)
    assert isinstance(own.tokenizer, GPT2Tokenizer)
    a, b = own.model.state_dict(), theirs.model.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_captioner_that_only_decodes_is_not_saved(tmp_path):
    captioner = Captioner.from_pretrained(DEMO, device="cpu", decode_only=True)
    with pytest.raises(ClipcapError, match="cannot be saved"):
        captioner.save_pretrained(tmp_path / "c")


def test_the_tokenizer_gives_the_tokens_and_texts_of_transformers():
    own, theirs = load_gpt2_tokenizer(FOLDER / "gpt2_tuned"), load_tokenizer(TUNED)
    assert own is not None and len(own) == len(theirs)
    assert (own.eos_token, own.eos_token_id) == (theirs.eos_token, theirs.eos_token_id)
    for text in ("Two cherry muffins.", "  a  plate\n", "", "naïve 寿司 🍣", "a<|endoftext|>b", " ."):
        for special in (False, True):
            ids = own(text, add_special_tokens=special)["input_ids"]
            assert ids == theirs(text, add_special_tokens=special)["input_ids"]
            assert own.decode(ids) == theirs.decode(ids, clean_up_tokenization_spaces=False)
    some = torch.randint(len(own), (200,), generator=torch.Generator().manual_seed(0)).tolist()
    assert own.decode(some) == theirs.decode(some, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize(
    "change",
    [
        {"add_prefix_space": True}, {"tokenizer_class": "BertTokenizer"}, {"eos_token": "?!"}, {"eos_token": "a"},
        {"bos_token": "<s>"}, {"unk_token": "<unk>"}, {"eos_token": None},
    ],
    ids=str,
)  # fmt: skip
def test_other_tokenizers_are_left_to_transformers(tmp_path, change):
    folder = copied_tokenizer(tmp_path)
    assert load_gpt2_tokenizer(folder) is not None
    rewrite(folder / "tokenizer_config.json", **change)
    assert load_gpt2_tokenizer(folder) is None
    (folder / "tokenizer.json").write_text("{}")
    assert load_gpt2_tokenizer(folder) is None


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "Lowercase"}}, {"added_tokens": []}, {"pre_tokenizer": {"type": "Whitespace"}},
        {"decoder": None}, {"model": {"dropout": 0.5}}, {"model": {"end_of_word_suffix": "</w>"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
    ],
    ids=str,
)  # fmt: skip
def test_a_file_of_other_steps_than_those_of_gpt2_is_left_to_transformers(tmp_path, change):
    """Its class for GPT-2 passes over them, its general class takes them."""
    folder = copied_tokenizer(tmp_path)
    stored = json.loads((folder / "tokenizer.json").read_text())
    rewrite(folder / "tokenizer.json", **change | {"model": stored["model"] | change.get("model", {})})
    assert load_gpt2_tokenizer(folder) is None


def test_no_text_is_cut_or_filled_as_its_file_was_last_used(tmp_path):
    folder = copied_tokenizer(tmp_path)
    cut = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
    rewrite(folder / "tokenizer.json", truncation=cut)
    own, theirs = load_gpt2_tokenizer(folder), load_tokenizer(str(folder))
    text = "Two cherry muffins."
    assert own is not None and own(text)["input_ids"] == theirs(text)["input_ids"] and len(own(text)["input_ids"]) > 2


def test_a_general_class_without_an_end_token_is_left_to_transformers(tmp_path):
    folder = copied_tokenizer(tmp_path)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"tokenizer_class": "GPT2Tokenizer"}))
    own = load_gpt2_tokenizer(folder)
    assert own is not None and own.eos_token == load_tokenizer(str(folder)).eos_token
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_gpt2_tokenizer(folder) is None
