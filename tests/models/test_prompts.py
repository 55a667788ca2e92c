"""Prompts between the image's positions and the caption: padding changes nothing, in the loss and in decoding."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import decode
from clipcap.models.base import IGNORE
from clipcap.models.given import Given
from clipcap.models.kernels.int8 import quantised
from clipcap.models.kernels.packed_linear import pack_for_rows, packable

PROMPTS = [[5, 9, 11, 40, 41], [7, 8], [], [12, 13, 14]]


def padded_prompts(prompts: list[list[int]]) -> tuple[Tensor, Tensor]:
    """Ids and mask [B, H], padding before the shorter ones."""
    longest = max(map(len, prompts))
    ids = torch.tensor([[3] * (longest - len(one)) + one for one in prompts], dtype=torch.long)
    masks = [[False] * (longest - len(one)) + [True] * len(one) for one in prompts]
    mask = torch.tensor(masks, dtype=torch.bool)
    return ids.view(len(prompts), longest), mask.view(len(prompts), longest)


def with_prompts(vectors: Tensor, prompts: list[list[int]]) -> Given:
    ids, mask = padded_prompts(prompts)
    return Given(vectors, prompt_ids=ids, prompt_mask=mask)


@pytest.fixture
def vectors() -> Tensor:
    return torch.randn(4, 32, generator=torch.Generator().manual_seed(1))


TEXT = {"before": (1, 2), "after": (21, 22, 23)}


@pytest.mark.parametrize("text", [{}, TEXT])
def test_logits_of_a_padded_row_are_those_of_the_row_alone(make_model, vectors, text):
    model = make_model(**text).double()
    ids = torch.randint(50, (4, 6), generator=torch.Generator().manual_seed(2))
    together = model(with_prompts(vectors.double(), PROMPTS), ids)
    for row, prompt in enumerate(PROMPTS):
        alone = model(with_prompts(vectors[row : row + 1].double(), [prompt]), ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-9, atol=1e-9)
    without = model(vectors[2:3].double(), ids[2:3])
    torch.testing.assert_close(together[2:3], without, rtol=1e-9, atol=1e-9)


def test_prompt_changes_what_is_predicted(make_model, vectors):
    model = make_model()
    ids = torch.zeros(4, 3, dtype=torch.long)
    assert (model(with_prompts(vectors, PROMPTS), ids)[0] - model(vectors, ids)[0]).abs().max() > 0.1


@pytest.mark.parametrize("text", [{}, TEXT])
def test_captions_behind_one_prompt_have_the_loss_of_captions_one_by_one(make_model, vectors, text):
    model = make_model(**text).double()
    first, second = torch.tensor([[4, 5, 6, 7]]), torch.tensor([[8, 9, 10]])
    given = with_prompts(vectors[:2].double(), PROMPTS[:2])
    labels = torch.cat([first, second], dim=1).repeat(2, 1)
    positions = torch.tensor([[0, 1, 2, 3, 0, 1, 2]]).repeat(2, 1)
    packed = model(given, labels, labels, positions)
    apart = sum(model(given, one.repeat(2, 1), one.repeat(2, 1)) for one in (first, second))
    torch.testing.assert_close(packed, apart, rtol=1e-10, atol=0)
    shorter = labels.clone()
    shorter[1, 4:] = IGNORE
    left = model(given, labels, shorter, positions)
    expected = sum(
        model(with_prompts(vectors[row : row + 1].double(), [PROMPTS[row]]), caption, caption)
        for row, caption in ((0, first), (0, second), (1, first))
    )
    torch.testing.assert_close(left, expected, rtol=1e-10, atol=0)


HOW = {
    "beam": DecodeConfig(beam=True, num_captions=3, max_new_tokens=12),
    "greedy": DecodeConfig(greedy=True, max_new_tokens=12),
    "sampling": DecodeConfig(temp=1.0, seed=3, num_captions=2, max_new_tokens=12),
    "words": DecodeConfig(beam=True, prompt="a red", max_new_tokens=12),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["plain", "packed"])
def test_captions_of_a_batch_are_those_of_images_one_by_one(make_model, tokenizer, vectors, how, kind):
    model = make_model(prompt_tokens=5)
    if kind == "packed":
        if not packable(model.lm):
            pytest.skip("this torch cannot pack weights")
        pack_for_rows(model.lm)
    together = decode(model, tokenizer, with_prompts(vectors, PROMPTS), HOW[how])
    for row, prompt in enumerate(PROMPTS):
        [alone] = decode(model, tokenizer, with_prompts(vectors[row : row + 1], [prompt]), HOW[how], [row])
        assert [c.token_ids for c in together[row]] == [c.token_ids for c in alone]


def test_eight_bits_read_prompts_too(make_model, tokenizer, vectors):
    exact, rounded = make_model(prompt_tokens=5), make_model(prompt_tokens=5)
    rounded.lm = quantised(rounded.lm)
    given, how = with_prompts(vectors, PROMPTS), DecodeConfig(greedy=True, max_new_tokens=1)
    wanted, found = (decode(model, tokenizer, given, how) for model in (exact, rounded))
    assert [c.logprob for [c] in found] == pytest.approx([c.logprob for [c] in wanted], abs=0.2)


@pytest.mark.parametrize("kind", ["llama", "opt", "gpt_neox", "bloom"])
def test_other_language_models_read_prompts_with_padding(kind, vectors):
    from transformers import AutoConfig, AutoModelForCausalLM

    from clipcap.models.caption_model import ClipCaptionModel
    from clipcap.models.config import ModelConfig

    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    more = {"ffn_dim": 64, "word_embed_proj_dim": 32} if kind == "opt" else {}
    if kind in ("llama", "gpt_neox"):
        more = {"intermediate_size": 64}
    torch.manual_seed(0)
    lm = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more)).eval()
    model = ClipCaptionModel(ModelConfig(clip_dim=32, prefix_length=2, tune="full"), lm).eval()
    ids = torch.randint(50, (4, 6), generator=torch.Generator().manual_seed(2))
    together = model(with_prompts(vectors, PROMPTS), ids)
    for row, prompt in enumerate(PROMPTS):
        alone = model(with_prompts(vectors[row : row + 1], [prompt]), ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, rtol=1e-3, atol=1e-4)
