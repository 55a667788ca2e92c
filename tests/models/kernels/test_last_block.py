"""What of GPT-2's last block nobody reads is not computed, and what is read stays the same."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from clipcap.models.kernels.last_block import read_from
from clipcap.models.language_model import checkpoint_layers


@pytest.fixture
def lm(make_model):
    return copy.deepcopy(make_model().lm).eval()


@pytest.fixture
def widths(lm):
    """Positions that each feed-forward net is given, as calls go on."""
    seen = []
    for block in lm.transformer.h:
        block.mlp.c_fc.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].shape[1]))
    return seen


def inputs(lm, positions=9):
    embeds = torch.randn(2, positions, lm.config.n_embd, generator=torch.Generator().manual_seed(0))
    return embeds.requires_grad_()


@pytest.mark.parametrize("first", [0, 1, 8])
def test_outputs_and_gradients_from_the_first_position_read_on_stay(lm, widths, first):
    def outcome(embeds):
        outputs = lm.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, first:]
        return outputs, *torch.autograd.grad(outputs.square().sum(), [embeds, *lm.transformer.h.parameters()])

    expected = outcome(inputs(lm))
    assert widths == [9] * len(lm.transformer.h)
    widths.clear()
    with read_from(lm, first):
        found = outcome(inputs(lm))
    assert widths == [9] * (len(lm.transformer.h) - 1) + [9 - first]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_afterwards_the_model_is_as_it_was(lm, widths):
    embeds = inputs(lm)
    with pytest.raises(KeyError), read_from(lm, 4):
        raise KeyError
    lm.base_model(inputs_embeds=embeds, use_cache=False)
    assert widths == [9] * len(lm.transformer.h)


def test_keys_and_values_of_all_positions_are_kept(lm):
    embeds = inputs(lm).detach()
    expected = lm(inputs_embeds=embeds, use_cache=True)
    with read_from(lm, 8):
        found = lm(inputs_embeds=embeds, use_cache=True)
    torch.testing.assert_close(found.logits[:, 8], expected.logits[:, 8], rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(found[-1].layers, expected[-1].layers, strict=True):
        torch.testing.assert_close((ours.keys, ours.values), (theirs.keys, theirs.values), rtol=1e-6, atol=1e-6)


def test_another_thread_that_calls_the_model_meanwhile_gets_all_positions(lm):
    embeds = inputs(lm).detach()
    expected = lm.base_model(inputs_embeds=embeds, use_cache=False).last_hidden_state
    with read_from(lm, 4), ThreadPoolExecutor(1) as thread:
        found = thread.submit(lm.base_model, inputs_embeds=embeds, use_cache=False).result().last_hidden_state
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


def test_dropout_of_a_model_in_training_mode_stays(lm, widths):
    lm.train()
    with read_from(lm, 4):
        lm.base_model(inputs_embeds=inputs(lm), use_cache=False)
    assert set(widths) == {9}


def test_layers_that_are_computed_again_are_left_whole(lm, widths):
    checkpoint_layers(lm)
    with read_from(lm, 4):
        outputs = lm.base_model(inputs_embeds=inputs(lm), use_cache=False).last_hidden_state
    outputs.sum().backward()
    assert set(widths) == {9}
