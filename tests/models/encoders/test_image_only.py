"""Image networks without a text tower: their own packages' numbers, captions end to end, refusals in one line."""

from __future__ import annotations

import json

import pytest
import torch
import transformers as tf
from support.road import draw_set, lines_of, picture, run

from clipcap.errors import ClipcapError
from clipcap.models.encoders.load import load_encoder

VIT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 32, "patch_size": 16}
KINDS = {
    "dinov2": (tf.Dinov2Model, tf.Dinov2Config(**VIT)),
    "dinov3": (tf.DINOv3ViTModel, tf.DINOv3ViTConfig(**VIT, intermediate_size=32)),
    "vit": (tf.ViTModel, tf.ViTConfig(**VIT, intermediate_size=32)),
    "convnext": (tf.ConvNextModel, tf.ConvNextConfig(hidden_sizes=[8, 16, 24, 40], depths=[1, 1, 1, 1])),
    "siglip": (tf.SiglipVisionModel, tf.SiglipVisionConfig(**VIT, intermediate_size=32)),
}
TIMM = ("test_vit", "test_convnext")


def make_image_network(folder, kind):
    """A small network of transformers with random weights, and its image processor."""
    torch.manual_seed(0)
    network, config = KINDS[kind]
    network(config).save_pretrained(folder)
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return f"hf:{folder}"


def make_timm(folder, name):
    """The weights of a small network of timm, with the classifier that a checkpoint has."""
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    torch.save({"state_dict": timm.create_model(name, num_classes=7).state_dict()}, folder / f"{name}.pth")
    return f"timm:{name}/{folder / name}.pth"


@pytest.fixture(params=[*KINDS, *TIMM])
def named(request, tmp_path):
    return make_timm(tmp_path, request.param) if request.param in TIMM else make_image_network(
        tmp_path / "net", request.param
    )  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    return draw_set(tmp_path / "photos", 6, captions=2)


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedding_is_the_networks_own_pooled_output(kind, tmp_path):
    encoder = load_encoder(make_image_network(tmp_path, kind), "cpu")
    pixels = torch.stack([encoder.preprocess(picture(i)) for i in range(2)])
    with torch.no_grad():
        expected = tf.AutoModel.from_pretrained(tmp_path)(pixel_values=pixels).pooler_output
    assert torch.allclose(encoder.encode_images(pixels), expected, atol=1e-5)
    assert encoder.dim == expected.shape[1]


def test_the_class_token_stands_in_for_a_pooling_layer_that_no_file_holds(tmp_path):
    torch.manual_seed(0)
    tf.ViTForImageClassification(KINDS["vit"][1]).save_pretrained(tmp_path)
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    one, other = (load_encoder(f"hf:{tmp_path}", "cpu") for _ in range(2))
    pixels = one.preprocess(picture(0))[None]
    with torch.no_grad():
        hidden = tf.AutoModel.from_pretrained(tmp_path, add_pooling_layer=False)(
            pixel_values=pixels
        ).last_hidden_state
    assert torch.allclose(one.encode_images(pixels), hidden[:, 0], atol=1e-5)
    assert one.weights_id == other.weights_id
    assert torch.equal(one.encode_images(pixels), other.encode_images(pixels))


@pytest.mark.parametrize("name", TIMM)
def test_a_network_of_timm_gives_what_its_classifier_reads(name, tmp_path):
    named = make_timm(tmp_path, name)
    import timm

    encoder = load_encoder(named, "cpu")
    network = timm.create_model(name, num_classes=7).eval()
    network.load_state_dict(torch.load(tmp_path / f"{name}.pth")["state_dict"])
    pixels = encoder.preprocess(picture(0))[None]
    with torch.no_grad():
        expected = network.forward_head(network.forward_features(pixels), pre_logits=True)
    assert torch.allclose(encoder.encode_images(pixels), expected, atol=1e-5)


def test_photos_are_parsed_learnt_and_captioned_and_words_are_refused(named, photos, tmp_path, lm_folder, capsys):
    features, runs = tmp_path / "set.pkl", tmp_path / "runs"
    place = ("--data_path", photos, "--out", features, "--clip_model_type", named, "--workers", 0)
    assert run(capsys, "parse", "custom", *place)[0] == 0
    few = ("--epochs", 1, "--bs", 4, "--prefix_length", 2, "--out_dir", runs)
    assert run(capsys, "train", "--data", features, "--lm", lm_folder, *few)[0] == 0
    short = ("--load_pt", runs, "--max_new_tokens", 6, "--device", "cpu")
    status, lines, _ = run(capsys, "predict", "--img", photos, *short)
    assert (status, len(lines)) == (0, 6)
    status, lines, err = run(capsys, "predict", "--img", photos, *short, "--rerank", "clip")
    assert (status, lines) == (1, [])
    assert "has no text tower" in err[-1] and "--score_with ENCODER" in err[-1]
    status, _, _ = run(capsys, "index", features, "--out", tmp_path / "index")
    assert status == 0
    status, _, err = run(capsys, "search", "a red apple", "--index", tmp_path / "index")
    assert status == 1 and "has no text tower" in err[-1]


def test_a_second_encoder_judges_a_captioner_that_reads_no_words(photos, tmp_path, lm_folder, clip_file, capsys):
    features, runs, out = tmp_path / "set.pkl", tmp_path / "runs", tmp_path / "scores"
    named = make_image_network(tmp_path / "net", "dinov2")
    place = ("--data_path", photos, "--out", features, "--clip_model_type", named, "--workers", 0)
    assert run(capsys, "parse", "custom", *place)[0] == 0
    few = ("--epochs", 1, "--bs", 4, "--prefix_length", 2, "--out_dir", runs)
    assert run(capsys, "train", "--data", features, "--lm", lm_folder, *few)[0] == 0
    short = ("--load_pt", runs, "--max_new_tokens", 6, "--device", "cpu")
    judged = ("--rerank", "clip", "--score_with", clip_file)
    for source in (("--img", photos), ("--features", features)):
        status, lines, _ = run(capsys, "predict", *source, *short, *judged, "--out", tmp_path / "c.jsonl")
        assert status == 0
        found = lines_of(tmp_path / "c.jsonl")
        assert len(found) == 6 and all("clip_score" in json.dumps(line) for line in found)
    scoring = ("evaluate", "--data", features, *short, "--no_java", "--out", out)
    assert run(capsys, *scoring)[0] == 0
    metrics = json.loads((out / "metrics.json").read_text())
    assert "CLIPScore" not in metrics["corpus"]
    assert any("has no text tower" in note for note in metrics["notes"])
    status, lines, _ = run(capsys, *scoring, "--score_with", clip_file)
    metrics = json.loads((out / "metrics.json").read_text())
    assert "CLIPScore" in metrics["corpus"] and f"CLIPScore by {clip_file}" in lines


def test_own_scores_name_the_same_encoder(photos, tmp_path, lm_folder, clip_file, capsys):
    features, runs, out = tmp_path / "set.pkl", tmp_path / "runs", tmp_path / "scores"
    place = ("--data_path", photos, "--out", features, "--clip_model_type", clip_file, "--workers", 0)
    assert run(capsys, "parse", "custom", *place)[0] == 0
    few = ("--epochs", 1, "--bs", 4, "--prefix_length", 2, "--out_dir", runs)
    assert run(capsys, "train", "--data", features, "--lm", lm_folder, *few)[0] == 0
    short = ("--load_pt", runs, "--max_new_tokens", 6, "--device", "cpu")
    scores = []
    for second in ((), ("--score_with", clip_file)):
        status, lines, _ = run(capsys, "evaluate", "--data", features, *short, "--no_java", "--out", out, *second)
        assert status == 0 and f"CLIPScore by {clip_file} (same encoder as the captioner reads)" in lines
        scores.append(json.loads((out / "metrics.json").read_text())["corpus"]["CLIPScore"]["value"])
    assert scores[0] == pytest.approx(scores[1], rel=1e-2)  # float16 and float32 of one vector


def test_wrong_weights_and_names_are_refused_in_one_line(tmp_path):
    pytest.importorskip("timm")
    torch.save({"weight": torch.zeros(2)}, tmp_path / "other.pth")
    with pytest.raises(ClipcapError, match=r"timm has no model 'test_vitt'; the nearest are .*test_vit"):
        load_encoder("timm:test_vitt", "cpu")
    with pytest.raises(ClipcapError, match="there is no file"):
        load_encoder(f"timm:test_vit/{tmp_path}/nothing.pth", "cpu")
    with pytest.raises(ClipcapError, match="is missing: these are weights of another network"):
        load_encoder(f"timm:test_vit/{tmp_path}/other.pth", "cpu")
    named = make_timm(tmp_path, "test_vit")
    with pytest.raises(ClipcapError, match="weights of another network"):
        load_encoder(named.replace("test_vit/", "test_vit2/"), "cpu")


def test_a_network_that_gives_other_numbers_each_time_is_refused(tmp_path):
    torch.manual_seed(0)
    config = tf.ViTMAEConfig(**VIT, intermediate_size=32)
    network = tf.ViTMAEModel(config)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(10)
    network.save_pretrained(tmp_path)
    tf.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path)
    with pytest.raises(ClipcapError, match="other numbers each time"):
        load_encoder(f"hf:{tmp_path}", "cpu")
