"""Encoders as training scripts and the hub leave them: what is missing, damaged or of another kind is named."""

from __future__ import annotations

import argparse
import json
import os

import pytest
import torch
import transformers as tf
from conftest import CAPTIONS
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing

from clipcap.demo.tiny import make_tokenizer
from clipcap.errors import ClipcapError
from clipcap.models.encoders.load import load_encoder

PROJECTION = "visual_projection.weight"


@pytest.fixture
def folder(tmp_path):
    """A CLIP of transformers with random weights, whose tokenizer has no token to fill texts with."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 2}
    tokenizer = make_tokenizer(CAPTIONS)
    end = (tokenizer.eos_token, tokenizer.eos_token_id)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=f"$A {end[0]}", special_tokens=[end])
    config = tf.CLIPConfig(
        text_config={**sizes, "num_hidden_layers": 1, "vocab_size": len(tokenizer), "eos_token_id": end[1]},
        vision_config={**sizes, "num_hidden_layers": 2, "image_size": 32, "patch_size": 8},
        projection_dim=24,
    )
    tf.CLIPModel(config).save_pretrained(tmp_path / "clip")
    size = {"height": 32, "width": 32}
    tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(tmp_path / "clip")
    tokenizer.save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


def edited(file, part=None, **entries):
    content = json.loads(file.read_text())
    (content[part] if part else content).update(entries)
    file.write_text(json.dumps(content))


def reweighted(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_tokenizer_without_padding_fills_texts_with_its_end(folder):
    encoder = load_encoder(f"hf:{folder}", "cpu")
    texts = ["a red apple", "two fried eggs beside a green napkin"]
    alone = torch.cat([encoder.encode_texts([text]) for text in texts])
    assert torch.allclose(encoder.encode_texts(texts), alone, atol=1e-5)


def test_a_folder_without_a_tokenizer_encodes_photos_alone(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    encoder = load_encoder(f"hf:{folder}", "cpu")
    assert encoder.dim == 24 and encoder.encode_images(torch.ones(1, 3, 32, 32)).shape == (1, 24)
    with pytest.raises(ClipcapError, match="has no tokenizer"):
        encoder.encode_texts(["a"])


DAMAGES = {
    "a tensor is missing": (lambda f: reweighted(f, lambda s: s.pop(PROJECTION)), f"its weights lack {PROJECTION}"),
    "another size": (
        lambda f: reweighted(f, lambda s: s.update({PROJECTION: torch.ones(3, 3)})),
        rf"{PROJECTION} is \[3, 3\] in its weights",
    ),
    "whole numbers": (
        lambda f: reweighted(f, lambda s: s.update({PROJECTION: s[PROJECTION].to(torch.int8)})),
        f"{PROJECTION} is stored as I8",
    ),
    "not finite": (lambda f: reweighted(f, lambda s: s[PROJECTION].fill_(float("inf"))), "holds NaN or infinity"),
    "fewer layers": (lambda f: edited(f / "config.json", "vision_config", num_hidden_layers=1), "has fewer layers"),
    "a wide inner layer": (
        lambda f: edited(f / "config.json", "vision_config", intermediate_size=200_000_000),
        "is of a network of .* parameters, but",
    ),
    "a million layers": (
        lambda f: edited(f / "config.json", "text_config", num_hidden_layers=1_000_000),
        "num_hidden_layers 1,000,000, which no network has",
    ),
    "no preprocessing": (lambda f: (f / "preprocessor_config.json").unlink(), r"has no preprocessor_config\.json"),
    "pictures of 60,000 pixels": (
        lambda f: edited(f / "preprocessor_config.json", crop_size={"height": 60_000, "width": 60_000}),
        "asks for images of",
    ),
    "a pipe": (lambda f: ((f / "config.json").unlink(), os.mkfifo(f / "config.json")), "config.json in it is a pipe"),
    "a tokenizer of another": (
        lambda f: make_tokenizer([" ".join(map(str, range(9999)))], 5000).save_pretrained(f),
        "its text tower knows",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_files_of_transformers_that_do_not_belong_together_are_refused(damage, folder):
    change, said = DAMAGES[damage]
    change(folder)
    with pytest.raises(ClipcapError, match=said) as error:
        load_encoder(f"hf:{folder}", "cpu")
    assert "\n" not in str(error.value)


def test_pictures_of_another_size_than_the_network_takes_are_one_line(folder):
    encoder = load_encoder(f"hf:{folder}", "cpu")
    with pytest.raises(ClipcapError, match="its files do not belong together"):
        encoder.encode_images(torch.ones(1, 3, 64, 64))


OTHERS = {
    "a bias of SigLIP": (lambda s: {**s, "logit_bias": torch.tensor(-10.0)}, "is a checkpoint of open_clip"),
    "a text tower of open_clip": (
        lambda s: {(k if k.startswith("visual") else f"text.{k}"): v for k, v in s.items()},
        "is a checkpoint of open_clip",
    ),
    "an image tower alone": (
        lambda s: {k: v for k, v in s.items() if k.startswith("visual")}, "has no text tower",
    ),
    "a captioner": (lambda s: {"clip_project.model.0.weight": torch.ones(2, 2)}, "is a captioner.*--load_pt"),
}  # fmt: skip


@pytest.mark.parametrize("kind", OTHERS)
def test_files_that_are_no_clip_of_openai_are_told_apart(kind, clip_file, tmp_path):
    change, said = OTHERS[kind]
    torch.save(change(torch.load(clip_file, weights_only=True)), tmp_path / "clip.pt")
    with pytest.raises(ClipcapError, match=said):
        load_encoder(str(tmp_path / "clip.pt"), "cpu")


def test_a_classifier_beside_a_clip_is_left_out_and_named(clip_file, tmp_path, messages):
    state = torch.load(clip_file, weights_only=True)
    torch.save({**state, "classifier.weight": torch.ones(3, 64)}, tmp_path / "clip.pt")
    found = load_encoder(str(tmp_path / "clip.pt"), "cpu")
    assert found.weights_id == load_encoder(str(clip_file), "cpu").weights_id
    assert any("left out classifier.weight" in line for line in messages())


def test_options_of_a_training_beside_weights_of_open_clip_are_not_in_the_way(tmp_path):
    open_clip = pytest.importorskip("open_clip")
    from clipcap.models.encoders.open_clip import _weights_alone

    content = {"epoch": 1, "state_dict": {"module.logit_scale": torch.ones(())}, "args": argparse.Namespace(a=1)}
    torch.save(content, tmp_path / "epoch_1.pt")
    with _weights_alone(tmp_path / "epoch_1.pt") as file:
        assert open_clip.factory.load_state_dict(file).keys() == {"logit_scale"}
