"""Attention written out for training in bfloat16 gives what the fused operation gives, and its gradients."""

from __future__ import annotations

import pytest
import torch
from support.language_models import language_model
from torch.nn import functional as F

from clipcap.models.kernels import attention
from clipcap.models.kernels.attention import attend, write_out_attention
from clipcap.models.kernels.frozen_bfloat16 import hold_frozen_in_bfloat16
from clipcap.models.kernels.shared_prefix import can_share_prefix, packing


def test_attention_in_bfloat16_is_written_out_with_gradients_alone(monkeypatch):
    written = []
    monkeypatch.setattr(
        attention, "_product", lambda *given: written.append(1) or F.scaled_dot_product_attention(*given[:3])
    )
    x = torch.randn(3, 2, 4, 5, 8, dtype=torch.bfloat16)
    attend(*x)
    attend(*x.float())
    with torch.no_grad():
        attend(*x)
    assert len(written) == 1


def test_attention_written_out_is_that_of_the_fused_operation():
    x = torch.randn(3, 2, 4, 5, 8)
    exact = F.scaled_dot_product_attention(*x)
    torch.testing.assert_close(attend(*x.bfloat16()).float(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_frozen_language_model_gives_nearly_the_same_states_and_gradients_in_mixed_precision(kind, packed):
    lm = language_model(kind).requires_grad_(False)
    positions = torch.tensor([[0, 1, 2, 0, 1]]).expand(3, -1)
    inputs, direction = torch.randn(3, 7, 32, requires_grad=True), torch.randn(3, 7, 32)
    more = packing(positions, 2, torch.float32) if packed else {}

    def states_and_gradient():
        found = lm.base_model(inputs_embeds=inputs, use_cache=False, **more).last_hidden_state.float()
        [gradient] = torch.autograd.grad((found * direction).sum(), inputs)
        return found.detach(), gradient

    exact = states_and_gradient()
    before = {name: value.clone() for name, value in lm.state_dict().items()}
    hold_frozen_in_bfloat16(lm)
    write_out_attention(lm)
    again = states_and_gradient()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = states_and_gradient()
    for one, other, plain in zip(exact, rounded, again):
        torch.testing.assert_close(plain, one)  # without autocast all is as it was
        assert not torch.equal(one, other)
        assert F.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999
    assert all(torch.equal(before[name], value) for name, value in lm.state_dict().items())


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_captions_share_a_prefix_before_a_model_whose_attention_is_written_out(kind):
    lm = language_model(kind)
    write_out_attention(lm)
    assert can_share_prefix(lm)
    assert "clipcap" not in lm.config.to_json_string()  # a checkpoint opens everywhere


def test_frozen_weights_are_rounded_anew_when_others_are_read_into_them():
    lm = language_model("gpt2").requires_grad_(False)
    hold_frozen_in_bfloat16(lm)
    ids = torch.arange(6)[None]
    with torch.autocast("cpu", torch.bfloat16):
        first = lm(input_ids=ids).logits
        lm.load_state_dict({name: 1.5 * value for name, value in lm.state_dict().items()})
        second = lm(input_ids=ids).logits
        expected = language_model("gpt2")
        expected.load_state_dict(lm.state_dict())
        torch.testing.assert_close(second, expected(input_ids=ids).logits, rtol=0.02, atol=0.02)
    assert not torch.allclose(first, second, rtol=0.02, atol=0.02)
