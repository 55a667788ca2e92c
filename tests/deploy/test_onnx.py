"""Graphs give torch's captions, token by token; what cannot be exported is refused in one line."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.language_models import language_model
from support.road import run, save_captioner
from support.towers_small import clip_of_transformers
from transformers import BertTokenizerFast, LlamaConfig, LlamaForCausalLM

from clipcap.captioning.captioner import Captioner
from clipcap.deploy.graphs import export_mapper
from clipcap.deploy.int8 import round_to_int8
from clipcap.deploy.onnx_captioner import OnnxCaptioner, preprocess
from clipcap.deploy.onnx_folder import plain_captioner, write_graphs
from clipcap.deploy.preprocessing import describe_preprocessing
from clipcap.deploy.token_bytes import token_bytes
from clipcap.errors import ClipcapError
from clipcap.images.read import open_image
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.encoders.load import load_encoder
from clipcap.runtime.bundled import DEMO


@pytest.fixture(scope="module")
def captioner():
    return Captioner.from_pretrained(DEMO, device="cpu")


@pytest.fixture(scope="module")
def graphs(exported):
    return OnnxCaptioner(exported, threads=1)


@pytest.mark.parametrize(("beams", "several"), [(None, 1), (None, 3), (1, 1), (7, 2)])
def test_captions_are_torchs_token_by_token(graphs, captioner, plates, beams, several):
    config = {"beam": True, "beam_size": beams or 5, "num_captions": several}
    expected = captioner.caption(plates, **config)
    for photo, captions in zip(plates, expected, strict=True):
        found = graphs.caption(photo, beams, several)
        assert [c.token_ids for c in found] == [c.token_ids for c in captions]
        assert [c.text for c in found] == [c.text for c in captions]
        assert np.allclose([c.score for c in found], [c.score for c in captions], atol=1e-5)


def test_pixels_and_embeddings_are_the_encoders(graphs, captioner, plates):
    for photo in plates:
        image = open_image(photo)
        own = captioner.encoder.preprocess(image)
        assert np.allclose(preprocess(image, graphs.config["preprocess"]), own.numpy(), atol=1e-6)
        assert np.allclose(graphs.embed(photo), captioner.encoder.encode_images(own[None]).numpy(), atol=1e-3)


def test_one_graph_takes_prefix_and_tokens_together_or_in_turn(graphs):
    random = np.random.default_rng(0)
    prefix = random.standard_normal((3, 5, 128), dtype=np.float32)
    ids, nothing = random.integers(0, 1000, (3, 6)), np.zeros((3, 0, 128), np.float32)
    whole, _ = graphs.logits(prefix, ids)
    _, past = graphs.logits(prefix, ids[:, :0])
    _, past = graphs.logits(nothing, ids[:, :4], past)
    in_turn, past = graphs.logits(nothing, ids[:, 4:], past)
    assert np.allclose(whole, in_turn, atol=1e-4)
    assert past[0].shape[2] == 11


def test_the_runner_of_a_folder_needs_neither_torch_nor_clipcap(exported, plates, captioner):
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'clipcap'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(exported)!r})\nimport caption\ncaption.main({[str(plates[0])]!r})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == f"{plates[0]}\t{captioner(plates[0])}\n", done.stderr


def test_int8_is_a_third_of_the_size_with_nearly_the_same_logits(exported, graphs, tmp_path):
    import onnx

    rounded = tmp_path / "int8"
    rounded.mkdir()
    for path in exported.iterdir():
        if path.suffix != ".onnx":
            (rounded / path.name).write_bytes(path.read_bytes())
            continue
        graph = onnx.load(path)
        round_to_int8(graph)
        onnx.checker.check_model(graph)
        onnx.save_model(graph, rounded / path.name)
    name = "language_model.onnx"
    assert (rounded / name).stat().st_size < 0.4 * (exported / name).stat().st_size
    tables = [t for t in onnx.load(rounded / name).graph.initializer if list(t.dims) == [1200, 128]]
    assert len(tables) == 1 and tables[0].data_type == onnx.TensorProto.UINT8  # embeddings and head are one
    prefix = np.random.default_rng(0).standard_normal((2, 5, 128), dtype=np.float32)
    plain, _ = graphs.logits(prefix, np.zeros((2, 0)))
    coarse, _ = OnnxCaptioner(rounded, threads=1).logits(prefix, np.zeros((2, 0)))
    assert np.corrcoef(plain.ravel(), coarse.ravel())[0, 1] > 0.995


def test_a_llama_with_a_transformer_mapper_and_a_lora_adapter(tmp_path, clip_file, tokenizer, plates):
    pytest.importorskip("onnxruntime", reason="no onnxruntime: pip install 'clipcap-toolkit[onnx]'")
    pytest.importorskip("peft", reason="no peft: pip install 'clipcap-toolkit[lora]'")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, **sizes)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    checkpoint = save_captioner(
        tmp_path / "checkpoint", tmp_path / "llama", clip_file, mapping_type="transformer", tune="lora", num_heads=4
    )
    own = Captioner.from_pretrained(checkpoint, device="cpu")
    with torch.no_grad():  # an adapter that has learnt something
        for name, parameter in own.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    own.save_pretrained(checkpoint)
    folder = tmp_path / "onnx"
    folder.mkdir()
    write_graphs(plain_captioner(str(checkpoint), None, None), folder, "float32")
    graphs = OnnxCaptioner(folder, threads=1)
    expected = [captions[0].token_ids for captions in own.caption(plates[:2])]
    assert [graphs.caption(photo)[0].token_ids for photo in plates[:2]] == expected


def test_preprocessing_of_transformers_is_described(tmp_path):
    encoder = load_encoder("hf:" + clip_of_transformers(tmp_path / "clip").removeprefix("hf:"), "cpu")
    how = describe_preprocessing(encoder)
    assert how["crop"] and how["filter"] == "bicubic"


def test_other_preprocessing_is_refused(clip_file):
    encoder = load_encoder(str(clip_file), "cpu")
    usual = encoder.preprocess
    encoder.preprocess = lambda image: usual(image.rotate(90))
    with pytest.raises(ClipcapError, match="its preprocessing is not"):
        describe_preprocessing(encoder)


def test_tokens_as_bytes_are_the_tokenizers_text(tokenizer):
    table = token_bytes(tokenizer, len(tokenizer) + 3)
    ids = tokenizer("Sushi rolls – über 3 €!")["input_ids"]
    assert b"".join(table[i] for i in ids).decode() == tokenizer.decode(ids)
    assert table[-3:] == [b""] * 3


def test_tokens_that_are_joined_otherwise_are_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("\n".join(["[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]", "a", "##b", "c"]))
    with pytest.raises(ClipcapError, match="joins tokens in a way"):
        token_bytes(BertTokenizerFast(str(tmp_path / "vocab.txt")), 8)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--out", "m.onnx"), "--out m.onnx: export writes NAME.pt"),
        (("--out", "m"), "with --format onnx a folder"),
        (("--out", "m.onnx", "--format", "onnx"), "--format onnx writes a folder"),
        (("--out", "m.pt", "--format", "web"), "--format web writes NAME.html"),
        (("--out", "m.pth", "--format", "pt"), "--format pt writes NAME.pt"),
        (("--out", "m.pt", "--dtype", "int8"), "a .pt holds float32"),
        (("--out", "m.pt", "--runtime", "x"), "--runtime is of --format web"),
        ((), "--out is missing"),
    ],
)
def test_names_of_what_is_not_written_are_refused(words, said, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = run(capsys, "export", DEMO, *words)
    assert status == 1 and len(err) == 1 and said in err[0]
    assert not list(tmp_path.iterdir())


def test_a_folder_of_something_else_is_not_replaced(capsys, tmp_path):
    pytest.importorskip("onnxruntime", reason="no onnxruntime: pip install 'clipcap-toolkit[onnx]'")
    (tmp_path / "mine.txt").write_text("keep")
    status, _, err = run(capsys, "export", DEMO, "--format", "onnx", "--out", tmp_path)
    assert status == 1 and "is not an export, so it is not replaced" in err[-1]
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_the_extra_is_named_before_any_work(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("clipcap.deploy.onnx_folder.find_spec", lambda name: None)
    status, _, err = run(capsys, "export", "nowhere", "--format", "onnx", "--out", tmp_path / "out")
    assert status == 1 and "pip install 'clipcap-toolkit[onnx]'" in err[0]


def test_the_facts_of_an_export_name_no_place_of_this_machine(exported):
    text = (exported / "captioner.json").read_text()
    assert "/" not in text and json.loads(text)["stop_ids"]


def test_a_captioner_with_text_around_the_image_is_of_use_after_its_export():
    config = ModelConfig(clip_dim=16, prefix_length=4, before=(3, 4), after=(5,))
    model = ClipCaptionModel(config, language_model("gpt2")).eval()
    export_mapper(model)
    with torch.no_grad():
        assert model.prefix(torch.randn(3, 16)).numpy().shape == (3, 7, 32)
