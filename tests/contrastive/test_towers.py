"""Dual encoders to train: what is trained is what `--clip_model_type` gives back, number by number."""

from __future__ import annotations

import clip
import pytest
import torch
from conftest import CAPTIONS
from support.road import picture
from support.towers_small import SIDE, clip_of_transformers, text_tower, vision_tower

from clipcap.contrastive.config import TowersConfig
from clipcap.contrastive.dataset import Captions, normalised
from clipcap.contrastive.image_cache import square
from clipcap.contrastive.towers.make import make_towers
from clipcap.errors import ClipcapError
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.openai_weights import load_openai_clip
from clipcap.sources.record import Record

PHOTOS = [picture(i, size) for i, size in enumerate([(100, 80), (64, 64), (70, 140)])]
SIZES = {"resolution": 64, "vision_width": 64, "vision_layers": "2", "text_width": 64, "text_layers": 2}
LONG = " ".join(["apple"] * 100)


def towers(seed=0, **options):
    torch.manual_seed(seed)
    return make_towers(TowersConfig(**{**SIZES, **options})).eval()


def stored(model, folder):
    folder.mkdir()
    model.write(folder)
    return folder


@torch.no_grad()
def assert_same_encoder(model, encoder):
    """The encoder gives the embeddings that the towers gave in training, from files and words on."""
    squares = torch.stack([torch.from_numpy(square(photo, model.resolution).copy()) for photo in PHOTOS])
    pixels = torch.stack([encoder.preprocess(photo) for photo in PHOTOS])
    torch.testing.assert_close(pixels, normalised(squares, model.mean, model.std), atol=2e-2, rtol=0)
    torch.testing.assert_close(encoder.encode_images(pixels), model.encode_images(pixels), atol=1e-5, rtol=1e-5)
    texts = [*CAPTIONS, LONG]
    captions = Captions([Record("x", None, tuple(texts))], model)
    trained = model.encode_texts(*captions.padded(captions.keys))
    torch.testing.assert_close(encoder.encode_texts(texts), trained, atol=1e-5, rtol=1e-5)
    assert encoder.dim == model.width == trained.shape[1]


@pytest.mark.parametrize("layers", ["2", "1,1,1,1"])
def test_a_new_clip_is_an_encoder_of_openais_format(layers, tmp_path):
    model = towers(vision_layers=layers, vision_width=64, embed_dim=48)
    folder = stored(model, tmp_path / "clip-best")
    assert_same_encoder(model, load_encoder(str(folder), "cpu"))
    by_file = load_openai_clip(str(folder / "clip.pt")).state_dict()
    for name, tensor in model.network.state_dict().items():
        assert torch.equal(by_file[name], tensor), name


def test_the_clip_package_loads_a_new_clip(tmp_path):
    model = towers()
    network, _ = clip.load(str(stored(model, tmp_path / "c") / "clip.pt"), "cpu")
    tokens = clip.tokenize(CAPTIONS[0])
    torch.testing.assert_close(network.encode_text(tokens), model.network.encode_text(tokens), atol=1e-2, rtol=1e-2)


def test_fine_tuned_weights_are_stored_unrounded(clip_file, tmp_path):
    model = towers(clip_model_type=str(clip_file))
    assert model.rates == (1e-5, 1e-5, 1e-5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 1e-6)  # below what float16 could hold
    assert_same_encoder(model, load_encoder(str(stored(model, tmp_path / "tuned")), "cpu"))
    other = towers(clip_model_type=str(clip_file))
    other.restore(tmp_path / "tuned")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_max_seq_length_is_the_context_of_a_new_clip(tmp_path):
    model = towers(max_seq_length=12)
    assert model.network.positional_embedding.shape[0] == model.max_tokens == 12
    assert max(len(ids) for ids in model.tokenize([LONG, "tea"])) == 12
    assert_same_encoder(model, load_encoder(str(stored(model, tmp_path / "short")), "cpu"))


def test_texts_need_no_padding_to_the_context_length():
    model = towers()
    with torch.no_grad():
        padded = model.network.encode_text(clip.tokenize(list(CAPTIONS)))
        captions = Captions([Record("x", None, CAPTIONS)], model)
        short, mask = captions.padded(captions.keys)
        assert short.shape[1] < 20
        torch.testing.assert_close(model.encode_texts(short, mask), padded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resolution": 70}, "--resolution 70 is not a multiple of 16, --patch_size"),
        ({"resolution": 80, "vision_layers": "1,1,1,1"}, "80 is not a multiple of 32, a ResNet's stride"),
        ({"vision_layers": "3,4"}, "--vision_layers 3,4: give one number"),
        ({"vision_layers": "six"}, "--vision_layers six"),
        ({"vision_width": 100}, "--vision_width must be a multiple of 64, got 100"),
        ({"text_model": "x"}, "--vision_model and --text_model belong together"),
        ({"from_scratch": True}, "--from_scratch is for"),
        ({"clip_model_type": "x", "vision_model": "x", "text_model": "x"}, "--clip_model_type is a whole model"),
        ({"clip_model_type": "nothing"}, "--clip_model_type nothing"),
        ({"vision_model": "./none", "text_model": "./none"}, "--vision_model ./none: there is no such folder"),
    ],
)
def test_options_at_odds_are_refused(options, message):
    with pytest.raises(ClipcapError, match=message):
        towers(**options)


PAIRS = [("resnet", "distilbert"), ("vit", "bert"), ("resnet", "roberta"), ("vit", "gpt2")]


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_any_two_towers_are_an_encoder_of_transformers(vision, text, tmp_path):
    names = {"vision_model": vision_tower(tmp_path / "v", vision), "text_model": text_tower(tmp_path / "t", text)}
    model = towers(**names, embed_dim=24)
    assert model.resolution == SIDE and model.max_tokens == 32
    assert_same_encoder(model, load_encoder(f"hf:{stored(model, tmp_path / 'pair')}", "cpu"))
    tuned = towers(clip_model_type=f"hf:{tmp_path / 'pair'}", seed=7)
    assert_same_encoder(tuned, load_encoder(f"hf:{tmp_path / 'pair'}", "cpu"))


def test_an_encoder_of_a_pair_has_one_fingerprint(tmp_path):
    """BERT's pooler is not trained; drawn anew at every loading it would make another encoder of the same file."""
    names = {"vision_model": vision_tower(tmp_path / "v", "vit"), "text_model": text_tower(tmp_path / "t", "bert")}
    folder = stored(towers(**names), tmp_path / "pair")
    assert len({load_encoder(f"hf:{folder}", "cpu").weights_id for _ in range(2)}) == 1


@pytest.mark.parametrize(("vision", "text"), PAIRS)
def test_all_that_is_trained_gets_a_gradient(vision, text, tmp_path):
    """Processes that train together wait for the gradient of every parameter."""
    names = {"vision_model": vision_tower(tmp_path / "v", vision), "text_model": text_tower(tmp_path / "t", text)}
    model = towers(**names)
    ids = torch.tensor(model.tokenize(CAPTIONS[:1]))
    pixels = torch.randn(1, 3, SIDE, SIDE)
    loss = model.encode_images(pixels).sum() + model.encode_texts(ids, torch.ones_like(ids)).sum()
    (loss + model.network.logit_scale).backward()
    without = [n for n, p in model.network.named_parameters() if p.requires_grad and p.grad is None]
    idle = {n for n, p in model.network.named_parameters() if not p.requires_grad}
    assert without == []
    poolers = {f"text_model.pooler.dense.{name}" for name in ("weight", "bias")}
    assert idle == (poolers if text in ("bert", "roberta") else set())


def test_padding_does_not_change_the_mean_of_a_text(tmp_path):
    names = {
        "vision_model": vision_tower(tmp_path / "v", "vit"),
        "text_model": text_tower(tmp_path / "t", "distilbert"),
    }
    model = towers(**names)
    captions = Captions([Record("x", None, ("tea", CAPTIONS[2]))], model)
    with torch.no_grad():
        together = model.encode_texts(*captions.padded(captions.keys))
        alone = model.encode_texts(*captions.padded(captions.keys[:1]))
    torch.testing.assert_close(together[:1], alone, atol=1e-6, rtol=1e-5)


def test_new_weights_in_the_architectures_of_two_towers(tmp_path):
    names = {"vision_model": vision_tower(tmp_path / "v", "vit"), "text_model": text_tower(tmp_path / "t", "bert")}
    old, new = towers(**names), towers(**names, from_scratch=True)
    name = "text_model.embeddings.word_embeddings.weight"
    old_weight, new_weight = (dict(m.network.named_parameters())[name] for m in (old, new))
    assert old_weight.shape == new_weight.shape and not torch.equal(old_weight, new_weight)
    assert old.rates == (1e-3, 1e-4, 1e-5) and new.rates == (1e-3, 1e-3, 1e-3)


def test_the_halves_of_a_clip_are_towers_too(tmp_path):
    whole = clip_of_transformers(tmp_path / "clip")
    for names in (
        {"vision_model": whole, "text_model": text_tower(tmp_path / "t", "roberta")},
        {"vision_model": vision_tower(tmp_path / "v", "resnet"), "text_model": whole},
        {"clip_model_type": f"hf:{whole}"},
    ):
        model = towers(**names)
        folder = stored(model, tmp_path / f"out{len(list(tmp_path.iterdir()))}")
        assert_same_encoder(model, load_encoder(f"hf:{folder}", "cpu"))


def test_a_model_that_is_no_dual_encoder_is_refused(tmp_path):
    with pytest.raises(ClipcapError, match="is a bert model: what can be trained is a CLIP"):
        towers(clip_model_type=f"hf:{text_tower(tmp_path / 't', 'bert')}")


@pytest.mark.parametrize("kind", ["new", "pair"])
def test_every_parameter_belongs_to_head_image_or_text(kind, tmp_path):
    options = {}
    if kind == "pair":
        options = {"vision_model": vision_tower(tmp_path / "v", "resnet"),
                   "text_model": text_tower(tmp_path / "t", "distilbert")}  # fmt: skip
    model = towers(**options)
    parts = {part: {id(p) for p in model.tower(part)} for part in ("head", "image", "text")}
    assert sum(map(len, parts.values())) == len(list(model.network.parameters()))
    assert len(parts["head"]) == 3 and id(model.network.logit_scale) in parts["head"]
