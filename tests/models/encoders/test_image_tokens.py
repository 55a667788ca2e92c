"""Tokens of images beside their vectors: every kind of encoder, in one pass, the same whatever computes beside it."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import transformers as tf
from support.road import picture

from clipcap.errors import ClipcapError
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.token_spec import ImageMap, TokenSpec, image_map

VIT = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}
BODY = {**VIT, "intermediate_size": 32}
KINDS = {
    "dinov2": (tf.Dinov2Model, tf.Dinov2Config(**VIT), 17),
    "dinov3": (tf.DINOv3ViTModel, tf.DINOv3ViTConfig(**BODY), 17),
    "vit": (tf.ViTModel, tf.ViTConfig(**BODY), 17),
    "convnext": (tf.ConvNextModel, tf.ConvNextConfig(hidden_sizes=[8, 16, 24, 40], depths=[1, 1, 1, 1]), 1),
    "siglip": (tf.SiglipVisionModel, tf.SiglipVisionConfig(**BODY), 16),
}
TIMM = {"test_vit": 101, "test_convnext": 25, "test_resnet": 25}  # of 160 x 160 pixels


def pixels_of(encoder, count=3):
    return torch.stack([encoder.preprocess(picture(i)) for i in range(count)])


def vision_network(folder, kind):
    torch.manual_seed(0)
    network, config, _ = KINDS[kind]
    network(config).save_pretrained(folder)
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return load_encoder(f"hf:{folder}", "cpu")


def timm_network(folder, name):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save(timm.create_model(name).state_dict(), folder / f"{name}.pth")
    return load_encoder(f"timm:{name}/{folder / name}.pth", "cpu")


def clip_network(folder):
    torch.manual_seed(0)
    config = tf.CLIPConfig(
        text_config={"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 49408},
        vision_config=BODY,
        projection_dim=24,
    )
    tf.CLIPModel(config).save_pretrained(folder)
    tf.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    tf.CLIPTokenizer(vocab={"<|startoftext|>": 0, "<|endoftext|>": 1}, merges=[]).save_pretrained(folder)
    return load_encoder(f"hf:{folder}", "cpu")


@pytest.fixture(params=[*KINDS, *TIMM, "clip of transformers", "clip of OpenAI", "ResNet CLIP"])
def encoder(request, tmp_path, clip_file):
    name = request.param
    if name in KINDS:
        return vision_network(tmp_path, name)
    if name in TIMM:
        return timm_network(tmp_path, name)
    if name == "clip of transformers":
        return clip_network(tmp_path)
    return load_encoder("demo" if name == "ResNet CLIP" else str(clip_file), "cpu")


def test_the_vector_is_the_one_without_tokens(encoder):
    pixels = pixels_of(encoder)
    for layer in (-1, -2):
        vector, tokens = encoder.encode_tokens(pixels, layer)
        torch.testing.assert_close(vector, encoder.encode_images(pixels), rtol=1e-4, atol=1e-5)
        assert tokens.ndim == 3 and len(tokens) == 3 and tokens.isfinite().all()
        assert not torch.allclose(tokens[0], tokens[1])


def test_threads_that_compute_side_by_side_change_nothing(encoder):
    pixels = pixels_of(encoder, 6)
    expected = [encoder.encode_tokens(part, -2) for part in pixels.split(1)]
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(lambda part: encoder.encode_tokens(part, -2), pixels.split(1) * 3))
    for (vector, tokens), (wanted, wanted_tokens) in zip(found, expected * 3, strict=True):
        assert torch.equal(vector, wanted) and torch.equal(tokens, wanted_tokens)


@pytest.mark.parametrize("kind", KINDS)
def test_tokens_of_transformers_are_its_last_hidden_state(tmp_path, kind):
    encoder = vision_network(tmp_path, kind)
    pixels = pixels_of(encoder)
    with torch.no_grad():
        hidden = encoder.network(pixel_values=pixels).last_hidden_state
    hidden = hidden.flatten(2).transpose(1, 2) if hidden.ndim == 4 else hidden
    _, tokens = encoder.encode_tokens(pixels)
    torch.testing.assert_close(tokens, hidden)
    assert tokens.shape[1] == KINDS[kind][2]


@pytest.mark.parametrize("name", TIMM)
def test_tokens_of_timm_are_its_features(tmp_path, name):
    encoder = timm_network(tmp_path, name)
    pixels = pixels_of(encoder)
    with torch.no_grad():
        features = encoder.network.forward_features(pixels)
    features = features.flatten(2).transpose(1, 2) if features.ndim == 4 else features
    torch.testing.assert_close(encoder.encode_tokens(pixels)[1], features)
    assert features.shape[1] == TIMM[name]


def test_fast_and_plain_towers_of_openai_give_the_same_tokens(clip_file, monkeypatch):
    fast = load_encoder(str(clip_file), "cpu")
    monkeypatch.setenv("CLIPCAP_PLAIN", "1")
    plain = load_encoder(str(clip_file), "cpu")
    assert type(fast.network.visual) is not type(plain.network.visual)
    pixels = pixels_of(fast)
    for layer in range(-len(plain.network.visual.transformer.resblocks), 0):
        for ours, theirs in zip(fast.encode_tokens(pixels, layer), plain.encode_tokens(pixels, layer), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_tokens_of_clip_are_normed_as_the_vector_is_wherever_its_weights_lie(tmp_path):
    encoder = clip_network(tmp_path)
    vector, tokens = encoder.encode_tokens(pixels_of(encoder))
    with torch.no_grad():
        torch.testing.assert_close(encoder.network.visual_projection(tokens[:, 0]), vector)


def test_layer_before_the_last_of_the_bundled_clip_is_finer():
    encoder = load_encoder("demo", "cpu")
    pixels = pixels_of(encoder)
    last, before = (encoder.encode_tokens(pixels, layer)[1].shape for layer in (-1, -2))
    assert (tuple(last), tuple(before)) == ((3, 4, 512), (3, 16, 256))


def test_pooling_averages_the_grid_and_leaves_the_class_token():
    sequence = torch.randn(2, 17, 3)
    found = image_map(torch.randn(2, 5), sequence, (4, 4))
    assert torch.equal(found.tokens(), sequence)
    pooled = found.tokens(2)
    assert pooled.shape == (2, 5, 3) and torch.equal(pooled[:, 0], sequence[:, 0])
    first = sequence[:, 1:].unflatten(1, (4, 4))[:, :2, :2].mean((1, 2))
    torch.testing.assert_close(pooled[:, 1], first)
    with pytest.raises(ClipcapError, match="grid is 4 x 4"):
        found.tokens(5)


def test_a_layer_that_is_not_there_is_refused_in_a_line(encoder):
    with pytest.raises(ClipcapError, match=r"--layer -99: .* has .* layers, the first is -"):
        encoder.encode_tokens(pixels_of(encoder), -99)


def test_the_words_of_tokens_are_checked():
    assert TokenSpec.parse("grid", -2, 4) == TokenSpec("grid", 0, -2, 4)
    assert TokenSpec.parse("crops:3").views == 9 and TokenSpec.parse("frames:8").views == 8
    for spec in (TokenSpec("grid", 0, -2, 4), TokenSpec("crops", 3)):
        words = spec.flags().split()[1::2]
        assert TokenSpec.parse(words[0], *map(int, words[1:])) == spec
    for text in ("grids", "crops", "crops:1", "crops:99", "frames:x", "grid:2", ""):
        with pytest.raises(ClipcapError, match="--tokens"):
            TokenSpec.parse(text)
    with pytest.raises(ClipcapError, match="leave them out with crops:3"):
        TokenSpec.parse("crops:3", -2)
    with pytest.raises(ClipcapError, match="--layer counts from the end"):
        TokenSpec.parse("grid", 2)


def test_maps_without_places_of_their_own_shape_take_the_largest_square():
    assert isinstance(image_map(torch.zeros(1, 1), torch.zeros(1, 10, 2)), ImageMap)
    assert image_map(torch.zeros(1, 1), torch.zeros(1, 10, 2)).places.shape == (1, 2, 3, 3)
