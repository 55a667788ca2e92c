"""Steps of fixed shapes write what growing ones write; on a GPU they are replayed as a graph."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from support.gpu import needs_gpu
from support.language_models import language_model

from clipcap.captioning.beam_search import beam_search
from clipcap.captioning.cached_decoder import CachedDecoder
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.fixed_step import fixed_steps
from clipcap.captioning.sampling import sample
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.config import ModelConfig
from clipcap.models.kernels.packed_linear import pack_for_rows

BEAMS = DecodeConfig(beam=True, beam_size=3, num_captions=3, max_new_tokens=9)
SAMPLES = DecodeConfig(num_captions=2, seed=3, max_new_tokens=9)
STOP = list(range(5, 60))


@pytest.fixture(params=["gpt2", "llama"])
def model(request):
    lm = language_model(request.param)
    with torch.no_grad():  # spread the distributions
        for parameter in lm.parameters():
            parameter.mul_(5 if parameter.dim() > 1 else 1)
    torch.manual_seed(1)
    return ClipCaptionModel(ModelConfig(clip_dim=16, prefix_length=4), lm).eval()


@pytest.fixture(params=["whole", "padded"])
def mask(request):
    """Which positions of three prefixes count."""
    found = torch.ones(3, 4, dtype=torch.bool)
    found[1, :2] = False
    return None if request.param == "whole" else found


def embeddings(seed: int = 0):
    return torch.randn(3, 16, generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
def write(model, config, given, mask=None, fixed=False):
    """What was written, and the decoder that wrote it."""
    mask = mask if mask is None else mask.to(given.device)
    decoder = CachedDecoder(model, model.prefix(given), mask, fixed=fixed)
    search = beam_search if config.beam else lambda *words: sample(*words, range(3))
    found = search(decoder, config.resolved(), STOP, [])
    assert decoder.rows_stay == fixed
    return found, decoder


@pytest.mark.parametrize("config", [BEAMS, SAMPLES], ids=["beams", "samples"])
def test_fixed_steps_write_what_growing_ones_write(model, mask, config):
    lengths = set()
    for seed in range(3):  # the second and third use the step of the first
        growing, _ = write(model, config, embeddings(seed), mask)
        fixed, _ = write(model, config, embeddings(seed), mask, fixed=True)
        assert torch.equal(growing.tokens, fixed.tokens)
        torch.testing.assert_close(growing.total, fixed.total, rtol=1e-4, atol=1e-4)
        lengths |= set(growing.length.flatten().tolist())
    assert len(lengths) > 1


def test_a_step_serves_the_next_batch_of_the_same_size_but_no_two_at_once(model):
    steps = []
    for seed in range(2):
        *_, decoder = write(model, BEAMS, embeddings(seed), fixed=True)
        steps.append(decoder._fixed)
        del decoder
    assert steps[0] is steps[1]
    *_, one = write(model, BEAMS, embeddings(), fixed=True)
    *_, other = write(model, BEAMS, embeddings(), fixed=True)
    assert one._fixed is not other._fixed


def test_a_size_is_fixed_when_it_comes_again(model):
    found = []
    with torch.inference_mode():
        for _ in range(3):
            decoder = CachedDecoder(model, model.prefix(embeddings()))
            found.append(fixed_steps.of(decoder, 2, 5, reorders=False, at_once=False))
            del decoder
    assert found[0] is None and found[1] is found[2] is not None


def test_a_model_forgets_its_steps(model):
    *_, decoder = write(model, BEAMS, embeddings(), fixed=True)
    step = weakref.ref(decoder._fixed)
    del decoder
    fixed_steps.forget(model)
    gc.collect()
    assert step() is None


def test_a_step_is_made_anew_where_frozen_weights_have_changed(model):
    write(model, BEAMS, embeddings(), fixed=True)
    before, _ = write(model, BEAMS, embeddings())
    with torch.no_grad():
        for parameter in model.lm.parameters():
            parameter.mul_(0.5)
    after, _ = write(model, BEAMS, embeddings())
    assert not torch.equal(before.tokens, after.tokens)
    assert torch.equal(write(model, BEAMS, embeddings(), fixed=True)[0].tokens, after.tokens)


def merged(model):
    for module in model.lm.modules():
        if hasattr(module, "lora_A"):
            module.merge()


CHANGES = {
    "training mode": lambda model: model.lm.train(),
    "bfloat16": lambda model: pack_for_rows(model, torch.bfloat16),
    "adapter merged": merged,
    "weights moved": lambda model: model.lm.load_state_dict(copy.deepcopy(model.lm.state_dict()), assign=True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_step_is_made_anew_where_the_model_computes_otherwise(change):
    model = ClipCaptionModel(ModelConfig(clip_dim=16, prefix_length=4, tune="lora"), language_model("llama")).eval()
    *_, before = write(model, BEAMS, embeddings(), fixed=True)
    step = before._fixed
    del before
    CHANGES[change](model)
    *_, after = write(model, BEAMS, embeddings(), fixed=True)
    assert after._fixed is not step


def test_under_autocast_a_prefix_and_a_token_may_come_in_different_numbers(model):
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = write(model, BEAMS, embeddings(), fixed=True)
    assert found.tokens.shape == (3, 3, 9) and found.total.isfinite().all()


def test_steps_are_not_fixed_with_gradients_nor_for_more_rows_than_gain(model):
    decoder = CachedDecoder(model, model.prefix(embeddings()), fixed=True)
    decoder.expand(2, 4)
    assert not decoder.rows_stay
    with torch.inference_mode():
        decoder = CachedDecoder(model, model.prefix(embeddings()), fixed=True)
        decoder.expand(2, 1 << 22)
        assert not decoder.rows_stay


@needs_gpu
@pytest.mark.parametrize("config", [BEAMS, SAMPLES], ids=["beams", "samples"])
def test_graphs_on_a_gpu_write_what_growing_steps_write_there(model, mask, config):
    model = copy.deepcopy(model).cuda()
    for seed in range(3):
        given = embeddings(seed).cuda()
        growing, _ = write(model, config, given, mask)
        fixed, decoder = write(model, config, given, mask, fixed=True)
        assert decoder._fixed.graph is not None
        assert torch.equal(growing.tokens, fixed.tokens)
