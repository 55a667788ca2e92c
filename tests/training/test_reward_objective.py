"""Self-critical training: its gradient is REINFORCE, and a run is the same however it is cut up."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from accelerate import Accelerator
from conftest import CAPTIONS
from support.launched import forked_in_two
from support.small import feature_file, flags, interrupt_after, metrics, options, run, same, weights

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import decode
from clipcap.captioning.tidy import tidy
from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.models.base import IGNORE
from clipcap.scoring.cider_reward import CiderReward
from clipcap.training.config import ObjectiveConfig
from clipcap.training.dataset import BatchShare, CaptionDataset
from clipcap.training.objective import Steps
from clipcap.training.reward_objective import RewardObjective, advantages, draw_any
from clipcap.training.scoring import Samples, Scoring

SEVERAL = [(c, c + " again", "it is " + c)[: 1 + i % 3] for i, c in enumerate(CAPTIONS)]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return feature_file(tmp_path_factory.mktemp("data") / "features.pkl", SEVERAL)


@pytest.fixture(scope="module")
def started(data, lm_folder, tmp_path_factory):
    """A captioner that cross-entropy has begun to train."""
    return run(data, lm_folder, tmp_path_factory.mktemp("start"), epochs=8) / "clipcap-last"


def chosen(data, started, **changes):
    defaults = {"objective": "reward", "weights_dir": str(started), "samples": 3, "bs": 9, "score_worker": False}
    return {**defaults, "val": str(data), **changes}


def objective_of(data, tokenizer, model, share=True, **config):
    features = read_features(data)
    dataset = CaptionDataset(features, tokenizer, 30, share_prefix=share)
    config = ObjectiveConfig(objective="reward", samples=4, score_worker=False, **config)
    scoring = Scoring(config.reward, [features.captions_of(row) for row in range(8)], config.reward_end)
    steps = Steps(dataset, 16, 5, BatchShare(0, 1, 16))
    return RewardObjective(steps, model, tokenizer, Accelerator(cpu=True), scoring, config)


@pytest.mark.parametrize("sample_by", ["beam", "chance"])
@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("xe_weight", [0.0, 0.5])
def test_the_gradient_is_that_of_reinforce_written_plainly(data, tokenizer, make_model, sample_by, share, xe_weight):
    model = make_model(clip_dim=32, tune="full")
    objective = objective_of(data, tokenizer, model, share, xe_weight=xe_weight, sample_by=sample_by)
    [batch] = next(iter(objective.windows(0, 0)))
    tokens = int((batch.labels != IGNORE).sum())
    loss = model(**batch.inputs(torch.device("cpu"))) / tokens
    parameters = [p for p in model.parameters() if p.requires_grad]
    ours = torch.autograd.grad(loss, parameters)

    layout_ids, weights_of, rows = [], [], []
    positions = (
        batch.positions
        if batch.positions is not None
        else torch.arange(batch.labels.shape[1]).expand_as(batch.labels)
    )
    for row in range(len(batch.labels)):
        count = int((batch.labels[row] != IGNORE).sum())
        begins = [*(positions[row, :count] == 0).nonzero().flatten().tolist(), count]
        for first, last in pairwise(begins):
            layout_ids.append(batch.input_ids[row, first:last])
            weights_of.append(batch.weights[row, first:last])
            rows.append(batch.given.vectors[row])
    features, scorer = read_features(data), CiderReward([list(several) for several in SEVERAL])
    plain, each = torch.zeros(()), 4 + bool(xe_weight)
    assert len(layout_ids) == 4 * each
    for start in range(0, len(layout_ids), each):
        image = int((features.rows(slice(None)) == rows[start]).all(dim=1).nonzero())
        rewards, log_probs = [], []
        for ids, embedding in zip(layout_ids[start : start + each], rows[start : start + each], strict=True):
            picked = model(embedding[None], ids[None])[0].log_softmax(dim=-1).gather(1, ids[:, None])
            log_probs.append(picked.sum())
            ended = int(ids[-1]) == tokenizer.eos_token_id
            text = tidy(tokenizer.decode(ids[:-1] if ended else ids, clean_up_tokenization_spaces=False))
            rewards += scorer.score([image], [text], [ended])
        for i in range(4):
            others = sum(rewards[:4]) - rewards[i]
            plain = plain - (rewards[i] - others / 3) * log_probs[i]
        if xe_weight:
            plain = plain - xe_weight * log_probs[4]
    torch.testing.assert_close(loss, plain / tokens, rtol=1e-4, atol=1e-5)
    for mine, theirs in zip(ours, torch.autograd.grad(plain / tokens, parameters), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)


def test_the_baseline_is_the_mean_of_the_others():
    found = advantages(torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]))
    assert found.tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]


def test_tokens_are_drawn_as_often_as_they_are_likely():
    log_probs = torch.tensor([0.1, 0.0, 0.6, 0.3]).log().expand(1, 10_000, 4)
    drawn = draw_any(log_probs, torch.linspace(0, 1 - 1e-4, 10_000)[None], 0, 1.0)
    assert (torch.bincount(drawn.flatten(), minlength=4) / 10_000).tolist() == pytest.approx(
        [0.1, 0, 0.6, 0.3], abs=1e-3
    )


def test_a_worker_process_gives_the_same_rewards():
    references = [list(several) for several in SEVERAL]
    samples = Samples([2, 5], ["a cup of tea", "a bowl of soup"], [True, False], [0, 1])
    rows = torch.ones(2, 4)
    here, there = (Scoring("cider", references, worker=worker) for worker in (False, True))
    assert torch.equal(*(s.finish(samples, s.start(samples), rows) for s in (here, there)))
    there.close()
    assert there._worker._process.returncode == 0


class Towers:
    """Captions stand for the axis that their last word names."""

    logit_scale = 10.0

    def encode_texts(self, texts):
        return torch.eye(3)[[int(text.split()[-1]) for text in texts]]


def test_retrieval_rewards_the_caption_that_finds_its_image():
    samples = Samples([0, 1], ["image 0", "image 2"], [True, True], [0, 1])
    scoring = Scoring("retrieval", [["a"]] * 3, encoder=Towers())
    found = scoring.finish(samples, scoring.start(samples), torch.eye(3) * 5)
    assert found[0] > 0.99 and found[1] < 0.01
    scoring = Scoring("cider+clip", [["a"]] * 3, encoder=Towers())
    assert scoring.finish(samples, scoring.start(samples), torch.eye(3)).tolist() == pytest.approx([5.0, 0.0])


def test_beams_are_what_beam_search_finds(data, tokenizer, make_model):
    model = make_model(clip_dim=32, tune="full").eval()
    objective = objective_of(data, tokenizer, model, share=False)
    [batch] = next(iter(objective.windows(0, 0)))
    scored = [ids[labels != IGNORE].tolist() for ids, labels in zip(batch.input_ids, batch.labels)]
    how = DecodeConfig(beam=True, beam_size=4, num_captions=4, max_new_tokens=objective.how.max_new_tokens)
    for first in range(0, len(scored), 4):
        [found] = decode(model, tokenizer, batch.given.vectors[first][None], how)
        ended = [[*caption.token_ids, tokenizer.eos_token_id] for caption in found]
        for ids in scored[first : first + 4]:
            assert ids in ended or len(ids) == objective.how.max_new_tokens


def test_a_state_without_the_option_goes_on_by_chance(data, tokenizer, make_model):
    model = make_model(clip_dim=32, tune="full")
    was = {"objective": "reward", "reward": "cider", "samples": 4, "xe_weight": 0.0, "reward_end": True}
    for by, same_run in (("chance", True), ("beam", False)):
        now = objective_of(data, tokenizer, model, sample_by=by).identity()
        assert all(was.get(name) == value for name, value in now.items()) == same_run


@pytest.mark.parametrize(("tune", "sample_by"), [("full", "beam"), ("none", "beam"), ("full", "chance")])
def test_a_resumed_run_equals_an_unbroken_one(data, started, lm_folder, tmp_path, tune, sample_by, monkeypatch):
    words = chosen(data, started, tune=tune, sample_by=sample_by)
    whole = run(data, lm_folder, tmp_path / "whole", **words)
    interrupt_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        run(data, lm_folder, tmp_path / "broken", **words, save_steps=1)
    monkeypatch.undo()
    broken = run(data, lm_folder, tmp_path / "broken", **words, save_steps=1, resume=True)
    assert same(weights(whole / "clipcap-last"), weights(broken / "clipcap-last"))
    assert not same(weights(whole / "clipcap-last"), weights(started)) or tune == "none"


def test_the_scores_that_show_a_gamed_reward_stand_side_by_side(data, started, lm_folder, tmp_path):
    out = run(data, lm_folder, tmp_path / "out", **chosen(data, started))
    for line in metrics(out):
        assert {"reward", "sample_reward", "cider", "distinct", "bad_endings", "length"} <= line.keys()


def test_two_processes_train_as_one(data, started, lm_folder, tmp_path):
    one = run(data, lm_folder, tmp_path / "one", **chosen(data, started, bs=12, xe_weight=0.1))
    two = options(data, lm_folder, tmp_path / "two", **chosen(data, started, bs=6, xe_weight=0.1))
    words = flags({name: value for name, value in two.items() if value is not None})
    both = forked_in_two(tmp_path / "log", "train", *words)
    assert [rank.status for rank in both] == [0, 0], both
    torch.testing.assert_close(
        weights(one / "clipcap-last"), weights(tmp_path / "two" / "clipcap-last"), rtol=1e-3, atol=1e-4
    )


@pytest.mark.parametrize("reward", ["clip", "retrieval"])
def test_a_reward_by_the_encoder_alone_is_refused_unless_held_or_forced(reward):
    with pytest.raises(ClipcapError, match="not sentences"):
        ObjectiveConfig(objective="reward", reward=reward)
    ObjectiveConfig(objective="reward", reward=reward, xe_weight=0.1)
    ObjectiveConfig(objective="reward", reward=reward, force_clip_reward=True)


def test_what_a_reward_run_lacks_is_said(data, started, lm_folder, tmp_path, messages):
    with pytest.raises(ClipcapError, match="pass --weights_dir"):
        run(data, lm_folder, tmp_path / "out", objective="reward", val=str(data))
    with pytest.raises(ClipcapError, match="needs validation images"):
        run(data, lm_folder, tmp_path / "out", **chosen(data, started, val=None))
    run(data, lm_folder, tmp_path / "out", **chosen(data, started, epochs=1))
    assert any("3 of 8 images have a single caption" in line for line in messages())
