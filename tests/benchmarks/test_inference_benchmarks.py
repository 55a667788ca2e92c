"""Plain decoding gives the tokens of ours, and counted arithmetic of decoding and encoding is what is computed."""

from __future__ import annotations

import pytest
import torch
from clip.model import CLIP
from support.small import META, feature_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.plain_decoding import PlainDecoding
from benchmarks.quality.prompts.guidance import guided, mean_photo
from benchmarks.speed.decode.arithmetic import decode_flops
from benchmarks.speed.parse.arithmetic import encoder_flops
from clipcap.captioning.beam_search import beam_search
from clipcap.captioning.cached_decoder import CachedDecoder
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import decode
from clipcap.captioning.sampling import uniforms
from clipcap.features.files import read_features


@pytest.fixture(scope="module")
def embeddings():
    return torch.randn(3, 32, generator=torch.Generator().manual_seed(3))


@pytest.mark.parametrize("way", [{"beam": True, "beam_size": 3}, {"greedy": True}, {"seed": 5, "top_p": 0.8}])
def test_plain_decoding_writes_the_tokens_of_ours(make_model, tokenizer, embeddings, way):
    model, config = make_model(), DecodeConfig(**way, max_new_tokens=9)
    plain = PlainDecoding(model, 9)
    ours = [captions[0].token_ids for captions in decode(model, tokenizer, embeddings, config)]
    for image, ids in enumerate(ours):
        one = embeddings[image : image + 1]
        if config.beam:
            expected = plain.beam(one, 3)
        elif config.greedy:
            expected = plain.greedy(one)
        else:
            expected = plain.sample(one, uniforms([image], config)[0, 0])
        assert len(ids) == 9 and ids == expected


def test_guidance_of_strength_1_is_beam_search_and_a_stronger_one_is_not(make_model, tokenizer, tmp_path):
    photos = read_features(feature_file(tmp_path / "f.pkl", ["a red apple", "two eggs", "soup"]))
    captioner = Captioner(make_model(encoder=META.encoder), tokenizer)
    given = [photos.given([row]) for row in range(3)]
    expected = [several[0].text for several in captioner.caption(given, beam=True)]
    found = {strength: guided(captioner, photos, [0, 1, 2], mean_photo(photos), strength) for strength in (1, 3)}
    assert found[1] == expected and found[3] != expected


def test_counted_decoding_is_what_is_computed(make_model, embeddings):
    model = make_model(mapping_type="transformer", prefix_length=24, prefix_length_clip=24)
    model.lm.set_attn_implementation("eager")  # a fused one may go uncounted: so elsewhere too, below
    config = DecodeConfig(beam=True, beam_size=4, max_new_tokens=8)
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        beam_search(CachedDecoder(model, model.prefix(embeddings[:1])), config, [-1], [])
    needed = decode_flops(model.config, model.lm.config, 8, 4)
    assert 0.9 * counter.get_total_flops() < needed < 1.05 * counter.get_total_flops()


@pytest.mark.parametrize("sizes", [(32, 64, 2, 64, 16), (32, 64, (1, 2, 1, 1), 16, None)], ids=["vit", "resnet"])
def test_counted_encoding_is_what_is_computed(sizes):
    tower = CLIP(*sizes, 8, 16, 64, 1, 1).visual.eval()
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        tower(torch.randn(1, 3, 64, 64))
    computed = counter.get_total_flops()
    assert 0.9 * computed < encoder_flops(tower, needed_only=False) < 1.05 * computed
