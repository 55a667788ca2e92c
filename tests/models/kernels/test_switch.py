"""One switch turns all faster paths off, and the numbers stay the same up to rounding."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers.activations import NewGELUActivation

from clipcap.captioning.cached_decoder import CachedDecoder
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.preallocated_layer import PreallocatedLayer
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.kernels.packed_linear import can_pack
from clipcap.models.kernels.switch import VARIABLE, fast, plain
from clipcap.models.language_model import load_tokenizer

DECODING = DecodeConfig(beam=True, beam_size=3, num_captions=2, max_new_tokens=8)


def plain_copy(model: ClipCaptionModel, lm) -> ClipCaptionModel:
    """The same weights, built with the faster paths off."""
    built = ClipCaptionModel(model.config, lm)
    built.load_state_dict(model.state_dict())
    return built.eval()


@pytest.fixture
def make_lm(lm_folder):
    from clipcap.models.language_model import load_lm

    return lambda: load_lm(str(lm_folder))


def loss_and_gradients(model: ClipCaptionModel) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(4, model.config.clip_dim, generator=generator)
    ids = torch.randint(1, 50, (4, 6), generator=generator)
    loss = model(embeddings, ids, ids)
    trained = [p for p in model.parameters() if p.requires_grad]
    return [loss, *torch.autograd.grad(loss, trained)]


@pytest.mark.parametrize("value", [None, "", "0"])
def test_by_default_faster_paths_are_on(monkeypatch, value):
    monkeypatch.delenv(VARIABLE, raising=False)
    if value is not None:
        monkeypatch.setenv(VARIABLE, value)
    assert fast()


def test_the_environment_turns_them_off(monkeypatch):
    monkeypatch.setenv(VARIABLE, "1")
    assert not fast() and not can_pack()


def test_and_so_does_the_context_until_the_outermost_is_left():
    with plain():
        with plain():
            assert not fast()
        assert not fast()
    assert fast()


@pytest.mark.parametrize("tune", ["none", "full"])
def test_loss_and_gradients_are_the_same_without_them(make_model, make_lm, tune):
    model = make_model(tune=tune)
    expected = loss_and_gradients(model)
    with plain():
        slow = plain_copy(model, make_lm())
        assert any(isinstance(module, NewGELUActivation) for module in slow.modules())
        found = loss_and_gradients(slow)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_captions_are_the_same_without_them(make_model, make_lm, lm_folder):
    model, tokenizer = make_model(), load_tokenizer(str(lm_folder))
    embeddings = torch.randn(5, model.config.clip_dim, generator=torch.Generator().manual_seed(1))
    with plain():
        slow = Captioner(plain_copy(model, make_lm()), tokenizer, device="cpu")
        expected = [slow.caption_embeddings(embeddings, DECODING) for _ in range(2)][1]
        assert not any("forward" in vars(module) for module in slow.model.modules())
    captioner = Captioner(copy.deepcopy(model), tokenizer, device="cpu")
    found = [captioner.caption_embeddings(embeddings, DECODING) for _ in range(2)][1]
    if can_pack():
        assert any("forward" in vars(module) for module in captioner.model.modules())
    assert [[c.token_ids for c in row] for row in found] == [[c.token_ids for c in row] for row in expected]
    scores = [torch.tensor([[c.logprob for c in row] for row in rows]) for rows in (found, expected)]
    torch.testing.assert_close(*scores, rtol=1e-4, atol=1e-5)


def test_packed_layers_of_a_loaded_captioner_obey_it(make_model, lm_folder):
    captioner = Captioner(copy.deepcopy(make_model()), load_tokenizer(str(lm_folder)), device="cpu")
    embeddings = torch.randn(3, captioner.model.config.clip_dim, generator=torch.Generator().manual_seed(2))
    before = [captioner.caption_embeddings(embeddings, DECODING) for _ in range(2)][1]
    with plain():
        after = captioner.caption_embeddings(embeddings, DECODING)
    assert [[c.text for c in row] for row in before] == [[c.text for c in row] for row in after]


def test_the_cache_is_transformers_own_without_them(make_model):
    model = make_model()
    with torch.no_grad():
        embeds = model.prefix(torch.randn(2, model.config.clip_dim))
        decoder = CachedDecoder(model, embeds)
        decoder.expand(3, 4)
        assert all(isinstance(layer, PreallocatedLayer) for layer in decoder.cache.layers)
        with plain():
            decoder = CachedDecoder(model, embeds)
            decoder.expand(3, 4)
        assert not any(isinstance(layer, PreallocatedLayer) for layer in decoder.cache.layers)
