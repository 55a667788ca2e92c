"""Text-only training: what a row sees, what it learns, and that a run goes on where it stopped."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from support.small import META, feature_file, interrupt_after, run, same, weights
from torch.nn import functional as F

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.memory import TextMemory
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Content
from clipcap.features.files import read_features, write_parts
from clipcap.models.base import IGNORE
from clipcap.training.config import CaptionerFeaturesConfig
from clipcap.training.dataset import BatchShare, CaptionDataset
from clipcap.training.objective import Steps
from clipcap.training.text_data import text_features
from clipcap.training.text_objective import TextObjective

GROUPS = [(c, c + " again", "it is " + c)[: 1 + i % 3] for i, c in enumerate(CAPTIONS)]


@pytest.fixture
def texts(tmp_path):
    """A folder of texts, one to three of an image, with random embeddings."""
    ids = [f"image {i}" for i, group in enumerate(GROUPS) for _ in group]
    captions = [(text,) for group in GROUPS for text in group]
    rows = np.random.default_rng(3).standard_normal((len(ids), 32)).astype(np.float32)
    write_parts(tmp_path / "texts", [Content(rows, ids, [None] * len(ids), captions)], META, tower="text")
    return tmp_path / "texts"


def objective_of(texts, tokenizer, noise="0.1", share=True, parts=None, **config):
    features, _, inputs = text_features(CaptionerFeaturesConfig(data=str(texts), **config), noise, 5)
    data = CaptionDataset(features, tokenizer, 30, share_prefix=share)
    return TextObjective(Steps(data, 6, 5, parts or BatchShare(0, 1, 6)), inputs)


@pytest.mark.parametrize("share", [True, False])
def test_a_row_sees_a_text_of_its_image_and_learns_the_others(texts, tokenizer, share):
    objective = objective_of(texts, tokenizer, noise="0", share=share)
    rows = F.normalize(read_features(texts, tower="text").rows(slice(None)), dim=1)
    for epoch in range(3):
        for batch in (batch for window in objective.windows(epoch, 0) for batch in window):
            layout = objective.steps.data.layout(batch.captions)
            for caption, row, start in zip(batch.captions, batch.row_of, layout.offsets, strict=True):
                seen = int((rows @ batch.given.vectors[row]).argmax())
                image = objective.steps.data.features.caption_rows
                assert image[seen] == image[caption]
                alone = (image == image[caption]).sum() == 1
                learnt = bool((batch.labels[row, start] != IGNORE).item())
                assert learnt == (alone or seen != caption)


def test_noise_has_the_deviation_asked_for_and_is_of_the_step_alone(texts, tokenizer):
    one, other = (objective_of(texts, tokenizer, noise="0.5") for _ in range(2))
    windows, later = list(one.windows(1, 0)), list(other.windows(1, 1))
    for window, again in zip(windows[1:], later, strict=True):
        assert all(torch.equal(a.given.vectors, b.given.vectors) for a, b in zip(window, again, strict=True))
    cosines = [
        torch.cosine_similarity(a.given.vectors, b.given.vectors)
        for noisy, plain in zip(one.windows(0, 0), objective_of(texts, tokenizer, noise="0").windows(0, 0))
        for a, b in zip(noisy, plain)
    ]
    expected = 1 / np.sqrt(1 + 0.25 * 32)
    assert torch.cat(cosines).mean().item() == pytest.approx(expected, abs=0.12)


def test_two_processes_see_what_one_sees(texts, tokenizer):
    one = [batch for window in objective_of(texts, tokenizer).windows(0, 0) for batch in window]
    halves = [objective_of(texts, tokenizer, parts=BatchShare(rank, 2, 3)) for rank in (0, 1)]
    two = [batch for both in zip(*(h.windows(0, 0) for h in halves)) for window in both for batch in window]

    def learnt(batches):
        found = {}
        for batch in batches:
            for caption, row in zip(batch.captions.tolist(), batch.row_of):
                if (batch.labels != IGNORE).any():
                    found[caption] = batch.given.vectors[row]
        return found, sum(int((batch.labels != IGNORE).sum()) for batch in batches)

    (ours, tokens), (theirs, same_tokens) = learnt(two), learnt(one)
    assert tokens == same_tokens and ours.keys() == theirs.keys()
    assert all(torch.equal(ours[caption], theirs[caption]) for caption in ours)


def test_photos_move_the_texts_to_their_mean(texts, tokenizer, tmp_path):
    photos = feature_file(tmp_path / "photos.pkl", [()] * 8, seed=9)
    inputs = objective_of(texts, tokenizer, photos=str(photos)).inputs
    means = [
        F.normalize(f.rows(slice(None)), dim=1).mean(dim=0)
        for f in (read_features(photos), read_features(texts, tower="text"))
    ]
    torch.testing.assert_close(inputs.shift, means[0] - means[1])


def test_captioned_photos_train_beside_texts_as_they_are(texts, tokenizer, tmp_path):
    photos = feature_file(tmp_path / "photos.pkl", list(CAPTIONS), seed=9)
    features, _, inputs = text_features(CaptionerFeaturesConfig(data=(str(photos), str(texts))), "0.1", 5)
    data = CaptionDataset(features, tokenizer, 30, share_prefix=True)
    objective = TextObjective(Steps(data, 6, 5, BatchShare(0, 1, 6)), inputs)
    rows, seen = read_features(photos).rows(slice(None)), 0
    for batch in (batch for window in objective.windows(0, 0) for batch in window):
        for caption, row in zip(batch.captions.tolist(), batch.row_of):
            if caption < len(CAPTIONS):
                assert torch.equal(batch.given.vectors[row], rows[caption])
                seen += 1
    assert seen == len(CAPTIONS) and len(data) == len(CAPTIONS) + sum(map(len, GROUPS))


@pytest.mark.parametrize("tune", ["none", "lora"])
def test_a_resumed_run_equals_an_unbroken_one(texts, lm_folder, tmp_path, tune, monkeypatch):
    chosen = {"objective": "text", "noise": "0.1", "tune": tune, "bs": 6}
    whole = run(texts, lm_folder, tmp_path / "whole", **chosen)
    interrupt_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        run(texts, lm_folder, tmp_path / "broken", save_steps=1, **chosen)
    monkeypatch.undo()
    broken = run(texts, lm_folder, tmp_path / "broken", resume=True, save_steps=1, **chosen)
    assert same(weights(whole / "clipcap-last"), weights(broken / "clipcap-last"))
    with pytest.raises(ClipcapError, match=r"has noise 0\.1, this command 0\.2"):
        run(texts, lm_folder, tmp_path / "broken", resume=True, **{**chosen, "noise": "0.2"})


def test_a_captioner_of_texts_normalises_photos_and_can_look_through_a_memory(texts, lm_folder, tmp_path):
    out = run(texts, lm_folder, tmp_path / "out", objective="text", noise="0")
    captioner = Captioner.from_pretrained(out)
    assert captioner.model.config.normalize_prefix
    memory = TextMemory.open(texts, captioner.model.config, 100.0)
    own = F.normalize(read_features(texts, tower="text").rows(slice(None)), dim=1)
    torch.testing.assert_close(memory.project(own * 3), own, atol=1e-4, rtol=0)
    between = own[:1] + own[1:2]
    torch.testing.assert_close(memory.project(between), F.normalize(between, dim=1), atol=1e-3, rtol=0)
    captioner.memory = memory
    assert captioner(list(own[:2] * 5), greedy=True) == captioner(list(own[:2]), greedy=True)


def test_what_cannot_be_trained_on_is_refused(texts, lm_folder, tmp_path):
    photos = feature_file(tmp_path / "photos.pkl", list(CAPTIONS))
    with pytest.raises(ClipcapError, match="one folder of texts"):
        run(photos, lm_folder, tmp_path / "out", objective="text")
    with pytest.raises(ClipcapError, match="holds texts alone"):
        run(texts, lm_folder, tmp_path / "out")
    with pytest.raises(ClipcapError, match="texts and photos of one length"):
        run(texts, lm_folder, tmp_path / "out", objective="text", normalize_prefix=False)
    with pytest.raises(ClipcapError, match="texts are validated on captioned photos"):
        run(texts, lm_folder, tmp_path / "out", objective="text", val="0.2")
    other = feature_file(tmp_path / "other.pkl", list(CAPTIONS), dim=16)
    with pytest.raises(ClipcapError, match="16 wide"):
        run(texts, lm_folder, tmp_path / "out", objective="text", photos=str(other))


def test_a_captioner_of_moved_texts_refuses_a_memory_that_would_move_photos_back(texts, lm_folder, tmp_path):
    photos = feature_file(tmp_path / "photos.pkl", [()] * 8, seed=9)
    best = run(texts, lm_folder, tmp_path / "out", objective="text", photos=str(photos))
    config = Captioner.from_pretrained(best).model.config
    assert config.texts_moved
    with pytest.raises(ClipcapError, match="learnt from texts moved to the mean of photos"):
        TextMemory.open(texts, config, 100.0)
    again = run(texts, lm_folder, tmp_path / "again", objective="text", weights_dir=str(best), prefix_length=None)
    assert not Captioner.from_pretrained(again).model.config.texts_moved
