"""Modern language models as they want to be used: begin token, chat template, ends, transformers' own decoding."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from conftest import CAPTIONS
from support.small import feature_file, run

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.demo.tiny import make_tokenizer
from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.checkpoint import load_checkpoint
from clipcap.models.config import ModelConfig
from clipcap.models.language_model import load_lm, load_tokenizer
from clipcap.models.lm_text import lm_text

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SIZES = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "max_position_embeddings": 128}
KINDS = ("llama", "qwen2", "opt", "gpt2")


def make_lm(folder, kind, chat=True, begin=False):
    """A small language model with random weights, its tokenizer with ChatML's tokens and template."""
    tokenizer = make_tokenizer(CAPTIONS)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>", "<s>"]})
    if chat:
        tokenizer.chat_template = CHATML
    if begin:
        from tokenizers.processors import TemplateProcessing

        tokenizer.bos_token = "<s>"
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
        )
    tokenizer.save_pretrained(folder)
    end, turn = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    common = {"vocab_size": len(tokenizer), "bos_token_id": end, "eos_token_id": [turn, end], "pad_token_id": end}
    torch.manual_seed(0)
    inner = {"intermediate_size": 32, "num_key_value_heads": 2}
    network = {
        "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(**common, **SIZES, **inner)),
        "qwen2": lambda: tf.Qwen2ForCausalLM(tf.Qwen2Config(**common, **SIZES, **inner)),
        "opt": lambda: tf.OPTForCausalLM(
            tf.OPTConfig(**common, **SIZES, ffn_dim=32, word_embed_proj_dim=16, do_layer_norm_before=True)
        ),
        "gpt2": lambda: tf.GPT2LMHeadModel(tf.GPT2Config(**common, n_embd=24, n_layer=2, n_head=4, n_positions=128)),
    }[kind]()
    with torch.no_grad():  # spread the distributions
        for parameter in network.parameters():
            parameter.mul_(8 if parameter.dim() > 1 else 1)
    network.save_pretrained(folder)
    return folder


def captioner_of(folder, template, seed=0):
    """A captioner over a small language model, with the text that the template sets around the image."""
    torch.manual_seed(seed)
    lm, tokenizer = load_lm(str(folder)), load_tokenizer(str(folder))
    text = lm_text(lm, tokenizer, template)
    config = ModelConfig(
        clip_dim=32, prefix_length=4, lm=str(folder), template=template, before=text.before, after=text.after,
        ends=text.ends,
    )  # fmt: skip
    return Captioner(ClipCaptionModel(config, lm).eval(), tokenizer, device="cpu")


@pytest.mark.parametrize("template", ["none", "chat"])
@pytest.mark.parametrize("kind", KINDS)
def test_captions_are_those_of_generate_on_the_same_inputs(kind, template, tmp_path):
    captioner = captioner_of(make_lm(tmp_path, kind), template)
    model, tokenizer = captioner.model, captioner.tokenizer
    embeddings = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        prefix = model.prefix(embeddings)
        ends = [tokenizer.eos_token_id, *model.config.ends]
        expected = model.lm.generate(
            inputs_embeds=prefix, attention_mask=torch.ones(prefix.shape[:2], dtype=torch.long), max_new_tokens=20,
            do_sample=False, eos_token_id=ends, pad_token_id=tokenizer.eos_token_id,
        )  # fmt: skip
    found = captioner.caption_embeddings(embeddings, DecodeConfig(greedy=True, max_new_tokens=20))
    for ids, [caption] in zip(expected.tolist(), found, strict=True):
        end = next((place + 1 for place, token in enumerate(ids) if token in ends), len(ids))
        assert caption.token_ids == ids[:end]
        assert not caption.text.endswith(("<|im_end|>", "<|endoftext|>"))


def test_the_template_stands_around_the_image_as_transformers_renders_it(tmp_path):
    folder = make_lm(tmp_path, "llama")
    model = captioner_of(folder, "chat").model
    tokenizer = load_tokenizer(str(folder))
    assert tokenizer.decode(model.config.before) == "<|im_start|>user\n"
    assert tokenizer.decode(model.config.after).endswith("sentence.<|im_end|>\n<|im_start|>assistant\n")
    assert model.config.ends == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    prefix = model.prefix(torch.randn(2, 32))
    text = model.embed_tokens(torch.tensor(model.config.after))
    assert torch.equal(prefix[1, -len(text) :], text)
    assert prefix.shape[1] == model.prefix_positions == len(model.config.before) + 4 + len(text)


def test_a_begin_token_stands_first_where_the_tokenizer_sets_one(tmp_path):
    with_begin = captioner_of(make_lm(tmp_path / "a", "llama", begin=True), "none").model.config
    without = captioner_of(make_lm(tmp_path / "b", "llama"), "none").model.config
    assert len(with_begin.before) == 1 and without.before == ()
    assert load_tokenizer(str(tmp_path / "a")).decode(with_begin.before) == "<s>"


@pytest.mark.parametrize("share", [True, False])
def test_a_template_is_learnt_with_stored_and_ends_captions(share, tmp_path):
    lm = make_lm(tmp_path / "lm", "llama")
    captions = [(f"{text} once", f"{text} twice") for text in CAPTIONS]
    data = feature_file(tmp_path / "train.pkl", captions)
    out = run(data, lm, tmp_path / "run", template="chat", tune="lora", share_prefix=share, epochs=1)
    loaded = load_checkpoint(out)
    assert loaded.model.config.template == "chat" and loaded.model.config.before
    turn = loaded.tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert loaded.model.config.ends == (turn,)
    assert loaded.tokenizer.eos_token_id == turn  # captions were taught to end with it
    again = run(data, lm, tmp_path / "again", weights_dir=str(out), tune="lora", epochs=1)
    assert load_checkpoint(again).model.config.after == loaded.model.config.after


def test_the_loss_with_a_shared_prefix_is_that_without(tmp_path):
    model = captioner_of(make_lm(tmp_path, "llama"), "chat").model
    embedding, ids = torch.randn(1, 32), torch.randint(5, 60, (2, 5))
    apart = model(embedding.expand(2, -1), ids, ids)
    positions = torch.arange(5).repeat(2)[None]
    together = model(embedding, ids.reshape(1, -1), ids.reshape(1, -1), positions)
    assert torch.allclose(apart, together, rtol=1e-5)


def test_a_tokenizer_without_template_is_refused(tmp_path):
    folder = make_lm(tmp_path, "gpt2", chat=False)
    with pytest.raises(ClipcapError, match="has no chat template: choose a language model"):
        captioner_of(folder, "chat")


def test_token_ids_of_another_vocabulary_are_refused(tmp_path):
    folder = make_lm(tmp_path, "llama")
    with pytest.raises(ClipcapError, match="`before` names others"):
        ClipCaptionModel(ModelConfig(clip_dim=32, lm=str(folder), before=(10**6,)), load_lm(str(folder)))


def test_a_matched_start_gives_prefixes_the_length_of_embeddings(tmp_path, lm_folder):
    data = feature_file(tmp_path / "train.pkl")
    for kind in ("mlp", "transformer"):
        config = {"match_norms": True, "mapping_type": kind, "tune": "none", "lr": 0, "epochs": 1}
        model = load_checkpoint(run(data, lm_folder, tmp_path / kind, **config)).model
        prefix = model.prefix(read_features(data).rows(slice(None)))
        ratio = (prefix.norm(dim=-1).mean() / model.token_embeddings.weight.norm(dim=-1).mean()).item()
        assert ratio == pytest.approx(1, rel=0.1 if kind == "transformer" else 1e-3)


def test_heads_of_a_mapper_divide_the_width(tmp_path):
    lm = make_lm(tmp_path / "lm", "llama")  # 24 wide
    data = feature_file(tmp_path / "train.pkl")
    run_of = {"mapping_type": "transformer", "num_layers": 1, "epochs": 1}
    out = run(data, lm, tmp_path / "run", **run_of)
    stored = json.loads((next(out.glob("*best*")) / "config.json").read_text())
    assert stored["model"]["num_heads"] == 8
    folder = tmp_path / "wide"
    tf.GPT2LMHeadModel(tf.GPT2Config(vocab_size=400, n_embd=20, n_layer=1, n_head=2)).save_pretrained(folder)
    load_tokenizer(str(lm)).save_pretrained(folder)
    assert load_checkpoint(run(data, folder, tmp_path / "other", **run_of)).model.config.num_heads == 10
