"""Products in bfloat16: the processor is asked and measured, and results stay near those of float32."""

from __future__ import annotations

import pytest
import torch
from support.language_models import language_model
from torch import nn

from clipcap.models.kernels import bfloat16
from clipcap.models.kernels.bfloat16 import bfloat16_is_faster, pick_cpu_dtype, why
from clipcap.models.kernels.packed_linear import PackedLinear, can_pack, pack_for_rows, packable
from clipcap.models.kernels.switch import plain

needs_packing = pytest.mark.skipif(not can_pack(torch.bfloat16), reason="torch packs no weights in bfloat16 here")


def test_auto_is_float32_where_the_processor_has_no_instructions_for_bfloat16(monkeypatch):
    monkeypatch.setattr(bfloat16, "QUESTIONS", ("_no_such_question",))
    assert pick_cpu_dtype("auto") == torch.float32
    assert pick_cpu_dtype("bfloat16") == torch.bfloat16


def test_auto_is_float32_where_faster_paths_are_off():
    with plain():
        assert not bfloat16_is_faster()
        assert pick_cpu_dtype("auto") == torch.float32


def test_auto_is_what_the_probe_finds_and_is_the_same_within_a_process():
    assert pick_cpu_dtype("auto") == (torch.bfloat16 if bfloat16_is_faster() else torch.float32)
    assert bfloat16_is_faster() == bfloat16_is_faster()


@pytest.mark.parametrize(
    ("choice", "dtype", "line"),
    [
        ("bfloat16", torch.bfloat16, "bfloat16"),
        ("auto", torch.bfloat16, "bfloat16 (--dtype auto: faster on this processor than float32)"),
        ("auto", torch.float32, "float32 (--dtype auto: bfloat16 is no faster on this processor)"),
    ],
)
def test_a_run_says_which_numbers_were_taken_and_why(choice, dtype, line):
    assert why(choice, dtype) == line


@needs_packing
def test_a_packed_product_in_bfloat16_is_that_of_rounded_numbers_summed_in_float32():
    x, weight, bias = torch.randn(6, 40), torch.randn(24, 40), torch.randn(24)
    rounded = [values.bfloat16().float() for values in (x, weight, bias)]
    found = PackedLinear(weight, bias, dtype=torch.bfloat16)(x)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), nn.functional.linear(*rounded), rtol=2**-7, atol=1e-2)


@needs_packing
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_language_model_in_bfloat16_gives_nearly_the_same_logits_and_float32_ones(kind):
    lm = language_model(kind)
    ids = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        exact = lm(input_ids=ids).logits
        pack_for_rows(lm, torch.bfloat16)
        found = lm(input_ids=ids).logits
    assert found.dtype == torch.float32 and not torch.equal(found, exact)
    assert (found - exact).abs().max() < 0.03 * exact.abs().max()


@needs_packing
def test_logits_far_from_zero_keep_their_differences_in_bfloat16():
    lm = language_model("gpt2")
    with torch.no_grad():
        lm.transformer.ln_f.bias.fill_(10.0)
        lm.lm_head.weight[:, :16] -= 1.0  # all logits are near -160, as those of GPT-2 near -100
    ids = torch.arange(12).view(2, 6)
    with torch.inference_mode():
        exact = lm(input_ids=ids).logits
        pack_for_rows(lm, torch.bfloat16)
        found = lm(input_ids=ids).logits
    assert exact.mean() < -100
    assert (found.log_softmax(-1) - exact.log_softmax(-1)).abs().max() < 0.1  # their last bit is half a unit


@needs_packing
def test_what_was_packed_in_one_dtype_can_be_packed_in_the_other_and_training_is_untouched():
    lm = language_model("gpt2")
    ids = torch.arange(12).view(2, 6)
    exact = lm(input_ids=ids).logits
    pack_for_rows(lm, torch.bfloat16)
    pack_for_rows(lm)
    with torch.inference_mode():
        torch.testing.assert_close(lm(input_ids=ids).logits, exact)
    pack_for_rows(lm, torch.bfloat16)
    assert torch.equal(lm(input_ids=ids).logits, exact)  # outside of inference mode
    assert {p.dtype for p in lm.parameters()} == {torch.float32} and packable(lm, torch.bfloat16)
