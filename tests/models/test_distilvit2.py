"""Folders of distilvit2 load and caption as their own project's numbers say; both projections, LoRA merged or not."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import decode
from clipcap.errors import ClipcapError
from clipcap.models.base import IGNORE
from clipcap.models.checkpoint import load_checkpoint
from clipcap.models.encoders.load import load_encoder
from clipcap.models.given import Given


@pytest.fixture
def folder(shared):
    return shared / "fixtures/distilvit2"


@pytest.fixture
def numbers(folder):
    """(inputs, expected tensors, expected texts) of the project's own class."""
    inputs, expected = (torch.load(folder / f"{name}.pt") for name in ("inputs", "expected"))
    return inputs, expected, json.loads((folder / "expected.json").read_text())


def given_of(folder, inputs):
    return Given(*load_encoder(f"hf:{folder}", "cpu").encode_tokens(inputs["pixel_values"]))


def ids_of(found, count):
    return [(captions[0].token_ids + [0] * count)[:count] for captions in found]


def changed(folder, tmp_path, change):
    """A copy of the folder with other tensors."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy, copy_function=shutil.copyfile)
    copy.chmod(0o755)
    save_file(change(load_file(folder / "model.safetensors")), copy / "model.safetensors")
    return copy


def merged_before(state):
    """As folders whose adapters were merged: all of B is zero, the change is in the matrices."""
    found = {name: tensor.clone() for name, tensor in state.items()}
    for name in state:
        if name.endswith("lora_B.default.weight"):
            layer = name.removesuffix(".lora_B.default.weight")
            found[f"{layer}.base_layer.weight"] += 2 * state[name] @ state[f"{layer}.lora_A.default.weight"]
            found[name] = torch.zeros_like(state[name])
    return found


SPELLINGS = {
    "as saved": None,
    "merged": merged_before,
    "of transformers 5": lambda state: {n.replace("encoder.vision_model.", "encoder."): t for n, t in state.items()},
    "of several GPUs": lambda state: {f"module.{n}": t for n, t in state.items()},
}  # fmt: skip


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_the_numbers_are_those_of_its_own_class(folder, numbers, tmp_path, spelling):
    inputs, expected, texts = numbers
    path = changed(folder, tmp_path, SPELLINGS[spelling]) if SPELLINGS[spelling] else folder
    loaded, given = load_checkpoint(path), given_of(path, inputs)
    model = loaded.model
    torch.testing.assert_close(given.tokens, expected["vision_features"], atol=2e-5, rtol=0)
    with torch.no_grad():
        torch.testing.assert_close(model.prefix(given), expected["prefix"], atol=2e-5, rtol=0)
        logits = model(given, inputs["input_ids"])
        torch.testing.assert_close(logits, expected["logits"][:, 15:-1], atol=1e-4, rtol=0)
        torch.testing.assert_close(logits[:, 0], expected["first_step_logits"], atol=1e-4, rtol=0)
        for labels, loss in (("labels", "loss"), ("labels_pads_ignored", "loss_pads_ignored")):
            count = (inputs[labels] != IGNORE).sum()
            found = model(given, inputs["input_ids"], inputs[labels]) / count
            torch.testing.assert_close(found, expected[loss], atol=1e-5, rtol=0)
    greedy = decode(model, loaded.tokenizer, given, DecodeConfig(greedy=True, max_new_tokens=12))
    assert ids_of(greedy, 12) == texts["greedy"]["tokens"]


def test_the_gradients_are_those_of_its_own_class(folder, numbers):
    """Of the adapter too, by the chain rule: it is merged, W + s·B·A, so that of B is s·G·Aᵀ and of A is s·Bᵀ·G."""
    inputs, expected, _ = numbers
    model = load_checkpoint(folder).model
    matrix = model.lm.model.layers[0].self_attn.q_proj.weight.requires_grad_(True)
    found = given_of(folder, inputs)
    given = Given(found.vectors.clone(), found.tokens.clone())  # those of inference have no gradients
    loss = model(given, inputs["input_ids"], inputs["labels"]) / inputs["labels"].numel()
    weight, bias, of_matrix = torch.autograd.grad(loss, [*model.mapper.projection.parameters(), matrix])
    name = "language_model.base_model.model.model.layers.0.self_attn.q_proj.lora_{}.default.weight"
    state = load_file(folder / "model.safetensors")
    a, b, scale = state[name.format("A")], state[name.format("B")], 8 / 4
    found = {
        "projection.projection.weight": weight,
        "projection.projection.bias": bias,
        name.format("A"): scale * b.T @ of_matrix,
        name.format("B"): scale * of_matrix @ a.T,
    }
    assert found.keys() == expected["grads"].keys()
    for part, gradient in found.items():
        assert (gradient - expected["grads"][part]).norm() <= 1e-4 * expected["grads"][part].norm()


def test_beam_search_finds_what_its_own_finds(folder, numbers):
    inputs, _, texts = numbers
    loaded = load_checkpoint(folder)
    config = DecodeConfig(beam=True, beam_size=3, max_new_tokens=12)
    found = decode(loaded.model, loaded.tokenizer, given_of(folder, inputs), config)
    assert ids_of(found, 12) == texts["beam_3"]["tokens"]


def test_a_picture_is_captioned_as_its_pixels_are(folder, numbers):
    inputs, _, texts = numbers
    captioner = Captioner.from_pretrained(folder, device="cpu")
    torch.testing.assert_close(captioner.open(folder / "picture.png"), inputs["pixel_values"][-1], atol=1e-6, rtol=0)
    [[caption]] = captioner.caption([folder / "picture.png"], greedy=True, max_new_tokens=12)
    assert ids_of([[caption]], 12) == texts["greedy"]["tokens"][-1:]


def test_an_mlp_projection_loads_and_its_captioner_saves_itself(folder, numbers, tmp_path):
    inputs, expected, _ = numbers
    torch.manual_seed(0)
    mlp = torch.nn.Sequential(torch.nn.Linear(32, 40), torch.nn.GELU(), torch.nn.Dropout(), torch.nn.Linear(40, 24))

    def with_mlp(state):
        kept = {name: tensor for name, tensor in state.items() if not name.startswith("projection.")}
        return kept | {f"projection.projection.{name}": t.detach() for name, t in mlp.state_dict().items()}

    path = changed(folder, tmp_path, with_mlp)
    content = json.loads((path / "config.json").read_text()) | {"projection_type": "mlp", "mlp_hidden_dim": 40}
    (path / "config.json").write_text(json.dumps(content))
    captioner = Captioner.from_pretrained(path, device="cpu")
    given = given_of(path, inputs)
    with torch.no_grad():
        wanted = mlp.eval()(expected["vision_features"])
        torch.testing.assert_close(captioner.model.prefix(given), wanted, atol=2e-5, rtol=1e-5)
    again = Captioner.from_pretrained(captioner.save_pretrained(tmp_path / "saved"), device="cpu")
    assert again([path / "picture.png"], greedy=True, max_new_tokens=12) == captioner(
        [path / "picture.png"], greedy=True, max_new_tokens=12
    )


def test_a_tensor_that_is_missing_is_named(folder, tmp_path):
    for lost, match in (
        ("vision_encoder", "vision tower"),
        ("projection.projection.bias", "projection.bias"),
        ("q_proj.base", "q_proj"),
    ):
        copy = changed(
            folder, tmp_path / lost, lambda state, lost=lost: {n: t for n, t in state.items() if lost not in n}
        )
        with pytest.raises(ClipcapError, match=match):
            load_encoder(f"hf:{copy}", "cpu") if lost == "vision_encoder" else load_checkpoint(copy)
