"""The reference fixtures: numbers of the original ClipCap, which the reference recipe must reproduce."""

from __future__ import annotations

import json

import pytest
import torch

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import decode
from clipcap.models.caption_model import IGNORE
from clipcap.models.language_model import load_tokenizer
from clipcap.models.original import load_reference
from clipcap.training.optimizer import make_optimizer, trained_parameters

VARIANTS = ("mlp_gpt_tuned", "transformer_prefix_only", "mlp_prefix_only")


class Fixture:
    """One variant: our model of its checkpoint, its inputs, the original's numbers."""

    def __init__(self, shared, variant, tune):
        root = shared / "fixtures" / "reference"
        self.lm = str(root / "tiny-gpt2")
        self.path = root / variant / "reference_state_dict.pt"
        self.model, self.summary = load_reference(self.path, lm=self.lm)
        self.tokenizer = load_tokenizer(self.lm)
        if tune:
            object.__setattr__(self.model.config, "tune", "full" if variant == "mlp_gpt_tuned" else "none")
            self.model._freeze_lm()
        self.inputs = torch.load(root / variant / "inputs.pt", weights_only=True)
        self.tensors = torch.load(root / variant / "expected.pt", weights_only=True)
        self.numbers = json.loads((root / variant / "expected.json").read_text())

    def mean_loss(self):
        tokens = self.inputs["tokens"]
        labels = tokens.masked_fill(tokens == 0, IGNORE)
        return self.model(self.inputs["prefix"], tokens, labels) / (labels != IGNORE).sum()


@pytest.fixture(params=VARIANTS)
def fixture(request, shared):
    return Fixture(shared, request.param, tune=True)


def close(ours, expected):
    ours, expected = (torch.as_tensor(x, dtype=torch.float64) for x in (ours, expected))
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


def test_everything_is_read_off_the_tensors(fixture):
    variant, config = fixture.numbers["variant"], fixture.model.config
    found = (config.mapping_type, config.prefix_length, config.clip_dim)
    assert found == (variant["mapping"], variant["P"], variant["D"])
    if config.mapping_type == "transformer":
        assert (config.prefix_length_clip, config.num_layers) == (variant["clip_length"], variant["layers"])
    if variant["name"] == "mlp_prefix_only":
        assert "4 legacy attention buffers dropped" in fixture.summary


def test_prefix_and_logits_equal_the_original(fixture):
    model, inputs, expected = fixture.model, fixture.inputs, fixture.tensors
    with torch.no_grad():
        prefix = model.prefix(inputs["prefix"])
        embeds = torch.cat([prefix, model.embed_tokens(inputs["tokens"])], dim=1)
        logits = model.lm(inputs_embeds=embeds).logits  # [B, P+T, V]
        of_captions = model(inputs["prefix"], inputs["tokens"])  # [B, T, V]
    real = inputs["mask"].bool()
    close(prefix, expected["prefix_projections"])
    close(logits[..., expected["logits_cols"]][real], expected["logits_at_cols"][real])
    close(logits.logsumexp(-1)[real], expected["logits_logsumexp"][real])
    assert torch.equal(logits.argmax(-1)[real], expected["logits_argmax"][real])
    close(of_captions[:, 0], expected["logits_full_first_caption_pos"])
    at_labels = of_captions.gather(2, inputs["tokens"][..., None])[..., 0]
    tokens = real[:, prefix.shape[1] :]
    close(at_labels[tokens], expected["logits_at_labels"][tokens])


def test_loss_and_gradients_equal_the_original(fixture):
    loss = fixture.mean_loss()
    close(loss.detach(), fixture.numbers["forward"]["loss"])
    loss.backward()
    named = dict(fixture.model.mapper.named_parameters())
    for name, norm in fixture.numbers["forward"]["mapper_grad_norms"].items():
        close(named[name].grad.norm(), norm)
    for name, gradient in fixture.tensors["mapper_grads"].items():
        close(named[name].grad, gradient)
    of_lm = dict(fixture.model.lm.named_parameters())
    if fixture.model.config.tune == "full":
        for name, norm in fixture.numbers["forward"]["gpt_grad_norms_reference"].items():
            close(of_lm[name].grad.norm(), norm)
    else:
        assert all(p.grad is None for p in of_lm.values())


def test_one_changed_weight_changes_the_loss_beyond_the_tolerance(fixture):
    with torch.no_grad():
        next(fixture.model.mapper.parameters()).view(-1)[0] += 2.0
    with pytest.raises(AssertionError):
        close(fixture.mean_loss().detach(), fixture.numbers["forward"]["loss"])


def test_six_training_steps_equal_the_original(fixture):
    from transformers import get_linear_schedule_with_warmup

    expected = fixture.numbers["training_steps"]
    optimizer = make_optimizer(trained_parameters(fixture.model, expected["lr"]), weight_decay=0.0)
    schedule = get_linear_schedule_with_warmup(optimizer, expected["warmup_steps"], expected["total_steps"])
    losses, rates = [], []
    for _ in range(6):
        loss = fixture.mean_loss()
        loss.backward()
        losses.append(loss.item())
        rates.append(schedule.get_last_lr()[0])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    close(losses, expected["losses"])
    close(rates, expected["lrs"])
    for name, parameter in fixture.model.mapper.named_parameters():
        close(parameter.detach().norm(), expected["mapper_param_norms_after"][name])


@pytest.mark.parametrize("batched", [True, False], ids=["batched", "one-by-one"])
@pytest.mark.parametrize("key, longest", [("decode", 67), ("decode_entry_length_5", 5), ("decode_beam_size_1", 67)])
def test_decoding_equals_the_original(fixture, key, longest, batched):
    cases = fixture.numbers[key]
    embeddings = fixture.tensors["decode_embeddings"][: len(cases)]
    groups = [embeddings] if batched else embeddings[:, None].unbind(0)

    def run(config):
        return [captions for group in groups for captions in decode(fixture.model, fixture.tokenizer, group, config)]

    for number, search in enumerate(cases[0]["beam"]):
        beams, temperature = search["beam_size"], search["temperature"]
        config = DecodeConfig(
            beam=True,
            beam_size=beams,
            num_captions=beams,
            temp=temperature,
            max_new_tokens=longest,
            recipe="reference",
        )
        for found, case in zip(run(config), cases):
            expected = case["beam"][number]
            assert [c.token_ids for c in found] == expected["token_ids"]
            assert [c.text for c in found] == expected["texts"]
            assert [c.score for c in found] == pytest.approx(expected["scores"], abs=1e-4)
    for found, case in zip(run(DecodeConfig(max_new_tokens=longest, recipe="reference")), cases):
        assert found[0].token_ids == case["generate2"]["token_ids"]
        assert found[0].text == case["generate2"]["text"]
