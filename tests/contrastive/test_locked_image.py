"""A text tower for stored features: trained, stored, resumed, and used wherever an encoder is."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support.road import draw_set, picture, run
from support.small import metrics
from support.towers_small import vision_tower
from torch.nn import functional as F

from clipcap.contrastive.config import LockedImageConfig, TowersConfig
from clipcap.contrastive.locked_image import LockedImageTask, train_locked_image
from clipcap.contrastive.towers.locked_image import locked_image_towers
from clipcap.contrastive.towers.make import make_towers
from clipcap.deploy.graphs import export_tower
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.features.project import project
from clipcap.models.encoders.load import load_encoder
from clipcap.models.encoders.locked_image import LockedImageEncoder
from clipcap.training.accelerator import make_accelerator
from clipcap.training.config import TrainConfig
from clipcap.training.train import train

COLOURS = ("red", "green", "blue", "yellow", "white", "black", "purple", "orange", "pink", "gray", "brown", "cyan")
SMALL = {"embed_dim": 16, "text_width": 64, "text_layers": 1, "max_seq_length": 16, "bs": 12, "warmup_steps": 0}
WEIGHTS = "locked_image.safetensors"


def colour_features(path: Path, copies: int = 8, seed: int = 0, encoder: str | None = "import:eye") -> Path:
    """Vectors [N, 20] that lie near one of each colour, far from zero, with captions that name it."""
    centres = 5 + 3 * np.random.default_rng(7).standard_normal((len(COLOURS), 20))
    random = np.random.default_rng(seed)
    names = [f"{colour}{copy}" for copy in range(copies) for colour in COLOURS]
    vectors = np.concatenate([centres + 0.3 * random.standard_normal(centres.shape) for _ in range(copies)])
    captions = [
        [f"{words} {colour}" for words in ("a wall of", "plain")] for _ in range(copies) for colour in COLOURS
    ]
    write_features(
        path, embeddings=torch.from_numpy(vectors).float(), image_ids=names, image_paths=[None] * len(names),
        captions=captions, meta=FeatureMeta(encoder=encoder),
    )  # fmt: skip
    return path


def config(data: Path, out: Path, **changes) -> LockedImageConfig:
    return LockedImageConfig.of(**{**SMALL, "data": str(data), "out_dir": str(out), "epochs": 2, **changes})


@pytest.fixture(scope="module")
def colours(tmp_path_factory) -> Path:
    return colour_features(tmp_path_factory.mktemp("features") / "colours.pkl")


@pytest.fixture(scope="module")
def trained(colours, tmp_path_factory) -> Path:
    """The best checkpoint of a short run."""
    return train_locked_image(config(colours, tmp_path_factory.mktemp("run") / "out", epochs=15, val="0.25"))


def test_a_text_tower_learns_which_features_a_caption_is_of(colours, trained, tmp_path, capsys):
    lines = metrics(trained.parent)
    assert lines[-1]["train_loss"] < 0.6 * lines[0]["train_loss"] and lines[-1]["t2i_r10"] > 0.9
    held_out, placed = colour_features(tmp_path / "more.pkl", copies=1, seed=9), tmp_path / "placed.pkl"
    words = ("features", "project", held_out, "--clip_model_type", trained.parent, "--out", placed)
    status, _, err = run(capsys, *words)
    assert status == 0, err
    features, encoder = read_features(placed), load_encoder(str(trained))
    assert features.meta.encoder_weights_id == encoder.weights_id and features.dim == encoder.dim == 16
    assert features.captions_by_row() == read_features(held_out).captions_by_row()
    images = F.normalize(features.rows(slice(None)), dim=1)
    texts = F.normalize(encoder.encode_texts([f"a wall of {colour}" for colour in COLOURS]), dim=1)
    assert ((images @ texts.T).argmax(dim=1) == torch.arange(12)).float().mean() > 0.7
    status, out, err = run(capsys, "search", "plain", "blue", "--index", placed, "--k", 2)
    assert status == 0 and "blue" in out[1], err
    status, out, err = run(capsys, "features", "gap", placed)
    assert status == 0 and any("--noise auto" in line for line in out), err


def test_texts_of_it_train_a_captioner_for_its_features(colours, trained, tmp_path, lm_folder, capsys):
    photos, texts, captioner = tmp_path / "photos.pkl", tmp_path / "texts", tmp_path / "captioner"
    project(colours, photos, str(trained))
    for words in (
        ("parse", "texts", "--data_path", photos, "--clip_model_type", trained, "--out", texts),
        ("train", "--objective", "text", "--data", texts, "--val", photos, "--lm", lm_folder, "--only_prefix",
         "--epochs", 1, "--max_steps", 3, "--prefix_length", 2, "--out_dir", captioner),
        ("predict", "--load_pt", captioner, "--features", photos, "--memory", texts, "--limit", 2),
    ):  # fmt: skip
        status, out, err = run(capsys, *words)
        assert status == 0, err
    assert len(out) == 2


def test_training_sees_the_standardised_vector_of_each_image(colours, tmp_path):
    features = read_features(colours)
    options = config(colours, tmp_path / "out", dropout=0)
    towers = locked_image_towers(options, features)
    vectors = features.rows(slice(None))
    expected = (vectors - vectors.mean(dim=0)) / vectors.std(dim=0)
    torch.testing.assert_close(towers.encode_images(vectors), towers.network.image_projection(expected))


def test_rows_of_one_image_are_one_and_those_without_captions_are_left_out(tmp_path):
    path = tmp_path / "rows.pkl"
    write_features(
        path, embeddings=torch.randn(5, 20), image_ids=["a", "b", "a", "c", "d"], image_paths=[None] * 5,
        captions=[["one"], ["two"], ["three"], [], ["four"]], meta=FeatureMeta(encoder="import:eye"),
    )  # fmt: skip
    features, options = read_features(path), config(path, tmp_path / "out")
    accelerator = make_accelerator(options.loop, options.flat())
    task = LockedImageTask(options, locked_image_towers(options, features), features, None, accelerator)
    pictures = task.pairs.pictures
    assert [(record.image_id, record.captions) for record in pictures.records] == [
        ("a", ("one", "three")), ("b", ("two",)), ("d", ("four",))
    ]  # fmt: skip
    [loaded] = pictures.load([np.array([2, -1, 0])])
    assert torch.equal(loaded[[0, 2]], features.rows([4, 0])) and not loaded[1].any()


def test_photos_go_through_the_image_network_it_names(tmp_path, capsys):
    photos, vectors = draw_set(tmp_path / "set", 8, 2), tmp_path / "vectors.pkl"
    network = f"hf:{vision_tower(tmp_path / 'tower', 'resnet')}"
    status, _, err = run(
        capsys, "parse", "custom", "--data_path", photos, "--clip_model_type", network, "--out", vectors
    )
    assert status == 0, err
    best = train_locked_image(config(vectors, tmp_path / "out"))
    again = tmp_path / "again.pkl"
    status, _, err = run(capsys, "parse", "custom", "--data_path", photos, "--clip_model_type", best, "--out", again)
    assert status == 0, err
    project(vectors, tmp_path / "placed.pkl", str(best))
    parsed, placed = read_features(again), read_features(tmp_path / "placed.pkl")
    torch.testing.assert_close(parsed.rows(slice(None)), placed.rows(slice(None)), atol=1e-4, rtol=1e-4)
    assert parsed.meta.encoder_weights_id == placed.meta.encoder_weights_id
    encoder = load_encoder(str(best))
    pixels = torch.stack([encoder.preprocess(picture(i)) for i in range(2)])
    vector, tokens = encoder.encode_tokens(pixels)
    torch.testing.assert_close(vector, encoder.encode_images(pixels))
    assert torch.equal(tokens, load_encoder(network).encode_tokens(pixels)[1])

    weights = tmp_path / "tower" / "model.safetensors"
    save_file({name: tensor * 1.5 for name, tensor in load_file(weights).items()}, weights, {"format": "pt"})
    with pytest.raises(ClipcapError, match=r"put the old ones back, or train anew"):
        load_encoder(str(best)).encode_images(pixels)


def test_its_photos_are_exported_with_the_image_network(tmp_path, capsys):
    photos, vectors = draw_set(tmp_path / "set", 4, 2), tmp_path / "vectors.pkl"
    network = f"hf:{vision_tower(tmp_path / 'tower', 'resnet')}"
    words = ("parse", "custom", "--data_path", photos, "--clip_model_type", network, "--out", vectors)
    assert run(capsys, *words)[0] == 0
    onnxruntime = pytest.importorskip("onnxruntime")
    encoder = load_encoder(str(train_locked_image(config(vectors, tmp_path / "out", epochs=1))), "cpu")
    pixels = torch.stack([encoder.preprocess(picture(i)) for i in range(2)])
    graph = export_tower(cast(LockedImageEncoder, encoder), pixels)
    session = onnxruntime.InferenceSession(graph.SerializeToString())
    [found] = session.run(None, {"pixels": pixels.numpy()})
    torch.testing.assert_close(torch.from_numpy(found), encoder.encode_images(pixels), atol=1e-4, rtol=1e-4)


def test_it_is_not_trained_on_pictures(trained):
    with pytest.raises(ClipcapError, match="train it on with `clipcap contrastive features --weights_dir"):
        make_towers(TowersConfig(clip_model_type=str(trained)))


def test_photos_of_imported_features_are_refused_and_texts_are_not(trained):
    encoder = load_encoder(str(trained))
    assert isinstance(encoder, LockedImageEncoder) and encoder.encode_texts(["red", "blue"]).shape == (2, 16)
    with pytest.raises(ClipcapError, match="import:eye: stands for embeddings that were made elsewhere"):
        encoder.preprocess(picture(1))


def test_a_resumed_run_equals_an_unbroken_one(colours, tmp_path):
    whole = config(colours, tmp_path / "whole", epochs=3, val="0.25")
    train_locked_image(whole)
    broken = replace(whole, loop=replace(whole.loop, out_dir=str(tmp_path / "broken"), save_steps=1))
    windows = LockedImageTask.windows

    def breaking(self, epoch, skip):
        for number, window in enumerate(windows(self, epoch, skip)):
            if (epoch, number + skip) == (1, 2):
                raise KeyboardInterrupt
            yield window

    LockedImageTask.windows = breaking
    try:
        with pytest.raises(KeyboardInterrupt):
            train_locked_image(broken)
    finally:
        LockedImageTask.windows = windows
    with pytest.raises(ClipcapError, match=r"--resume: .* has dropout 0\.2, this command 0\.5"):
        train_locked_image(broken.with_options(resume=True, dropout=0.5))
    train_locked_image(broken.with_options(resume=True))
    ours, theirs = (load_file(tmp_path / part / "clip-last" / WEIGHTS) for part in ("whole", "broken"))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert metrics(tmp_path / "whole") == metrics(tmp_path / "broken")


def test_another_run_goes_on_from_its_weights(colours, trained, tmp_path):
    none = {"head_lr": 0.0, "text_lr": 0.0, "weight_decay": 0.0}
    more = train_locked_image(config(colours, tmp_path / "more", weights_dir=str(trained), epochs=1, **none))
    assert load_encoder(str(more)).weights_id == load_encoder(str(trained)).weights_id
    with pytest.raises(ClipcapError, match=r"image_projection.bias is \(16,\) there and \(8,\) here: give"):
        train_locked_image(config(colours, tmp_path / "narrow", weights_dir=str(trained), embed_dim=8))
    other = colour_features(tmp_path / "other.pkl", encoder="import:other")
    with pytest.raises(ClipcapError, match="was trained on features of another image network"):
        train_locked_image(config(other, tmp_path / "other", weights_dir=str(trained)))
    with pytest.raises(ClipcapError, match="is no checkpoint of `clipcap contrastive features`"):
        train_locked_image(config(colours, tmp_path / "none", weights_dir=str(tmp_path)))


def test_features_of_other_networks_are_not_projected(colours, trained, clip_file, tmp_path):
    other = colour_features(tmp_path / "other.pkl", copies=1, encoder="import:other")
    with pytest.raises(ClipcapError, match=r"embeddings were made with import:other, .* expects import:eye"):
        project(other, tmp_path / "out.pkl", str(trained))
    with pytest.raises(ClipcapError, match="encodes photos by its own image tower"):
        project(colours, tmp_path / "out.pkl", str(clip_file))
    assert not (tmp_path / "out.pkl").exists()


def test_features_that_are_not_in_its_space_yet_are_told_how_to_get_there(colours, trained, lm_folder, tmp_path):
    project(colours, tmp_path / "placed.pkl", str(trained))
    run_of = TrainConfig.of(
        data=str(tmp_path / "placed.pkl"), val=str(colours), lm=str(lm_folder), out_dir=str(tmp_path / "out")
    )
    with pytest.raises(ClipcapError, match=rf"move them by `clipcap features project {colours} --clip_model_type"):
        train(run_of)


def test_a_number_that_never_changes_leaves_others_their_say(colours, tmp_path):
    features = read_features(colours)
    vectors = features.rows(slice(None))
    vectors[:, 3], vectors[:, 4] = 0, 7
    still = replace(features, embeddings=vectors)
    towers = locked_image_towers(config(colours, tmp_path / "out", dropout=0), still)
    moved = vectors + 0.05 * torch.eye(20)[3]
    cosines = F.cosine_similarity(towers.encode_images(vectors), towers.encode_images(moved))
    assert (cosines > 0.99).all()
    alike = locked_image_towers(config(colours, tmp_path / "out"), replace(features, embeddings=torch.ones(96, 20)))
    assert alike.encode_images(torch.ones(1, 20)).isfinite().all()


def changed(path: Path, source: Path, captions=None, nan: int | None = None) -> Path:
    """The features of a file with other captions, or a number that is none."""
    features = read_features(source)
    vectors = features.rows(slice(None))
    if nan is not None:
        vectors[nan, 2] = torch.nan
    write_features(
        path, embeddings=vectors, image_ids=features.image_ids, image_paths=features.image_paths,
        captions=features.captions_by_row() if captions is None else captions, meta=features.meta,
    )  # fmt: skip
    return path


def test_features_that_cannot_be_trained_on_are_named(colours, tmp_path, messages):
    bad = changed(tmp_path / "bad.pkl", colours, nan=5)
    with pytest.raises(ClipcapError, match=r"bad.pkl: the features of image black0 are not finite"):
        train_locked_image(config(bad, tmp_path / "out"))
    few = changed(tmp_path / "few.pkl", colours, [["red"], *[[]] * 95])
    with pytest.raises(ClipcapError, match="needs two captioned training images or more, here: 1"):
        train_locked_image(config(few, tmp_path / "out"))
    assert any("few.pkl: 95 images without captions left out" in line for line in messages())
    silent = changed(tmp_path / "silent.pkl", colours, [[]] * 96)
    with pytest.raises(ClipcapError, match=r"silent.pkl: no image has a caption"):
        train_locked_image(config(colours, tmp_path / "out", val=str(silent)))
    assert not list(tmp_path.glob("out/clip-*"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / WEIGHTS).write_bytes(b"no weights"), "missing or damaged"),
        (lambda folder: (folder / "config.json").unlink(), "missing or damaged"),
        (lambda folder: (folder / "config.json").write_text("[]"), "missing or damaged"),
    ],
)
def test_a_damaged_checkpoint_is_refused_in_a_line(damage, message, trained, tmp_path):
    folder = tmp_path / "damaged"
    folder.mkdir()
    for name in (WEIGHTS, "config.json"):
        (folder / name).write_bytes((trained / name).read_bytes())
    damage(folder)
    with pytest.raises(ClipcapError, match=message):
        load_encoder(str(folder))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"text_width": 100}, "--text_width must be a multiple of 64, got 100"),
        ({"dropout": 1.0}, "--dropout is a share below 1"),
        ({"bs": 1}, "--bs 1 leaves no other image to compare with"),
    ],
)
def test_options_at_odds_are_refused(options, message, colours, tmp_path):
    with pytest.raises(ClipcapError, match=message):
        train_locked_image(config(colours, tmp_path / "out", **options))


def test_without_validation_the_flag_that_makes_some_is_named(colours, tmp_path, messages):
    train_locked_image(config(colours, tmp_path / "out", epochs=1))
    assert "no validation images: hold some out with --val 0.1" in "\n".join(messages())
