"""A language model out of a GGUF file: loaded, tuned, stored in a checkpoint, loaded again."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from support.small import feature_file, run

from clipcap.captioning.captioner import Captioner
from clipcap.demo.tiny import make_tokenizer
from clipcap.errors import ClipcapError
from clipcap.models.language_model import load_lm, load_tokenizer

WIDTH, INNER, HEADS = 32, 48, 4


@pytest.fixture(scope="module")
def gguf_file(tmp_path_factory):
    """A Llama of one layer with random weights, in float32, with a byte-level BPE tokenizer."""
    gguf = pytest.importorskip("gguf")
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    tokenizer = make_tokenizer(CAPTIONS)
    bpe = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    tokens = sorted(bpe["vocab"], key=bpe["vocab"].get)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token == tokenizer.eos_token else 1 for token in tokens])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in bpe["merges"]])
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    random = np.random.default_rng(0)
    square = dict.fromkeys(("attn_q", "attn_k", "attn_v", "attn_output"), (WIDTH, WIDTH))
    inner = {"ffn_gate": (INNER, WIDTH), "ffn_up": (INNER, WIDTH), "ffn_down": (WIDTH, INNER)}
    shapes = {f"blk.0.{name}.weight": shape for name, shape in (square | inner).items()}
    for name, shape in {"token_embd.weight": (len(tokens), WIDTH), **shapes}.items():
        writer.add_tensor(name, random.standard_normal(shape).astype(np.float32) / 4)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_norm.weight", "output_norm.weight"):
        writer.add_tensor(name, np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_weights_and_tokenizer_are_those_of_the_file(gguf_file):
    lm, tokenizer = load_lm(str(gguf_file)), load_tokenizer(str(gguf_file))
    expected = np.random.default_rng(0).standard_normal(lm.get_input_embeddings().weight.shape) / 4
    assert np.allclose(lm.get_input_embeddings().weight.detach().numpy(), expected, atol=1e-6)
    own = make_tokenizer(CAPTIONS)
    assert tokenizer(CAPTIONS[0])["input_ids"] == own(CAPTIONS[0])["input_ids"]
    assert tokenizer.eos_token_id == own.eos_token_id


@pytest.mark.parametrize("tune", ["none", "full"])
def test_it_is_trained_stored_and_loaded_again(tune, gguf_file, tmp_path):
    data = feature_file(tmp_path / "train.pkl")
    out = run(data, gguf_file, tmp_path / "run", tune=tune, epochs=1)
    one, other = (Captioner.from_pretrained(out, device="cpu") for _ in range(2))
    embeddings = list(torch.randn(3, 32))
    captions = one(embeddings, greedy=True, max_new_tokens=8)
    assert captions == other(embeddings, greedy=True, max_new_tokens=8)
    copied = Captioner.from_pretrained(one.save_pretrained(tmp_path / "copy"), device="cpu")
    assert copied(embeddings, greedy=True, max_new_tokens=8) == captions


def test_a_damaged_or_missing_file_is_refused_in_one_line(gguf_file, tmp_path):
    whole = gguf_file.read_bytes()
    contents = {"cut": whole[:3000], "begun": whole[:4], "named": whole.replace(b"token_embd", b"\xfeoken_embd")}
    contents["newer"] = whole[:4] + (1000).to_bytes(4, "little") + whole[8:]
    said = dict.fromkeys(contents, "is damaged or cut off: fetch it again") | {"newer": "v1000"}
    for name, content in contents.items():
        (tmp_path / f"{name}.gguf").write_bytes(content)
    for name, words in (*said.items(), ("no", "there is no such file")):
        path = tmp_path / f"{name}.gguf"
        with pytest.raises(ClipcapError, match=words) as error:
            load_lm(str(path))
        assert "\n" not in str(error.value)


def test_a_model_of_a_file_is_saved_as_a_folder_that_loads_again(gguf_file, tmp_path):
    model = load_lm(str(gguf_file))
    model.save_pretrained(tmp_path / "saved")
    assert "quantization_config" not in json.loads((tmp_path / "saved" / "config.json").read_text())
    again = load_lm(str(tmp_path / "saved")).float().state_dict()
    assert all(again[name].equal(weight) for name, weight in model.state_dict().items())
