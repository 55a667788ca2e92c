"""The embedded default: bundled weights, their names, what they see; the demo; building them anew."""

from __future__ import annotations

import json
import os
from itertools import islice

import pytest
import torch
from support.road import run

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.demo import build as building
from clipcap.demo import run as running
from clipcap.demo.facts import fact_shares, table
from clipcap.demo.kitchen import passages, sentence
from clipcap.demo.plates import captions, draw, scenes, write_set
from clipcap.errors import ClipcapError
from clipcap.runtime.bundled import CAPTIONER, CLIP, FOLDER, LM, TUNED_LM
from tests.faults.forked import die_before

PLATES = 60


@pytest.fixture(scope="module")
def plates():
    """Scenes of the held-out split that no figure is quoted on."""
    return list(islice(scenes("val", seed=99), PLATES))


@pytest.fixture(scope="module")
def captioner():
    return Captioner.from_pretrained("demo", device="cpu")


def test_the_bundled_weights_take_at_most_16_mb():
    # CLIP takes 9.3, GPT-2 before and after tuning 2 each, the mapper 0.5, the generator of plates 1.3.
    assert sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file()) <= 16_000_000


def test_the_bundled_captioner_sees_what_is_on_plates_of_unseen_combinations(captioner, plates):
    found = captioner([draw(scene, 128) for scene in plates], DecodeConfig(beam=True))
    shares = table(found, plates)
    alone = shares["one food"]
    assert alone["food"] > 0.9 and alone["colour"] > 0.95 and alone["plate"] > 0.85 and alone["count"] > 0.8
    assert shares["two or more"]["food"] > 0.8
    by_chance = fact_shares(found[1:] + found[:1], plates)
    assert by_chance["all"] < 0.1 < 0.45 < shares["all pictures"]["all"]


def test_both_towers_of_the_bundled_clip_find_each_other(captioner, plates):
    encoder = captioner.encoder
    images = encoder.encode_images(torch.stack([encoder.preprocess(draw(scene, 128)) for scene in plates]))  # [N, D]
    texts = encoder.encode_texts([captions(scene)[0] for scene in plates])  # [N, D]
    images, texts = (torch.nn.functional.normalize(x, dim=-1) for x in (images, texts))
    ranks = (images @ texts.T).argsort(dim=1, descending=True)  # [N, N]
    right = torch.arange(PLATES)[:, None]
    assert (ranks[:, :1] == right).any(dim=1).float().mean() > 0.5
    assert (ranks[:, :10] == right).any(dim=1).float().mean() > 0.9


def test_the_bundled_clip_loads_in_openais_own_package():
    import clip

    network, _ = clip.load(str(FOLDER / CLIP), device="cpu")
    assert network.visual.input_resolution == 64 and network.context_length == 77
    assert network.encode_text(clip.tokenize(["an apple on a plate"])).shape == (1, network.text_projection.shape[1])


def test_the_bundled_language_model_writes_english_of_the_kitchen():
    from clipcap.models.language_model import load_lm, load_tokenizer

    model, tokenizer = load_lm("demo").eval(), load_tokenizer("demo")

    def loss(text):
        ids = torch.tensor([[tokenizer.eos_token_id, *tokenizer(text)["input_ids"]]])
        return model(input_ids=ids, labels=ids).loss.item()

    fresh = [texts[0] for texts in islice(passages(seed=123_456), 40)]
    shuffled = [" ".join(sorted(text.split())) for text in fresh]
    assert sum(map(loss, fresh)) / len(fresh) < 2.5
    assert sum(map(loss, shuffled)) > 1.5 * sum(map(loss, fresh))


def test_predict_without_a_checkpoint_uses_the_bundled_one_and_says_so_in_one_line(capsys, tmp_path, plates):
    draw(plates[0], 128).save(tmp_path / "plate.jpg", quality=90)
    status, lines, errors = run(capsys, "predict", "--beam", "--img", tmp_path / "plate.jpg")
    assert status == 0 and len(lines) == 1
    assert len(errors) == 1 and "drawn plates" in errors[0] and "--load_pt" in errors[0]


def test_the_bundled_name_wins_over_a_folder_of_that_name(capsys, tmp_path, plates, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "demo").mkdir()
    draw(plates[0], 128).save("plate.jpg", quality=90)
    status, lines, _ = run(capsys, "predict", "--beam", "--load_pt", "demo", "--img", "plate.jpg")
    assert status == 0 and len(lines) == 1


def test_the_manifest_tells_what_the_weights_reach():
    manifest = json.loads((FOLDER / building.MANIFEST).read_text())
    assert manifest["captioner"]["one food"]["all"] > 0.7
    assert manifest["clip"]["t2i_r10"] > 0.9


def test_an_exported_demo_mapper_loads_again_and_captions_the_same(capsys, tmp_path, plates):
    for number, scene in enumerate(plates[:4]):
        draw(scene, 128).save(tmp_path / f"{number}.png")
    status, _, errors = run(capsys, "export", "demo", "--out", tmp_path / "demo.pt")
    assert status == 0, errors
    native = run(capsys, "predict", "--beam", "--img", tmp_path)[1]
    words = ["--load_pt", tmp_path / "demo.pt", "--lm", "demo", "--clip_model_type", "demo"]
    eos = "<|endoftext|>"
    again = run(capsys, "predict", "--beam", "--img", tmp_path, *words, "--stop_token", eos)[1]
    assert again == native and len(set(native)) == 4


def test_facts_are_counted_by_aspect_and_kind(plates):
    written = [captions(scene)[0] for scene in plates]
    shares = table(written, plates)
    assert shares["one food"]["pictures"] + shares["two or more"]["pictures"] == PLATES
    assert shares["all pictures"] == {"pictures": PLATES, "food": 1, "count": 1, "colour": 1, "plate": 1, "all": 1}
    assert fact_shares(written[1:] + written[:1], plates)["all"] < 0.1
    assert fact_shares([], []) == {}


def test_kitchen_sentences_are_many_and_whole():
    from random import Random

    texts = [sentence(Random(i)) for i in range(3000)]
    assert len(set(texts)) > 2800
    assert not any("{" in text or "}" in text or " a a" in text for text in texts)


def test_passages_of_plates_are_of_the_training_split_only():
    held_out = {one.facts for one in islice(scenes("val", 5), 300)}
    from clipcap.demo.grammar import parse

    told = [parse(texts[0]) for texts in islice(passages(5), 1000) if " plate" in texts[0] and len(texts) >= 3]
    assert len(told) > 200 and not held_out & set(told)


def test_weights_are_built_from_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(building, "HELD_OUT", 12)
    monkeypatch.setattr("clipcap.demo.language.TOKENIZER_PASSAGES", 300)
    monkeypatch.setattr(building, "PICTURES", 240)
    for part in ("generator", CAPTIONER):
        (tmp_path / "weights" / part).mkdir(parents=True)
        (tmp_path / "weights" / part / "earlier").touch()
    manifest = building.build(tmp_path / "work", tmp_path / "weights", share=0.01)
    assert manifest["pictures"]["train"] == 200
    assert set(manifest["captioner"]) == {"one food", "two or more", "all pictures"}
    stored = json.loads((tmp_path / "weights" / "manifest.json").read_text())
    assert stored["clip"] == manifest["clip"]
    for part in (CLIP, LM, TUNED_LM, CAPTIONER):
        assert (tmp_path / "weights" / part).exists()
    assert [path.parent.name for path in (tmp_path / "weights").rglob("earlier")] == ["generator"]
    config = json.loads((tmp_path / "weights" / CAPTIONER / "config.json").read_text())["model"]
    assert (config["encoder"], config["lm"]) == ("demo", "demo-tuned")


def test_another_demo_replaces_the_earlier_one_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "TRAIN_PICTURES", 2)
    monkeypatch.setattr(running, "VAL_PICTURES", 2)
    out = tmp_path / "out"
    for name in ("plates_train/dataset/0.jpg", "plates_train.pkl", "checkpoints/last/config.json", "my photo.jpg"):
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        (out / name).write_text("here")
    with pytest.raises(ClipcapError, match="the demo's parse step failed"):
        running.run_demo(out, lambda words: 1)
    assert sorted(path.name for path in out.iterdir()) == ["my photo.jpg", "plates_train", "plates_val"]


def test_a_demo_killed_while_it_removes_the_earlier_one_can_be_run_again(tmp_path):
    """Before any removal: the folder stays one that holds a demo, also beside files of others."""

    def begin(out):
        for name in ("plates_train/dataset/0.jpg", "plates_train.pkl", "checkpoints/config.json", "my photo.jpg"):
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            (out / name).write_text("here")

    killed = 0
    for removal in range(99):
        out = tmp_path / str(removal)
        begin(out)
        pid = os.fork()
        if pid == 0:
            die_before(removal, tmp_path)()
            running._clear(out)
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        running._clear(out)
        assert sorted(path.name for path in out.iterdir()) == ["my photo.jpg", "plates_train"]
        assert not list((out / "plates_train").iterdir())
        if status == 0:
            break
        killed += 1
    assert 3 < killed < 99


def test_a_folder_of_other_files_gets_no_demo(tmp_path):
    (tmp_path / "my photo.jpg").write_text("here")
    with pytest.raises(ClipcapError, match="is not empty and holds no earlier demo"):
        running.run_demo(tmp_path, lambda words: 1)


def test_a_demo_set_is_learnt_from_in_the_kaggle_layout(capsys, tmp_path):
    folder = write_set(tmp_path / "set", 8, seed=3, size=64)
    status, _, errors = run(
        capsys, "parse", "food", "--data_path", folder, "--clip_model_type", "demo", "--out", tmp_path / "f.pkl"
    )
    assert status == 0, errors
