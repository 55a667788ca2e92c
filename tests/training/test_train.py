"""Training runs of a few steps: what is learnt, what is saved, what is said, what stops a run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import CAPTIONS, REPO
from support.small import DIM, META, feature_file, flags, metrics, options, run, same, weights

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import decode
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.models.checkpoint import load_checkpoint, read_config
from clipcap.models.encoders.load import load_encoder
from clipcap.models.kernels.bfloat16 import bfloat16_is_faster
from clipcap.models.language_model import load_lm, load_tokenizer
from clipcap.runtime.processes import several_processes_asked_for
from clipcap.training.config import FeaturesConfig, LoopConfig, TrainConfig
from clipcap.training.data import data_warnings, one_caption_each, open_features
from clipcap.training.feature_task import ENOUGH
from clipcap.training.run_folder import check_run_folder

# Learning CAPTIONS by heart makes these ever less likely.
OTHER_CAPTIONS = [" ".join(reversed(caption.split())) for caption in CAPTIONS]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images, one caption each."""
    return feature_file(tmp_path_factory.mktemp("data") / "features.pkl")


def captions_of(checkpoint, features, **how):
    loaded = load_checkpoint(checkpoint)
    embeddings = features.rows(slice(None))
    found = decode(loaded.model, loaded.tokenizer, embeddings, DecodeConfig(greedy=True, **how))
    return [several[0].text for several in found]


@pytest.mark.parametrize("mapping_type", ["mlp", "transformer"])
def test_a_few_captions_are_learnt_word_for_word(data, lm_folder, tmp_path, mapping_type):
    sizes = {"mapping_type": mapping_type, "prefix_length_clip": 4, "num_layers": 2}
    out = run(data, lm_folder, tmp_path, overfit=6, **sizes, epochs=25, bs=1, lr=3e-3, dropout=False, save_every=25)
    assert metrics(out)[-1]["reproduced"] == 1
    assert captions_of(out / "clipcap-last", read_features(data))[:6] == list(CAPTIONS[:6])


def test_overfit_takes_one_caption_of_each_of_the_first_images(tmp_path):
    path = feature_file(tmp_path / "f.pkl", [("a", "b"), (), ("c",), ("d", "e")])
    few = one_caption_each(read_features(path), 2)
    assert list(few.captions) == ["a", "c"]
    assert list(few.image_ids) == ["photo0", "photo2"]
    assert torch.equal(few.rows(few.caption_rows), read_features(path).rows([0, 2]))
    assert len(one_caption_each(read_features(path), 99).captions) == 3


def test_frozen_language_model_stays_bit_identical_and_is_not_stored(data, lm_folder, tmp_path):
    out = run(data, lm_folder, tmp_path, only_prefix=True, weight_decay=0.1)
    stored = weights(out / "clipcap-last")
    assert all(name.startswith("mapper.") for name in stored)
    base = load_lm(str(lm_folder)).state_dict()
    assert same(load_checkpoint(out / "clipcap-last").model.lm.state_dict(), base)
    first = run(data, lm_folder, tmp_path / "other", only_prefix=True, epochs=1)
    assert not same(stored, weights(first / "clipcap-last"))


def test_a_set_smaller_than_one_batch_trains(data, lm_folder, tmp_path):
    for recipe in ("default", "reference"):
        out = run(data, lm_folder, tmp_path / recipe, bs=40, recipe=recipe)
        assert [line["step"] for line in metrics(out)] == [1, 2]


def test_nan_features_stop_the_run_name_the_image_and_keep_the_last_good_checkpoint(lm_folder, tmp_path):
    good = feature_file(tmp_path / "good.pkl")
    bad = feature_file(tmp_path / "bad.pkl", nan_rows=[5])
    said = r"loss is not finite in epoch 0, step (\d): of image photo5 \(its features are not finite\)"
    with pytest.raises(ClipcapError, match=said + r"; the last good checkpoint is .*clipcap-last$") as error:
        run(bad, lm_folder, tmp_path / "out", bs=1, save_steps=1)
    last = tmp_path / "out" / "clipcap-last"
    state = torch.load(last / "training_state.pt", weights_only=True)
    assert state["progress"]["step"] == int(re.search(said, str(error.value))[1]) > 0
    assert all(tensor.isfinite().all() for tensor in weights(last).values())
    with pytest.raises(ClipcapError, match=said + r"; no checkpoint had been written$"):
        run(bad, lm_folder, tmp_path / "fresh")
    with pytest.raises(ClipcapError, match=r"bad.pkl: the features of image photo5 are not finite"):
        run(good, lm_folder, tmp_path / "fresh", val=str(bad))


def test_a_diverged_run_names_its_batch_and_saves_nothing_more(data, lm_folder, tmp_path):
    said = r"the loss is not finite in epoch 0, step 1: a batch with images (photo\d, ){3}photo\d; the run has"
    with pytest.raises(ClipcapError, match=said + " diverged, try a lower learning rate or --grad_clip 1"):
        run(data, lm_folder, tmp_path / "small", lr=1e30, bs=4, save_steps=1)
    with pytest.raises(ClipcapError, match=r"step 0: a batch with images (photo\d, ){4}photo\d and 3 more; "):
        run(data, lm_folder, tmp_path / "whole", lr=1e30, epochs=4, bs=8)
    for path in tmp_path.glob("*/clipcap-*"):
        assert all(tensor.isfinite().all() for tensor in weights(path).values())


def test_a_validation_loss_that_is_not_finite_ends_the_run_before_it_is_saved(data, lm_folder, tmp_path):
    """It used to save the weights as `last`, call them good, and name a `best` that was never written."""
    val = feature_file(tmp_path / "val.pkl", OTHER_CAPTIONS)
    with pytest.raises(ClipcapError, match=r"^the validation loss is not finite .*; no checkpoint had been written$"):
        run(data, lm_folder, tmp_path / "out", lr=1e15, bs=8, epochs=1, val=str(val))
    assert not list(tmp_path.glob("out/clipcap-*"))


def test_one_caption_for_every_image_is_warned_of(lm_folder, tmp_path, messages):
    data = feature_file(tmp_path / "f.pkl", ["a red plate"] * 12)
    run(data, lm_folder, tmp_path / "out", overfit=12, val_captions=12, epochs=5, lr=3e-3, bs=1)
    assert "warning: only 1 different caption for 12 images" in "\n".join(messages())
    assert metrics(tmp_path / "out")[-1]["distinct"] == pytest.approx(1 / 12)


def test_best_is_the_epoch_with_the_lowest_validation_loss(data, lm_folder, tmp_path):
    val = feature_file(tmp_path / "val.pkl", OTHER_CAPTIONS)
    out = run(data, lm_folder, tmp_path / "out", val=str(val), epochs=12, lr=5e-3, bs=2, dropout=False)
    losses = [line["val_loss"] for line in metrics(out)]
    best = int(np.argmin(losses))
    assert best < 11 and losses[-1] > losses[best]
    assert same(weights(out / "clipcap-best"), weights(out / f"clipcap-{best:03d}"))
    assert same(weights(out / "clipcap-last"), weights(out / "clipcap-011"))
    assert f"- val_loss: {losses[best]:.4g}" in (out / "clipcap-best" / "README.md").read_text()


def test_best_can_follow_cider(data, lm_folder, tmp_path):
    out = run(
        data,
        lm_folder,
        tmp_path / "out",
        overfit=8,
        select="cider",
        val_captions=8,
        epochs=10,
        lr=3e-3,
        bs=2,
        dropout=False,
    )
    scores = [line["cider"] for line in metrics(out)]
    assert max(scores) > 1
    assert same(weights(out / "clipcap-best"), weights(out / f"clipcap-{int(np.argmax(scores)):03d}"))
    with pytest.raises(ClipcapError, match="--select cider needs validation images"):
        run(data, lm_folder, tmp_path / "none", select="cider")


def test_best_follows_cider_by_itself_where_enough_images_are_captioned(data, lm_folder, tmp_path, messages):
    captions = [f"{n} red plates" for n in range(ENOUGH)]
    val = feature_file(tmp_path / "val.pkl", captions)
    few = {"val": str(val), "epochs": 2, "bs": 4, "lr": 1e-3, "val_captions": 128}
    lines = metrics(run(data, lm_folder, tmp_path / "auto", **few))
    assert all("cider" in line for line in lines)
    assert f"the highest CIDEr-D of {ENOUGH} held-out images" in " ".join(messages())
    for name, chosen in (("fewer", {"val_captions": ENOUGH - 1}), ("loss", {"select": "loss"}),
                         ("reference", {"recipe": "reference"})):  # fmt: skip
        assert not any(
            "cider" in line for line in metrics(run(data, lm_folder, tmp_path / name, **{**few, **chosen}))
        )
    assert "the highest CIDEr-D" not in " ".join(messages())


def test_the_loss_decides_as_long_as_no_caption_scores(data, lm_folder, tmp_path):
    val = feature_file(tmp_path / "val.pkl", ["red"] + ["xylophone quartz"] * 7)  # which no caption here says
    few = {"val": str(val), "select": "cider", "epochs": 4, "lr": 2e-4, "bs": 4, "dropout": False}
    lines = metrics(out := run(data, lm_folder, tmp_path / "out", val_captions=8, **few))
    losses = [line["val_loss"] for line in lines]
    assert [line["cider"] for line in lines] == [0] * 4 and losses[0] != min(losses)
    assert same(weights(out / "clipcap-best"), weights(out / f"clipcap-{int(np.argmin(losses)):03d}"))


def test_patience_ends_the_run_and_resuming_does_not_go_on(data, lm_folder, tmp_path, messages):
    val = feature_file(tmp_path / "val.pkl", OTHER_CAPTIONS)
    few = {"val": str(val), "epochs": 30, "lr": 5e-3, "bs": 2, "patience": 2, "dropout": False}
    out = run(data, lm_folder, tmp_path / "out", **few)
    losses = [line["val_loss"] for line in metrics(out)]
    assert len(losses) == int(np.argmin(losses)) + 3 < 30
    assert "stopped: no better epoch in 2" in "\n".join(messages())
    run(data, lm_folder, out, **few, resume=True)
    assert len(metrics(out)) == len(losses)


def test_numbered_checkpoints_follow_save_every_and_keep(data, lm_folder, tmp_path):
    def names(out):
        return sorted(p.name for p in out.iterdir() if p.is_dir())

    out = run(data, lm_folder, tmp_path / "a", epochs=5, save_every=2, prefix="food")
    assert names(out) == ["food-001", "food-003", "food-004", "food-best", "food-last"]
    out = run(data, lm_folder, tmp_path / "c", save_every=None, prefix="food")
    assert names(out) == ["food-best", "food-last"]
    (tmp_path / "b" / "food-best-notes").mkdir(parents=True)
    out = run(data, lm_folder, tmp_path / "b", epochs=4, save_every=None, keep=2, prefix="food")
    assert names(out) == ["food-002", "food-003", "food-best", "food-best-notes", "food-last"]


@pytest.mark.parametrize("chosen", [{}, {"keep": 2}, {"save_every": 3, "tune": "lora"}, {"tune": "none"}])
def test_the_disk_that_a_run_announces_is_what_it_takes_at_most(data, lm_folder, tmp_path, messages, chosen):
    out = run(data, lm_folder, tmp_path / "out", **{"save_every": None, "epochs": 5, **chosen})
    [line] = [line for line in messages() if line.startswith("disk: at most ")]
    held = sum(file.stat().st_size for file in (*out.rglob("*.safetensors"), *out.rglob("*.pt")))
    last = sum((out / "clipcap-last" / name).stat().st_size for name in ("model.safetensors", "training_state.pt"))
    announced = float(line.split()[3]) * {"kB": 1e3, "MB": 1e6}[line.split()[4]]
    assert announced == pytest.approx(held + last, rel=0.05)  # `last` is there twice while it is replaced


def test_a_disk_with_less_room_is_warned_of(data, lm_folder, tmp_path, messages):
    from clipcap.training.disk import check_disk

    assert check_disk(1000, tmp_path / "not" / "there") == ""
    assert re.fullmatch(r"the disk has .* free, the run needs 1000000000.0 GB: .*", check_disk(10**18, tmp_path))


def test_accumulated_batches_train_like_the_bigger_batch(data, lm_folder, tmp_path):
    one = run(data, lm_folder, tmp_path / "one", bs=6, dropout=False)
    two = run(data, lm_folder, tmp_path / "two", bs=2, grad_accum=3, dropout=False)
    for line, other in zip(metrics(one), metrics(two), strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], abs=1e-5)
    a, b = weights(one / "clipcap-last"), weights(two / "clipcap-last")
    torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_warm_up_is_bounded_by_a_share_of_the_run():
    assert LoopConfig().warmup(200) == 20
    assert LoopConfig().warmup(1_000_000) == 5000
    assert TrainConfig.of(recipe="reference").loop.warmup(200) == 5000
    assert TrainConfig.of(warmup_steps=0, recipe="reference").loop.warmup(200) == 0


def test_reference_recipe_is_stored_and_stops_at_full_stops(data, lm_folder, tmp_path):
    out = run(data, lm_folder, tmp_path, recipe="reference")
    config, _ = read_config(out / "clipcap-last")
    assert (config.recipe, config.stop_token) == ("reference", ".")
    assert [line["step"] for line in metrics(out)] == [2, 4]  # 8 captions in batches of 3: the last is dropped


def test_truncation_is_reported(data, lm_folder, tmp_path, messages):
    run(data, lm_folder, tmp_path, max_tokens=7, epochs=1)
    assert "cut to 7 tokens" in "\n".join(messages())


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """Eight images, two or three captions each."""
    captions = [(c, c + " again", "it is " + c)[: 2 + i % 2] for i, c in enumerate(CAPTIONS)]
    return feature_file(tmp_path_factory.mktemp("several") / "f.pkl", captions)


class TestSharedPrefix:
    @pytest.mark.parametrize("tune", ["full", "none"])
    def test_trains_as_without_it_where_a_step_holds_everything(self, several, lm_folder, tmp_path, messages, tune):
        few = {"bs": 20, "tune": tune, "dropout": False, "val": "0.25", "epochs": 4}
        shared = run(several, lm_folder, tmp_path / "shared", **few)
        assert "1 step of 20 captions an epoch; captions of an image share its prefix" in "\n".join(messages())
        apart = run(several, lm_folder, tmp_path / "apart", **few, share_prefix=False)
        assert "share" not in "\n".join(messages())
        for line, other in zip(metrics(shared), metrics(apart), strict=True):
            assert line == pytest.approx(other, abs=1e-5)
        torch.testing.assert_close(
            weights(shared / "clipcap-last"), weights(apart / "clipcap-last"), rtol=1e-3, atol=1e-4
        )
        with pytest.raises(ClipcapError, match="has share_prefix True, this command False"):
            run(several, lm_folder, shared, **few, share_prefix=False, resume=True)

    def test_is_off_in_the_reference_recipe_and_of_no_use_to_single_captions(
        self, several, data, lm_folder, tmp_path, messages
    ):
        run(several, lm_folder, tmp_path / "reference", recipe="reference", epochs=1)
        run(data, lm_folder, tmp_path / "single", epochs=1)
        assert "share" not in "\n".join(messages())

    def test_of_a_language_model_that_cannot_is_said_to_be_off(self, several, lm_folder, tmp_path, messages):
        from transformers import BloomConfig, BloomForCausalLM

        bloom = tmp_path / "bloom"
        shutil.copytree(lm_folder, bloom)
        vocabulary = len(load_tokenizer(str(lm_folder)))
        config = BloomConfig(vocab_size=vocabulary, hidden_size=32, n_layer=1, n_head=4)
        BloomForCausalLM(config).save_pretrained(bloom)
        run(several, bloom, tmp_path / "out", epochs=1)
        said = "bloom models cannot compute a prefix once for several captions: it is done for each"
        assert said in "\n".join(messages())

    def test_an_image_without_finite_features_is_named_once(self, lm_folder, tmp_path):
        bad = feature_file(tmp_path / "f.pkl", [(c, c + " again") for c in CAPTIONS], nan_rows=[5])
        with pytest.raises(ClipcapError, match=r"step 0: of image photo5 \(its features are not finite\); "):
            run(bad, lm_folder, tmp_path / "out", bs=16)


def test_gradient_checkpointing_changes_no_number(data, lm_folder, tmp_path):
    for tune in ("full", "none"):
        few = {"tune": tune, "val": "0.25"}
        plain = run(data, lm_folder, tmp_path / f"{tune}-plain", **few)
        frugal = run(data, lm_folder, tmp_path / f"{tune}-frugal", **few, gradient_checkpointing=True)
        assert metrics(plain) == metrics(frugal)
        assert same(weights(plain / "clipcap-last"), weights(frugal / "clipcap-last"))


class TestValidationSet:
    def test_a_share_is_held_out_by_image(self, tmp_path, lm_folder, messages):
        data = feature_file(tmp_path / "f.pkl", [(c, c + " again") for c in CAPTIONS])
        run(data, lm_folder, tmp_path / "out", val="0.25", epochs=1)
        printed = "\n".join(messages())
        assert "training on 12 captions of 6 images" in printed
        assert "validating on 4 captions of 2 images" in printed

    def test_the_sibling_of_a_train_file_is_taken(self, tmp_path):
        data = feature_file(tmp_path / "food_train.pkl")
        assert open_features(FeaturesConfig(data=str(data)))[1] is None
        val = feature_file(tmp_path / "food_val.pkl", CAPTIONS[:2])
        assert open_features(FeaturesConfig(data=str(data)))[1].path == val

    def test_another_encoders_features_are_refused(self, data, tmp_path):
        other = FeatureMeta(encoder="RN50")
        val = feature_file(tmp_path / "val.pkl", meta=other)
        with pytest.raises(ClipcapError, match=r"val.pkl: embeddings were made with RN50, the training .* tiny-clip"):
            open_features(FeaturesConfig(data=str(data), val=str(val)))

    def test_a_guessed_encoder_refuses_nothing(self, tmp_path):
        data = feature_file(tmp_path / "old.pkl", meta=FeatureMeta(), dim=512)
        val = feature_file(tmp_path / "val.pkl", meta=META, dim=512)
        features, held_out = open_features(FeaturesConfig(data=str(data), val=str(val)))
        assert (features.meta.encoder, held_out.meta.encoder) == ("ViT-B/32", "tiny-clip")

    def test_what_is_neither_share_nor_file_is_refused(self, data):
        for val, said in (
            ("1.5", "--val 1.5: a share"),
            ("nan", "--val nan"),
            ("0,1", "0,1: no such feature"),
        ):
            with pytest.raises(ClipcapError, match=said):
                open_features(FeaturesConfig(data=str(data), val=val))


class TestImagesThatAreBothLearntAndHeldOut:
    def warnings(self, data, val):
        config = FeaturesConfig(data=str(data), val=str(val))
        return data_warnings(config, *open_features(config))

    def test_are_counted(self, data, tmp_path):
        [said] = self.warnings(data, data)
        assert said.startswith(f"8 of 8 images of {data} are in {data} too: validation will look better")
        some = feature_file(tmp_path / "some.pkl", [("a", "b"), "c"])  # the first two, each encoded once
        features = read_features(some)
        noise = 1e-3 * torch.randn(2, DIM, generator=torch.Generator().manual_seed(0))
        again = {
            "embeddings": torch.cat([features.rows([0, 1]) + noise, torch.ones(1, DIM)]).half(),
            "captions": ["a", "b", "c"],
            "meta": META,
        }
        of_paths, of_ids = tmp_path / "paths.pkl", tmp_path / "ids"
        paths = [f"photo{i}.jpg" for i in range(3)]
        write_features(of_paths, image_ids=["x", "y", "z"], image_paths=paths, **again)
        write_features(of_ids, image_ids=["photo0", "photo1", "z"], image_paths=[None] * 3, **again)
        for val in (of_paths, of_ids):
            assert f"2 of 3 images of {val} are in" in self.warnings(data, val)[0]

    def test_are_no_images_of_other_sets_whose_names_coincide(self, data, tmp_path):
        assert self.warnings(data, feature_file(tmp_path / "val.pkl", seed=1)) == []

    def test_are_none_where_paths_are_not_known(self, tmp_path):
        parts = tmp_path / "learnt.pkl", tmp_path / "held_out"
        for place, name in zip(parts, ("a", "b")):
            ids = [f"{name}{i}" for i in range(3)]
            write_features(
                place,
                embeddings=torch.eye(3, DIM),
                image_ids=ids,
                image_paths=[None] * 3,
                captions=["x"] * 3,
                meta=META,
            )
        assert self.warnings(*parts) == []

    def test_are_meant_in_the_overfit_self_test(self, data):
        config = FeaturesConfig(data=str(data))
        assert data_warnings(config, *open_features(config, overfit=4)) == []


def test_is_rn_is_checked_against_the_data(data, tmp_path):
    vit = feature_file(tmp_path / "vit.pkl", meta=FeatureMeta(encoder="ViT-B/32"), dim=512)
    resnet = feature_file(tmp_path / "rn.pkl", meta=FeatureMeta(encoder="RN50x4"), dim=640)
    open_features(FeaturesConfig(data=str(resnet), is_rn=True))
    with pytest.raises(ClipcapError, match=r"--is_rn: .*features of ViT-B/32 \(512 wide\), which is not a ResNet"):
        open_features(FeaturesConfig(data=str(vit), is_rn=True))
    old = feature_file(tmp_path / "old.pkl", meta=FeatureMeta(), dim=512)
    with pytest.raises(ClipcapError, match=r"taken for features of ViT-B/32 .*name the encoder by --clip_model_type"):
        open_features(FeaturesConfig(data=str(old), is_rn=True))
    open_features(FeaturesConfig(data=str(old), is_rn=True, clip_model_type="RN101"))


@pytest.mark.parametrize("encoder", ["/gone/ViT.pt", "hf:somebody/encoder"])
def test_is_rn_that_cannot_be_checked_is_said_so(tmp_path, encoder):
    data = feature_file(tmp_path / "f.pkl", meta=FeatureMeta(encoder=encoder))
    config = FeaturesConfig(data=str(data), is_rn=True)
    [said] = data_warnings(config, *open_features(config))
    assert said.startswith(f"--is_rn cannot be checked: the encoder of {data} is {encoder}, which does not")


@pytest.fixture(scope="module")
def finished(data, lm_folder, tmp_path_factory):
    """The folder of a run of two epochs."""
    return run(data, lm_folder, tmp_path_factory.mktemp("finished") / "out")


class TestAFolderHoldsOneRun:
    def files(self, folder):
        return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    def test_a_second_run_is_refused_before_anything_is_read_or_written(self, lm_folder, finished):
        before = self.files(finished)
        there = r"\(clipcap-000, clipcap-001, clipcap-best, clipcap-last, metrics.jsonl\)"
        with pytest.raises(ClipcapError, match=rf"{finished} holds a run already {there}: --resume to go on with it"):
            run("nowhere.pkl", lm_folder, finished)
        assert self.files(finished) == before

    @pytest.mark.parametrize("resume", [False, True])
    def test_so_is_a_run_of_another_prefix_which_would_take_its_log(self, lm_folder, finished, resume):
        before = self.files(finished)
        with pytest.raises(ClipcapError, match=r"holds a run of another --prefix \(clipcap-000, .*another --out_dir"):
            run("nowhere.pkl", lm_folder, finished, prefix="food", resume=resume)
        assert self.files(finished) == before

    @pytest.mark.parametrize("name", ["clipcap-best", "clipcap-011", ".clipcap-last.new", ".clipcap-best.old"])
    def test_any_checkpoint_counts_also_in_the_middle_of_being_replaced(self, finished, tmp_path, name):
        shutil.copytree(finished / "clipcap-best", tmp_path / name)
        with pytest.raises(ClipcapError, match=r"holds a run already \(clipcap-\w+\)"):
            check_run_folder(LoopConfig(out_dir=str(tmp_path)))

    def test_and_so_does_the_log_alone(self, finished, tmp_path):
        shutil.copy(finished / "metrics.jsonl", tmp_path)
        with pytest.raises(ClipcapError, match=r"holds a run already \(metrics.jsonl\)"):
            check_run_folder(LoopConfig(out_dir=str(tmp_path)))

    @pytest.mark.parametrize("kept", [("clipcap-best",), ("clipcap-best", "metrics.jsonl"), ("metrics.jsonl",)])
    def test_a_run_whose_last_is_gone_is_not_begun_anew_in_its_place(self, finished, tmp_path, kept):
        shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
        for path in tmp_path.iterdir():
            if path.name not in kept:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        with pytest.raises(ClipcapError, match=r"--resume: .* holds a run .*, but not the clipcap-last to go"):
            check_run_folder(LoopConfig(out_dir=str(tmp_path), resume=True))

    def test_other_files_and_half_a_first_checkpoint_are_no_run(self, finished, tmp_path):
        (tmp_path / "clipcap-best-notes").mkdir()
        (tmp_path / "food-best").mkdir()
        (tmp_path / "coco-009.pt").touch()
        (tmp_path / "metrics.jsonl").touch()
        shutil.copytree(finished / "clipcap-last", tmp_path / ".clipcap-last.draft")
        check_run_folder(LoopConfig(out_dir=str(tmp_path)))


class TestWarmStart:
    def test_food_journey_from_a_pt_to_captions(self, data, lm_folder, tmp_path, make_model):
        from clipcap.models.original import export_reference

        coco = tmp_path / "coco" / "coco_prefix-009.pt"
        coco.parent.mkdir()
        export_reference(make_model(seed=3), coco)
        few = {"epochs": 15, "bs": 2, "lr": 2e-3, "dropout": False, "save_every": 100}
        out = run(data, lm_folder, tmp_path / "food", weights_dir=str(coco.parent), **few)
        captions = captions_of(out, read_features(data))
        assert sum(c == wanted for c, wanted in zip(captions, CAPTIONS)) >= 7
        assert "a bowl of soup. with bread" in captions  # no stop at full stops, unlike the .pt

    def test_weights_are_the_checkpoints(self, data, lm_folder, tmp_path):
        first = run(data, lm_folder, tmp_path / "first", mapping_type="transformer", num_layers=2, prefix_length=5)
        again = run(data, lm_folder, tmp_path / "again", weights_dir=str(first), lr=0.0, prefix_length=None)
        assert same(weights(first / "clipcap-best"), weights(again / "clipcap-last"))
        assert read_config(again / "clipcap-last")[0].mapping_type == "transformer"

    def test_tuned_language_model_is_kept_when_it_is_then_frozen(self, data, lm_folder, tmp_path):
        tuned = run(data, lm_folder, tmp_path / "tuned")
        frozen = run(data, lm_folder, tmp_path / "frozen", weights_dir=str(tuned), only_prefix=True)
        ours = {k: v for k, v in weights(frozen / "clipcap-last").items() if k.startswith("lm.")}
        assert ours and same(ours, {k: v for k, v in weights(tuned / "clipcap-best").items() if k.startswith("lm.")})

    def test_language_model_of_a_pt_that_equals_lm_is_not_stored_again(self, shared, tmp_path, lm_folder):
        root = shared / "fixtures" / "reference"
        data = feature_file(tmp_path / "f.pkl", dim=640, meta=FeatureMeta(encoder="RN50x4"))
        few = {"epochs": 1, "only_prefix": True, "prefix_length": 10}
        for variant, stored in (("transformer_prefix_only", False), ("mlp_gpt_tuned", True)):
            dim = 640 if variant.startswith("transformer") else 512
            data = feature_file(tmp_path / f"{dim}.pkl", dim=dim, meta=FeatureMeta())
            pt = root / variant / "reference_state_dict.pt"
            out = run(data, root / "tiny-gpt2", tmp_path / variant, weights_dir=str(pt), **few)
            assert any(name.startswith("lm.") for name in weights(out / "clipcap-last")) == stored

    def test_lora_goes_on_as_lora_only(self, data, lm_folder, tmp_path):
        pytest.importorskip("peft", reason="the lora extra is not installed")
        first = run(data, lm_folder, tmp_path / "first", tune="lora", lora_rank=2)
        out = run(data, lm_folder, tmp_path / "second", tune="lora", weights_dir=str(first), lr=0.0)
        assert same(weights(first / "clipcap-best"), weights(out / "clipcap-last"))
        assert read_config(out / "clipcap-last")[0].lora_rank == 2
        with pytest.raises(ClipcapError, match="holds a LoRA adapter: go on with --tune lora, or merge it first"):
            run(data, lm_folder, tmp_path / "third", weights_dir=str(first))
        for rank in (4, 8):
            with pytest.raises(ClipcapError, match=rf"--lora_rank {rank}: the checkpoint .*first has 2: leave"):
                run(data, lm_folder, tmp_path / "third", tune="lora", weights_dir=str(first), lora_rank=rank)

    def test_lora_over_a_tuned_language_model_stores_both(self, data, lm_folder, tmp_path):
        pytest.importorskip("peft", reason="the lora extra is not installed")
        tuned = run(data, lm_folder, tmp_path / "tuned")
        out = run(data, lm_folder, tmp_path / "lora", tune="lora", weights_dir=str(tuned), lora_rank=2)
        again = load_checkpoint(out / "clipcap-last").model.state_dict()
        base = weights(tuned / "clipcap-best")["lm.transformer.wte.weight"]
        assert torch.equal(again["lm.transformer.wte.weight"], base)

    def test_another_encoders_features_are_refused(self, data, lm_folder, tmp_path):
        first = run(data, lm_folder, tmp_path / "first", epochs=1)
        wide = feature_file(tmp_path / "wide.pkl", dim=DIM + 8)
        other = feature_file(
            tmp_path / "other.pkl", meta=FeatureMeta(encoder="tiny-clip", encoder_weights_id="ff" * 8)
        )
        for path, said in ((wide, r"40 wide .* expects 32"), (other, r"of weights ffff.* of weights 0011")):
            with pytest.raises(ClipcapError, match=said):
                run(path, lm_folder, tmp_path / "second", weights_dir=str(first))

    def test_other_sizes_are_refused_with_both(self, data, lm_folder, tmp_path):
        first = run(data, lm_folder, tmp_path / "first", epochs=1)
        for length in (7, 10):  # 10 where none is given and there is no checkpoint
            with pytest.raises(ClipcapError, match=rf"--prefix_length {length}: the checkpoint .*first has 4"):
                run(data, lm_folder, tmp_path / "second", weights_dir=str(first), prefix_length=length)
        with pytest.raises(ClipcapError, match=r"--mapping_type transformer: the checkpoint .* has mlp"):
            run(data, lm_folder, tmp_path / "second", weights_dir=str(first), mapping_type="transformer")


def test_a_pt_that_torch_cannot_read_is_one_line_without_its_warning(data, lm_folder, tmp_path, recwarn):
    path = tmp_path / "of_protocol_4.pt"
    torch.save({"visual.proj": torch.ones(2, 2)}, path, pickle_protocol=4)
    with pytest.raises(ClipcapError, match="is a CLIP in OpenAI's format, not a captioner"):
        run(data, lm_folder, tmp_path / "out", weights_dir=str(path))
    with pytest.raises(ClipcapError, match="has no text tower"):
        load_encoder(str(path), "cpu")
    assert not [warning for warning in recwarn if "pickle" in str(warning.message)]


def test_tensorboard_gets_losses_and_rates(data, lm_folder, tmp_path):
    pytest.importorskip("tensorboard", reason="the track extra is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    out = run(data, lm_folder, tmp_path, tracker="tensorboard", epochs=2, val="0.25")
    events = EventAccumulator(str(out / "clipcap"))
    events.Reload()
    assert [e.step for e in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [e.value for e in events.Scalars("val_loss")] == pytest.approx([m["val_loss"] for m in metrics(out)])
    assert events.Scalars("lr")[0].value == pytest.approx(1e-3)
    sheets = events.Images("captions")  # of held-out images, after each epoch
    assert [sheet.step for sheet in sheets] == [2, 4] and min(sheet.width for sheet in sheets) > 200
    [options] = events.Tensors("options/text_summary")
    assert b"| epochs | 2 |" in options.tensor_proto.string_val[0]
    assert len(list((out / "clipcap").iterdir())) == 1, "runs beside the run"


def test_a_tracker_that_is_not_installed_is_said_in_one_line(data, lm_folder, tmp_path):
    try:
        import wandb  # noqa: F401
    except ImportError:
        with pytest.raises(
            ClipcapError, match=r"--tracker wandb: wandb is not installed: pip install 'clipcap-toolkit\[track\]'"
        ):
            run(data, lm_folder, tmp_path, tracker="wandb")
    else:
        pytest.skip("wandb is installed")


def test_mixed_precision_of_accelerate_is_used(data, lm_folder, tmp_path):
    command = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "2",
        "--mixed_precision",
    ]
    words = flags(options(data, lm_folder, tmp_path / "out", val="0.25"))
    done = subprocess.run(
        [*command, "bf16", "train.py", *words], cwd=REPO, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "1 process on cpu, mixed precision bf16" in done.stderr
    assert "warning: the launcher was asked for several processes, but one is running" in done.stderr
    plain = run(data, lm_folder, tmp_path / "plain", val="0.25")
    for line, other in zip(metrics(tmp_path / "out"), metrics(plain), strict=True):
        assert line["val_loss"] == pytest.approx(other["val_loss"], rel=0.02)
        assert line["val_loss"] != other["val_loss"]


@pytest.mark.parametrize("tune", ["none", "full"])
def test_bfloat16_trains_in_mixed_precision_and_stores_float32(tune, data, lm_folder, tmp_path, messages):
    plain = run(data, lm_folder, tmp_path / "plain", val="0.25", tune=tune)
    messages()
    rounded = run(data, lm_folder, tmp_path / "out", val="0.25", tune=tune, dtype="bfloat16")
    assert any("mixed precision bf16" in line for line in messages())
    for line, other in zip(metrics(rounded), metrics(plain), strict=True):
        assert line["val_loss"] == pytest.approx(other["val_loss"], rel=0.02)
        assert line["val_loss"] != other["val_loss"]
    assert {tensor.dtype for tensor in weights(rounded / "clipcap-best").values()} == {torch.float32}
    again = run(data, lm_folder, tmp_path / "again", val="0.25", tune=tune)
    assert same(weights(again / "clipcap-best"), weights(plain / "clipcap-best"))  # the next run is in float32


def test_auto_says_what_it_took_and_the_reference_recipe_stays_in_float32(data, lm_folder, tmp_path, messages):
    run(data, lm_folder, tmp_path / "auto", dtype="auto", epochs=1)
    chosen = "mixed precision bf16" if bfloat16_is_faster() else "mixed precision no"
    assert any(f"{chosen} (--dtype auto: " in line for line in messages())
    run(data, lm_folder, tmp_path / "reference", dtype="auto", recipe="reference", epochs=1)
    assert any("mixed precision no" in line for line in messages())
    with pytest.raises(ClipcapError, match="leave --dtype bfloat16 out"):
        run(data, lm_folder, tmp_path / "refused", dtype="bfloat16", recipe="reference")


def test_a_cluster_that_names_one_process_is_not_warned_of(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    monkeypatch.setenv("MASTER_ADDR", "10.0.0.1")
    assert several_processes_asked_for()
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert not several_processes_asked_for()


def test_metrics_file_is_plain_json(data, lm_folder, tmp_path):
    out = run(data, lm_folder, tmp_path, val="0.25")
    for line in (out / "metrics.jsonl").read_text().splitlines():
        found = json.loads(line, parse_constant=pytest.fail)
        assert {"epoch", "step", "train_loss", "val_loss", "distinct"} <= found.keys()
