"""CLIP-GPT: sequences with embeddings in them, their losses, training in both directions, and its use."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from PIL import Image
from safetensors.torch import load_file
from support.launched import forked_in_two
from support.road import draw_set, run, save_captioner
from support.small import DIM, META, feature_file, flags, metrics, same, weights
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, GPT2LMHeadModel

from clipcap.captioning.config import DecodeConfig
from clipcap.clip_gpt.captioner import ClipGptCaptioner
from clipcap.clip_gpt.checkpoint import load_clip_gpt, save_clip_gpt
from clipcap.clip_gpt.config import ClipGptConfig, TrainClipGptConfig
from clipcap.clip_gpt.dataset import PairDataset
from clipcap.clip_gpt.embedding_loss import embedding_loss
from clipcap.clip_gpt.model import ClipGPT
from clipcap.clip_gpt.sequences import MARKS, ClipIn, ClipOut, Layout, TokenSpan, inside_brackets
from clipcap.clip_gpt.task import InterleavedTask
from clipcap.clip_gpt.train import train_clip_gpt
from clipcap.clip_gpt.write import continue_sequence, write_captions
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features
from clipcap.models.base import IGNORE
from clipcap.models.language_model import load_lm, load_tokenizer
from clipcap.training.dataset import BatchShare, CaptionDataset

GREEDY = DecodeConfig(greedy=True, max_new_tokens=40)


@pytest.fixture
def layout(lm_folder):
    return Layout(load_tokenizer(str(lm_folder)))


@pytest.fixture
def make_clip_gpt(lm_folder):
    """Builds a CLIP-GPT over the small GPT-2, in evaluation mode."""

    def build(seed: int = 0, **options) -> ClipGPT:
        torch.manual_seed(seed)
        config = ClipGptConfig(**{"clip_dim": DIM, "lm": str(lm_folder), **options})
        model = ClipGPT(config, load_lm(str(lm_folder)), Layout(load_tokenizer(str(lm_folder)))).eval()
        with torch.no_grad():  # spread the distributions: GPT-2's initial weights make them nearly uniform
            for parameter in model.lm.parameters():
                parameter.mul_(4 if parameter.dim() > 1 else 1)
        return model

    return build


def embeddings(count: int, dim: int = DIM, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, dim, generator=torch.Generator().manual_seed(seed))


def inputs(batch):
    return batch.inputs(torch.device("cpu"))


def reading(batch):
    """What `ClipGPT.logits` takes of a batch."""
    names = ("input_ids", "embeddings", "clip_places", "clip_rows")
    return {name: getattr(batch, name) for name in names}


MIXED = [
    [ClipIn(0), TokenSpan([5, 6], learnt=False), TokenSpan([7, 8, 9])],
    ["a red apple", ClipOut(1), " and ", ClipIn(2), "two eggs", ClipIn(0), ClipOut(2), "tea"],
    ["soup"],
    [ClipOut(0)],
    [ClipIn(1), ClipIn(2), ClipIn(0)],
]


class TestSequences:
    def test_the_two_directions_are_the_originals_text_token_by_token(self, layout):
        batch = layout.batch(
            [layout.clip_to_caption(0, layout.ids("a red apple.")), layout.caption_to_clip(layout.ids("tea"), 0)],
            embeddings(1),
        )
        shown = [layout.tokenizer.decode(row).removesuffix("<|endoftext|>") for row in batch.input_ids.tolist()]
        end = "<|endoftext|>"  # also where the embedding stands
        assert shown[0] == rf"[CLIP IN]{end}[\CLIP IN]Caption: [a red apple.]"
        assert shown[1].split(end)[0] == r"Caption: [tea].[CLIP OUT][\CLIP OUT]"
        places = batch.input_ids.flatten()
        assert places[batch.clip_places - 1].tolist() == [layout.marks[0]]
        assert places[batch.out_places].tolist() == [layout.marks[2]]

    def test_labels_are_the_caption_and_what_follows(self, layout):
        caption = layout.ids("three cookies")
        [row] = layout.batch([layout.clip_to_caption(0, caption)], embeddings(1)).labels.tolist()
        assert row == [IGNORE] * (3 + len(layout.opening)) + caption + layout.closing + [layout.end]
        [row] = layout.batch([layout.caption_to_clip(caption, 0)], embeddings(1)).labels.tolist()
        follows = [*layout.stopped, *layout.marks[2:], layout.end]
        assert row == [IGNORE] * len(layout.opening) + caption + follows

    def test_of_a_caption_that_was_cut_the_bracket_is_not_learnt(self, layout):
        caption = layout.ids("three cookies")
        for segments, bracket in (
            (layout.clip_to_caption(0, caption, whole=False), layout.closing),
            (layout.caption_to_clip(caption, 0, whole=False), layout.stopped),
        ):
            batch = layout.batch([segments], embeddings(1))
            learnt = [label for label in batch.labels[0].tolist() if label != IGNORE]
            assert learnt[: len(caption)] == caption and not set(bracket) & set(learnt)
            assert learnt[-1] == layout.end

    def test_the_count_of_labels_is_that_of_the_batch(self, layout):
        caption = layout.ids(CAPTIONS[2])
        for whole in (True, False):
            both = [layout.clip_to_caption(0, caption, whole), layout.caption_to_clip(caption, 0, whole)]
            labels = layout.batch(both, embeddings(1)).labels
            assert layout.learnt(len(caption), whole) == int((labels != IGNORE).sum())

    def test_marks_written_in_a_caption_are_plain_text(self, layout):
        ids = layout.ids("a [CLIP OUT] b<|endoftext|>")
        assert not {*layout.marks, layout.end} & set(ids)
        assert layout.tokenizer.decode(ids) == "a [CLIP OUT] b<|endoftext|>"

    def test_a_tokenizer_that_has_the_marks_keeps_them(self, layout):
        size = len(layout.tokenizer)
        assert Layout(layout.tokenizer).marks == layout.marks and len(layout.tokenizer) == size

    def test_gpt2_cuts_the_text_as_it_would_in_one_piece(self, shared):
        tokenizer = load_tokenizer(str(shared / "fixtures" / "gpt2-tokenizer"))
        for caption in ("a cat on a mat", "A woman riding a bike amongst other vehicles.", "2 dogs"):
            layout = Layout(tokenizer)
            pieces = [layout.opening, layout.ids(caption), layout.stopped]
            assert list(itertools.chain(*pieces)) == layout.ids(f"Caption: [{caption}].")

    @pytest.mark.parametrize("segments", [[], [ClipIn(3)], [ClipOut(-1)]])
    def test_a_sequence_that_cannot_be_is_refused(self, layout, segments):
        with pytest.raises(ClipcapError, match=r"without a segment|there are 3 embeddings"):
            layout.batch([segments], embeddings(3))

    @pytest.mark.parametrize(
        ("text", "caption"),
        [
            ("a cat]", "a cat"),
            ("a sign [sic] here]. and on", "a sign [sic] here"),
            ("a cat", "a cat"),
            ("a [ b]", "a [ b"),
            ("]", ""),
        ],
    )
    def test_a_caption_ends_at_the_bracket_that_closes_the_prompts(self, text, caption):
        assert inside_brackets(text) == caption


class TestModel:
    @pytest.mark.parametrize("dim", [DIM, 64])
    def test_a_batch_equals_its_items_one_by_one(self, make_clip_gpt, dim):
        model, known = make_clip_gpt(clip_dim=dim), embeddings(3, dim)
        model.embedding_loss = "contrastive"
        batch = model.layout.batch(MIXED, known)
        with torch.no_grad():
            whole, text, close = model.logits(**reading(batch)), *model.losses(**inputs(batch))[:2]
            predicted, alone = [], []
            for number, segments in enumerate(MIXED):
                single = model.layout.batch([segments], known)
                logits = model.logits(**reading(single))[0]
                torch.testing.assert_close(whole[number, : len(logits)], logits, atol=1e-5, rtol=1e-5)
                alone.append(model.losses(**inputs(single)))
                predicted.append(alone[-1][2])
        torch.testing.assert_close(model.losses(**inputs(batch))[2], torch.cat(predicted), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(text, sum(losses[0] for losses in alone), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(close, sum(losses[1] for losses in alone), atol=1e-5, rtol=1e-5)

    def test_a_later_embedding_changes_nothing_before_it(self, make_clip_gpt):
        model, known = make_clip_gpt(), embeddings(3)
        segments = [ClipIn(0), " an apple ", ClipIn(1), " eggs ", ClipIn(2), " tea"]
        batch, other = model.layout.batch([segments], known), known.clone()
        other[2] = embeddings(1, seed=9)
        with torch.no_grad():
            before = model.logits(**reading(batch))
            after = model.logits(**{**reading(batch), "embeddings": other})
        last = int(batch.clip_places[2])
        assert torch.equal(before[:, :last], after[:, :last])
        assert (before[:, last:] - after[:, last:]).abs().max() > 1e-2

    def test_the_text_loss_is_the_cross_entropy_of_the_labels(self, make_clip_gpt):
        model = make_clip_gpt()
        batch = model.layout.batch(MIXED, embeddings(3))
        logits = model.logits(**reading(batch))
        wanted = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch.labels[:, 1:].flatten(), reduction="sum")
        torch.testing.assert_close(model.losses(**inputs(batch))[0], wanted)
        model._head_is_plain = False
        for value, plain in zip(model.losses(**inputs(batch)), (wanted, None, None)):
            assert plain is None or torch.allclose(value, plain)

    def test_embeddings_are_normalised_unless_the_checkpoint_says_otherwise(self, make_clip_gpt):
        known = embeddings(3)
        for normalised in (True, False):
            model = make_clip_gpt(normalize_prefix=normalised)
            batch = model.layout.batch(MIXED, known)
            once, twice = (model.logits(**{**reading(batch), "embeddings": k * known}) for k in (1, 2))
            assert torch.allclose(once, twice, atol=1e-4) == normalised

    def test_of_equal_widths_nothing_is_projected(self, make_clip_gpt):
        assert not [name for name in make_clip_gpt(clip_dim=64).state_dict() if not name.startswith("lm.")]
        projections = [name for name in make_clip_gpt().state_dict() if not name.startswith("lm.")]
        assert {name.split(".")[0] for name in projections} == {"project_in", "project_out"}

    def test_what_is_too_long_or_too_wide_says_so(self, make_clip_gpt):
        model = make_clip_gpt()
        with pytest.raises(ClipcapError, match=r"129 positions: .* takes 128"):
            model.logits(**reading(model.layout.batch([[TokenSpan([5] * 129)]], embeddings(1))))
        with pytest.raises(ClipcapError, match="are 16 wide, this model expects 32"):
            model.prefix(embeddings(2, 16))

    def test_three_interleaved_embeddings_train_and_decode(self, make_clip_gpt):
        """Every order of three pictures: each is named after it, and at the end the first one is to be drawn."""
        model, known = make_clip_gpt(), embeddings(3)
        names, layout = [" apple", " eggs", " tea"], model.layout
        end = TokenSpan([layout.end])

        def sequence(order, last=True):
            read = [segment for row in order for segment in (ClipIn(row), names[row])]
            return [*read, ClipOut(order[0]), end] if last else read[:-1]

        orders = list(itertools.permutations(range(3)))
        batch = inputs(layout.batch([sequence(order) for order in orders], known))
        model.embedding_loss, model.contrastive_temp = "contrastive", 0.05
        optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
        one = torch.tensor(1.0)
        for _ in range(150):
            optimizer.zero_grad()
            loss = model(text_scale=one / 30, embedding_scale=one / 6, **batch)
            loss.backward()
            optimizer.step()
        assert loss < 0.2
        for order in orders:
            found = continue_sequence(model, sequence(order, last=False), known, GREEDY)[0].text
            assert found.startswith(names[order[2]])
        nearest = F.normalize(model.losses(**batch)[2], dim=1) @ F.normalize(known, dim=1).T
        assert nearest.argmax(dim=1).tolist() == [order[0] for order in orders]


class TestLoss:
    predicted, known, rows = embeddings(4, 8, seed=1), embeddings(5, 8, seed=2), torch.tensor([4, 0, 0, 2])

    def test_each_kind_by_hand(self):
        loss = {
            kind: embedding_loss(kind, self.predicted, self.known, self.rows, 0.5)
            for kind in ("mse", "cosine", "contrastive")
        }
        wanted = self.known[self.rows]
        cosines = F.cosine_similarity(self.predicted[:, None], self.known[None], dim=2)  # [O, C]
        own = cosines[range(4), self.rows]
        torch.testing.assert_close(loss["mse"], F.mse_loss(self.predicted, wanted) * 4)
        torch.testing.assert_close(loss["cosine"], (1 - own).sum())
        torch.testing.assert_close(loss["contrastive"], ((cosines / 0.5).logsumexp(dim=1) - own / 0.5).sum())

    def test_nothing_to_compare_is_no_loss(self):
        for kind in ("mse", "cosine", "contrastive"):
            assert embedding_loss(kind, self.predicted[:0], self.known, self.rows[:0], 0.5) == 0


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Eight images, one caption each."""
    return feature_file(tmp_path_factory.mktemp("data") / "features.pkl")


class TestSteps:
    def pairs(self, model, data, many=1, text=1.0, embedding=1.0):
        captions = CaptionDataset(read_features(data), model.layout.tokenizer, 50)
        return PairDataset(captions, model.layout, text, embedding, many)

    def loss(self, model, windows):
        """Summed as the loop does it, over micro-batches and processes."""
        with torch.no_grad():
            sums = [[model(**inputs(batch)) for batch in window] for window in windows]
        weights = sum(len(batch.captions) * batch.counts for window in windows for batch in window)
        return sum(map(sum, sums)) / weights

    def test_a_step_is_the_mean_over_tokens_plus_the_mean_over_embeddings(self, make_clip_gpt, data):
        model = make_clip_gpt()
        model.embedding_loss = "cosine"
        [window] = self.pairs(model, data, text=0.5, embedding=3.0).windows(8, 0, 0, BatchShare(0, 1, 8))
        text, close, _ = model.losses(**inputs(window[0].sequences))
        tokens = int((window[0].sequences.labels != IGNORE).sum())
        torch.testing.assert_close(self.loss(model, [window]), 0.5 * text / tokens + 3.0 * close / 8)

    @pytest.mark.parametrize("kind", ["mse", "contrastive"])
    @pytest.mark.parametrize("many", [1, 3])
    def test_it_is_the_same_however_it_is_split(self, make_clip_gpt, data, kind, many):
        model = make_clip_gpt()
        model.embedding_loss, model.contrastive_temp = kind, 0.1
        pairs = self.pairs(model, data, many)
        [whole] = pairs.windows(8, 0, 0, BatchShare(0, 1, 8))
        split = [next(pairs.windows(8, 0, 0, BatchShare(rank, 3, 2))) for rank in range(3)]
        assert len({len(window) for window in split}) == 1 < sum(map(len, split))
        torch.testing.assert_close(self.loss(model, split), self.loss(model, [whole]))

    @pytest.mark.parametrize("many", [1, 2, 3])
    def test_every_caption_is_learnt_once_in_each_direction(self, make_clip_gpt, data, many):
        model = make_clip_gpt()
        pairs = self.pairs(model, data, many)
        read, written = [], []
        for window in pairs.windows(4, 0, 0, BatchShare(0, 1, 2 * many)):
            for batch in window:
                rows = batch.sequences
                read += rows.embeddings[rows.clip_rows].tolist()
                written += rows.embeddings[rows.out_rows].tolist()
                assert len(rows.input_ids) == 2 * -(-len(batch.captions) // many) or many > 1
                assert sorted(batch.imagined) == sorted(batch.captions)
        everything = sorted(read_features(data).rows(slice(None)).tolist())
        assert sorted(read) == sorted(written) == everything

    def test_an_image_with_two_captions_is_no_negative_of_itself(self, make_clip_gpt, tmp_path):
        data = feature_file(tmp_path / "f.pkl", [("a", "b"), "c"])
        pairs = self.pairs(make_clip_gpt(), data)
        step = pairs.step(np.arange(3))
        assert len(step.embeddings) == 2 and step.row_of[0] == step.row_of[1] != step.row_of[2]


def settings(data, lm, out_dir, **changes) -> TrainClipGptConfig:
    options = {
        "epochs": 2,
        "bs": 3,
        "lr": 1e-3,
        "warmup_steps": 0,
        "val": "0.25",
        "clip_recall": False,
        "save_every": 9,
        **changes,
    }
    return TrainClipGptConfig.of(data=str(data), lm=str(lm), out_dir=str(out_dir), **options)


SIX = (  # of one length, so that steps mix them
    "a red apple on a white plate",
    "a green apple on a blue plate",
    "a pink donut on a wooden tray",
    "a white donut on a black table",
    "a white napkin on a red table",
    "a black cup on a green tray",
)


def test_a_tiny_model_learns_six_captions_by_heart_in_both_directions(lm_folder, tmp_path, messages):
    data = feature_file(tmp_path / "train.pkl", [(caption,) * 20 for caption in SIX])
    val = feature_file(tmp_path / "val.pkl", SIX)
    chosen = {"val": str(val), "epochs": 14, "bs": 8, "lr": 3e-3, "projection_lr": 3e-3}
    best = train_clip_gpt(settings(data, lm_folder, tmp_path / "out", **chosen))
    [*_, line] = metrics(tmp_path / "out")
    assert line["t2i_r1"] == line["distinct"] == 1 and line["cider"] > 5
    said = "\n".join(messages())
    assert "text to image recall@1/5/10 of 6 captions among 6 images: 1.000/1.000/1.000, by chance 0.167" in said
    clip_gpt = ClipGptCaptioner.from_pretrained(best)
    features = read_features(val)
    assert clip_gpt(features.rows(slice(None)), GREEDY) == list(SIX)
    assert clip_gpt(features.rows(slice(None)), DecodeConfig(beam=True)) == list(SIX)
    imagined = clip_gpt.imagine(SIX)
    found = F.normalize(imagined, dim=1) @ F.normalize(features.rows(slice(None)), dim=1).T
    assert found.argmax(dim=1).tolist() == list(range(6))
    again = [captions[0].text for captions in clip_gpt.caption_embeddings(imagined, GREEDY)]
    assert sum(a == b for a, b in zip(again, SIX)) >= 4  # there and back


class TestTraining:
    @pytest.mark.parametrize("tune", ["none", "lora"])
    def test_a_frozen_model_learns_its_marks_and_stores_them_alone(self, data, lm_folder, tmp_path, tune):
        if tune == "lora":
            pytest.importorskip("peft", reason="the lora extra is not installed")
        best = train_clip_gpt(settings(data, lm_folder, tmp_path / "out", tune=tune, weight_decay=0.1))
        stored = load_file(best / "model.safetensors")
        kinds = {name.split(".")[0] for name in stored if "lora_" not in name}
        assert kinds == {"project_in", "project_out", "token_embeddings"}
        assert any("lora_" in name for name in stored) == (tune == "lora")
        model = load_clip_gpt(best).model
        base = load_lm(str(lm_folder)).get_input_embeddings().weight
        table = model.lm.get_input_embeddings().weight
        assert torch.equal(table[: len(base)], base)
        untrained = ClipGPT(
            model.config, load_lm(str(lm_folder)), Layout(load_tokenizer(str(lm_folder)))
        ).token_weights()[0]
        assert not torch.equal(table[model.layout.marks], untrained[model.layout.marks])

    @pytest.mark.parametrize("tune", ["full", "lora", "none"])
    @pytest.mark.parametrize("many", [1, 2])
    def test_resumed_run_equals_an_unbroken_one(self, data, lm_folder, tmp_path, monkeypatch, tune, many):
        if tune == "lora":
            pytest.importorskip("peft", reason="the lora extra is not installed")
        chosen = {"tune": tune, "images_per_sequence": many, "epochs": 2, "bs": 2, "embedding_loss": "cosine"}
        unbroken = train_clip_gpt(settings(data, lm_folder, tmp_path / "unbroken", **chosen))
        windows = InterleavedTask.windows

        def interrupted(self, at, skip):
            for number, window in enumerate(windows(self, at, skip), skip):
                if (at, number) == (1, 1):
                    raise KeyboardInterrupt
                yield window

        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(InterleavedTask, "windows", interrupted)
            train_clip_gpt(settings(data, lm_folder, tmp_path / "broken", **chosen, save_steps=1))
        broken = train_clip_gpt(settings(data, lm_folder, tmp_path / "broken", **chosen, resume=True))
        for name in ("last", "best"):
            one, other = (best.parent / f"clip_gpt-{name}" for best in (unbroken, broken))
            assert same(weights(one), weights(other))
        assert metrics(broken.parent) == metrics(unbroken.parent)
        with pytest.raises(ClipcapError, match="has embedding_loss cosine, this command mse"):
            changed = {**chosen, "embedding_loss": "mse"}
            train_clip_gpt(settings(data, lm_folder, tmp_path / "broken", **changed, resume=True))

    def test_two_processes_with_half_the_batch_train_as_one(self, lm_folder, tmp_path):
        nine = [*CAPTIONS, "a ninth caption of a plate"]  # of a last batch of one, the second has no share
        data, val = feature_file(tmp_path / "f.pkl", nine), feature_file(tmp_path / "val.pkl", nine[:5], seed=1)
        chosen = {"val": str(val), "dropout": False, "grad_clip": 1.0, "val_captions": 5}
        train_clip_gpt(settings(data, lm_folder, tmp_path / "one", bs=4, **chosen))
        two = settings(data, lm_folder, tmp_path / "two", bs=2, **chosen)
        names = ("data", "lm", "out_dir", "epochs", "bs", "lr", "warmup_steps", "clip_recall", "save_every", *chosen)
        words = flags({name: two.flat()[name] for name in names})
        both = forked_in_two(tmp_path / "log", "train-clip-gpt", *words)
        assert [rank.status for rank in both] == [0, 0], both
        assert "2 processes on cpu" in both[0].err
        for line, other in zip(metrics(tmp_path / "one"), metrics(tmp_path / "two"), strict=True):
            assert line == pytest.approx(other, abs=1e-4)
        ours, theirs = (weights(tmp_path / name / "clip_gpt-last") for name in ("two", "one"))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=2e-4)

    def test_nan_features_stop_the_run_and_name_the_image(self, lm_folder, tmp_path):
        bad = feature_file(tmp_path / "bad.pkl", nan_rows=[5])
        said = r"loss is not finite in epoch 0, step \d: of image photo5 \(its features are not finite\)"
        with pytest.raises(ClipcapError, match=said):
            train_clip_gpt(settings(bad, lm_folder, tmp_path / "out", val=None))

    @pytest.mark.parametrize("many", [1, 2])
    def test_a_diverged_run_names_its_batch(self, data, lm_folder, tmp_path, many):
        with pytest.raises(ClipcapError, match=r"a batch with images photo\d, .* the run has diverged"):
            train_clip_gpt(settings(data, lm_folder, tmp_path, lr=1e30, images_per_sequence=many))

    def test_gradient_checkpointing_changes_nothing(self, data, lm_folder, tmp_path):
        chosen = {"dropout": False, "images_per_sequence": 2}
        one, other = (
            train_clip_gpt(settings(data, lm_folder, tmp_path / str(again), gradient_checkpointing=again, **chosen))
            for again in (False, True)
        )
        torch.testing.assert_close(weights(one), weights(other), rtol=1e-4, atol=1e-5)

    def test_best_can_follow_recall(self, data, lm_folder, tmp_path):
        chosen = {"val": "0.5", "epochs": 4, "lr": 3e-3, "save_every": 1, "select": "recall"}
        best = train_clip_gpt(settings(data, lm_folder, tmp_path / "out", **chosen))
        scores = [line["t2i_r1"] + line["t2i_r5"] + line["t2i_r10"] for line in metrics(tmp_path / "out")]
        assert same(weights(best), weights(best.with_name(f"clip_gpt-{int(np.argmax(scores)):03d}")))
        with pytest.raises(ClipcapError, match="--select recall needs validation images"):
            train_clip_gpt(settings(data, lm_folder, tmp_path / "none", val=None, select="recall"))

    def test_the_lines_of_a_run_compare_with_clips_own_text_tower(self, lm_folder, clip_file, tmp_path, messages):
        from clipcap.models.encoders.load import load_encoder

        encoder = load_encoder(str(clip_file), "cpu")
        meta = FeatureMeta(encoder=str(clip_file), encoder_weights_id=encoder.weights_id)
        data = feature_file(tmp_path / "f.pkl", meta=meta, dim=64)
        train_clip_gpt(settings(data, lm_folder, tmp_path / "out", epochs=1, clip_recall=True))
        assert "CLIP's own text tower 0." in "\n".join(messages())
        other = feature_file(tmp_path / "other.pkl", meta=replace(meta, encoder_weights_id="0" * 16), dim=64)
        train_clip_gpt(settings(other, lm_folder, tmp_path / "other", epochs=1, clip_recall=True))
        said = "\n".join(messages())
        assert "note: no comparison with CLIP's own text tower: " in said and "has other weights" in said

    def test_a_warm_start_goes_on_from_a_checkpoint(self, data, lm_folder, tmp_path):
        first = train_clip_gpt(settings(data, lm_folder, tmp_path / "first", tune="none"))
        chosen = {"weights_dir": str(first), "epochs": 1, "lr": 0.0, "projection_lr": 0.0}
        config = settings(data, lm_folder, tmp_path / "second", **chosen).with_options(lm=None)
        second = load_clip_gpt(train_clip_gpt(config)).model
        model = load_clip_gpt(first).model
        assert second.config.tune == "full" and not second.token_hooks
        assert same(second.lm.state_dict(), model.lm.state_dict())
        assert same(second.project_out.state_dict(), model.project_out.state_dict())
        other = feature_file(tmp_path / "f.pkl", meta=replace(META, encoder_weights_id="9" * 16))
        with pytest.raises(ClipcapError, match="embeddings were made with tiny-clip of weights 9"):
            train_clip_gpt(config.with_options(data=str(other), out_dir=str(tmp_path / "third")))

    def test_captions_are_cut_where_several_do_not_fit_into_a_sequence(self, lm_folder, tmp_path, messages):
        data = feature_file(tmp_path / "f.pkl", ["a red plate " * 10] * 8)
        train_clip_gpt(settings(data, lm_folder, tmp_path / "out", images_per_sequence=4, epochs=1))
        assert "6 cut to" in "\n".join(messages())
        with pytest.raises(ClipcapError, match="--images_per_sequence 20 leaves no room"):
            train_clip_gpt(settings(data, lm_folder, tmp_path / "none", images_per_sequence=20))

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"text_weight": 0.0, "embedding_weight": 0.0}, "both 0: there would be nothing to learn"),
            ({"contrastive_temp": 0.0}, "--contrastive_temp must be above 0"),
            ({"images_per_sequence": 0}, "--images_per_sequence must be at least 1"),
            ({"embedding_weight": -1.0}, "--embedding_weight must be at least 0"),
        ],
    )
    def test_options_at_odds_are_refused(self, options, message):
        with pytest.raises(ClipcapError, match=message):
            TrainClipGptConfig.of(**options)


def original_folder(lm_folder, folder, resize=True):
    """A GPT-2 with the four marks, saved as General-GPT's notebook saves it."""
    tokenizer = AutoTokenizer.from_pretrained(lm_folder)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.add_special_tokens({"additional_special_tokens": list(MARKS)})
    torch.manual_seed(1)
    lm = AutoModelForCausalLM.from_pretrained(lm_folder)
    if resize:
        lm.resize_token_embeddings(len(tokenizer))
    lm.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class TestCheckpoint:
    @pytest.mark.parametrize("options", [{}, {"clip_dim": 64}, {"normalize_prefix": False}])
    def test_a_saved_model_writes_and_imagines_the_same(self, make_clip_gpt, tmp_path, options):
        model = make_clip_gpt(**options)
        folder = save_clip_gpt(model, model.layout.tokenizer, tmp_path / "saved")
        loaded = load_clip_gpt(folder)
        assert loaded.model.config == model.config
        known = embeddings(3, model.config.clip_dim)
        assert torch.equal(loaded.model.imagine(CAPTIONS), model.imagine(CAPTIONS))
        texts = [write_captions(m, m.layout.tokenizer, known, GREEDY) for m in (model, loaded.model)]
        assert texts[0] == texts[1]
        assert json.loads((folder / "config.json").read_text())["clip_gpt"]["prefix_length"] == 3 + len(
            model.layout.opening
        )

    def test_a_checkpoint_of_the_first_ones_loads(self, make_clip_gpt, tmp_path):
        model = make_clip_gpt()
        folder = save_clip_gpt(model, model.layout.tokenizer, tmp_path / "saved")
        config = json.loads((folder / "config.json").read_text())
        config["clip_gpt"]["recipe"] = "default"
        (folder / "config.json").write_text(json.dumps(config))
        assert load_clip_gpt(folder).model.config == model.config

    def test_a_folder_in_the_originals_layout_loads_and_computes_as_the_original(self, lm_folder, tmp_path):
        folder = original_folder(lm_folder, tmp_path / "original")
        loaded = load_clip_gpt(folder)
        model = loaded.model
        assert not [name for name in model.state_dict() if not name.startswith("lm.")]
        assert model.config.normalize_prefix and model.config.encoder is None
        tokenizer, lm = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder).eval()

        ids = tokenizer(rf"Caption: [{CAPTIONS[0]}].[CLIP OUT][\CLIP OUT]", return_tensors="pt")["input_ids"]
        place = ids[0].tolist().index(tokenizer.convert_tokens_to_ids("[CLIP OUT]"))
        with torch.no_grad():
            hidden = lm(ids, output_hidden_states=True).hidden_states[-1][:, place]  # [1, D]
        torch.testing.assert_close(model.imagine([CAPTIONS[0]]), hidden, atol=1e-5, rtol=1e-5)

        known = F.normalize(embeddings(1, 64), dim=1)
        table = lm.get_input_embeddings()
        ids = tokenizer(r"[CLIP IN][\CLIP IN]Caption: [", return_tensors="pt")["input_ids"]
        own = torch.cat([table(ids[:, :1]), known[None], table(ids[:, 1:])], dim=1)
        torch.testing.assert_close(model.prefix(known), own)

    def test_a_folder_as_the_transformers_of_its_day_wrote_it_loads(self, shared, tmp_path):
        """4.27: a slow tokenizer's files, the marks in added_tokens.json, pickled weights with GPT-2's buffers."""
        folder, end = tmp_path / "original", "<|endoftext|>"
        shutil.copytree(shared / "fixtures" / "gpt2-tokenizer", folder)
        (folder / "added_tokens.json").write_text(json.dumps({mark: 50257 + i for i, mark in enumerate(MARKS)}))
        special = {f"{name}_token": end for name in ("bos", "eos", "unk", "pad")}
        special["additional_special_tokens"] = list(MARKS)
        (folder / "special_tokens_map.json").write_text(json.dumps(special))
        config = GPT2Config(vocab_size=50261, n_embd=64, n_layer=1, n_head=1, architectures=["GPT2LMHeadModel"])
        (folder / "config.json").write_text(config.to_json_string())
        state = GPT2LMHeadModel(config).state_dict()
        buffers = {"bias": torch.ones(1, 1, 1024, 1024).tril().byte(), "masked_bias": torch.tensor(-1e4)}
        torch.save(state | {f"transformer.h.0.attn.{k}": v for k, v in buffers.items()}, folder / "pytorch_model.bin")
        model = load_clip_gpt(folder).model
        assert model.layout.marks == [50257, 50258, 50259, 50260] and model.config.stop_token == "]."
        assert torch.equal(model.token_weights()[0], state["transformer.wte.weight"])
        [[caption]] = write_captions(model, model.layout.tokenizer, embeddings(1, 64), GREEDY)
        assert len(caption.token_ids) <= 40

    def test_a_folder_in_the_originals_layout_is_trained_on(self, lm_folder, tmp_path):
        folder = original_folder(lm_folder, tmp_path / "original")
        data = feature_file(tmp_path / "f.pkl", dim=64)
        config = settings(data, "", tmp_path / "out").with_options(weights_dir=str(folder), lm=None)
        model = load_clip_gpt(train_clip_gpt(config)).model
        assert model.config.encoder == META.encoder and model.config.clip_dim == 64

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ("plain", "tokenizer lacks [CLIP IN], no CLIP-GPT: make one of it by"),
            ("small", "token embeddings for"),
            ("captioner", "is a captioner, not a CLIP-GPT: `clipcap predict` uses it"),
            ("pt", "is a file, and a CLIP-GPT is a folder"),
            ("json", "not the configuration of a CLIP-GPT"),
            ("other", "is no CLIP-GPT"),
            ("newer", "of a newer clipcap"),
            ("option", "unknown option 'beams'"),
            ("tensor", "tensor project_out.bias is missing: the checkpoint is incomplete"),
            ("size", "project_out.bias is [7] there and [32] here"),
            ("unknown", "unknown tensor mapper.weight"),
            ("absent", "no such checkpoint (a folder made by `clipcap train-clip-gpt`)"),
        ],
    )
    def test_what_is_no_clip_gpt_is_named(
        self, change, message, make_clip_gpt, lm_folder, clip_file, tmp_path, capsys
    ):
        path = tmp_path / "checkpoint"
        if change == "plain":
            path = lm_folder
        elif change == "small":
            original_folder(lm_folder, path, resize=False)
        elif change == "captioner":
            save_captioner(path, lm_folder, clip_file)
        elif change == "pt":
            path = tmp_path / "weights.pt"
            torch.save({}, path)
        elif change != "absent":
            model = make_clip_gpt()
            save_clip_gpt(model, model.layout.tokenizer, path)
            _damage(path, change)
        status, _, err = run(capsys, "caption-clip-gpt", "--img", __file__, "--load_pt", path)
        assert status == 1 and len(err) == 1 and message in err[0]

    def test_a_captioner_is_told_what_a_clip_gpt_is(self, make_clip_gpt, tmp_path, capsys):
        model = make_clip_gpt()
        folder = save_clip_gpt(model, model.layout.tokenizer, tmp_path / "saved")
        status, _, err = run(capsys, "predict", "--img", __file__, "--load_pt", folder)
        assert status == 1 and len(err) == 1
        assert f"is a CLIP-GPT, not a captioner: `clipcap caption-clip-gpt --load_pt {folder}`" in err[0]

    def test_a_folder_of_other_files_is_not_replaced(self, make_clip_gpt, tmp_path):
        model = make_clip_gpt()
        (tmp_path / "notes.txt").write_text("mine")
        with pytest.raises(ClipcapError, match="is not a checkpoint, so it is not replaced"):
            save_clip_gpt(model, model.layout.tokenizer, tmp_path)
        assert (tmp_path / "notes.txt").read_text() == "mine"


def _damage(path, change):
    from safetensors.torch import save_file

    config = json.loads((path / "config.json").read_text())
    state = load_file(path / "model.safetensors")
    if change == "newer":
        config["format_version"] = 99
    if change == "option":
        config["clip_gpt"]["beams"] = 5
    if change == "other":
        config = {"purpose": "none"}
    if change == "tensor":
        del state["project_out.bias"]
    if change == "size":
        state["project_out.bias"] = torch.zeros(7)
    if change == "unknown":
        state["mapper.weight"] = torch.zeros(7)
    save_file(state, path / "model.safetensors")
    (path / "config.json").write_text("{" if change == "json" else json.dumps(config))


@pytest.fixture(scope="module")
def photos(tmp_path_factory, clip_file, lm_folder):
    """Drawn photos, their features, and a CLIP-GPT trained a little on them by the command."""
    from clipcap.cli.main import main

    folder = draw_set(tmp_path_factory.mktemp("set"), 6, 2)
    features = folder / "features.pkl"
    words = ["--data_path", folder, "--clip_model_type", clip_file, "--out", features]
    assert main(["parse", "custom", *map(str, words)]) == 0
    words = ["--data", features, "--lm", lm_folder, "--out_dir", folder / "run", "--epochs", 2, "--lr", 1e-3]
    assert main(["train-clip-gpt", *map(str, words)]) == 0
    return folder


class TestUse:
    def test_photos_and_features_are_captioned_alike(self, photos, tmp_path, capsys):
        images = [photos / f"photo{i}.png" for i in range(3)]
        decoding = ["--beam", "--max_new_tokens", 12, "--load_pt", photos / "run"]
        status, out, _ = run(capsys, "caption-clip-gpt", "--img", *images, *decoding)
        assert status == 0 and [line.split("\t")[0] for line in out] == [str(path) for path in images]
        _, single, _ = run(capsys, "caption-clip-gpt", "--img", images[0], *decoding)
        assert single == [out[0].split("\t")[1]]
        lines = tmp_path / "captions.jsonl"
        words = ["--features", photos / "features.pkl", "--out", lines]
        assert run(capsys, "caption-clip-gpt", *words, *decoding)[0] == 0
        found = [json.loads(line)["caption"] for line in lines.read_text().splitlines()]
        assert len(found) == 6 and found[:3] == [line.split("\t")[1] for line in out]

    def test_samples_repeat_with_their_seed(self, photos, capsys):
        words = ["--img", photos / "photo0.png", "--load_pt", photos / "run", "--num_captions", 3, "--top_p", 1]
        first, second, other = (
            run(capsys, "caption-clip-gpt", *words, "--temp", 2.0, "--max_new_tokens", 9, "--seed", seed)[1]
            for seed in (1, 1, 2)
        )
        assert first == second != other and len(first) == 3

    def test_imagined_pictures_are_shown_as_table_and_grid(self, photos, tmp_path, capsys):
        grid = tmp_path / "grid.png"
        where = ["--load_pt", photos / "run", "--index", photos / "features.pkl"]
        words = [*where, "--k", 4, "--out", grid, "--round_trip"]
        status, out, _ = run(capsys, "imagine", "picture 3 said", "in way 1", *words)
        assert status == 0
        assert out[0].split() == ["rank", "score", "image", "caption", "path"]
        assert [line.split()[0] for line in out[1:5]] == ["1", "2", "3", "4"]
        assert [line for line in out if line.startswith("round trip: ")]
        clip_gpt = ClipGptCaptioner.from_pretrained(photos / "run")
        features = read_features(photos / "features.pkl")
        cosines = F.cosine_similarity(
            clip_gpt.imagine(["picture 3 said in way 1"]), features.rows(slice(None)), dim=1
        )
        best = [features.image_ids[row] for row in cosines.argsort(descending=True)[:4]]
        assert [line.split()[2] for line in out[1:5]] == best
        with Image.open(grid) as sheet:
            assert sheet.height > 300

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["imagine", "tea", "--index", "FEATURES"], "--load_pt is missing"),
            (["imagine", "tea", "--load_pt", "RUN"], "--index is missing"),
            (["imagine", "tea", "--load_pt", "demo", "--index", "FEATURES"], "of CLIP-GPT none is bundled"),
            (["imagine", "tea", "--load_pt", "RUN", "--index", "FEATURES", "--out", "tea.txt"], "ends in .txt"),
            (["imagine", " ", "--load_pt", "RUN", "--index", "FEATURES"], "the caption is empty"),
            (["imagine", "tea", "--load_pt", "RUN", "--index", "OTHER"], "embeddings are 32 wide"),
            (["imagine", "tea", "--load_pt", "RUN", "--index", "FEATURES", "--k", "0"], "--k must be at least 1"),
            (["imagine", "tea " * 130, "--load_pt", "RUN", "--index", "FEATURES"], "takes 128: shorten its text"),
            (["caption-clip-gpt", "--load_pt", "RUN"], "pass photos with --img"),
            (["caption-clip-gpt", "--load_pt", "RUN", "--features", "OTHER"], "embeddings are 32 wide"),
            (["train-clip-gpt", "--data", "none.pkl"], "none.pkl: no such feature file"),
        ],
    )
    def test_what_cannot_be_done_is_said_in_one_line(self, words, message, photos, tmp_path, capsys):
        named = {"RUN": photos / "run", "FEATURES": photos / "features.pkl", "OTHER": tmp_path / "other.pkl"}
        feature_file(named["OTHER"])
        status, _, err = run(capsys, *[named.get(word, word) for word in words])
        assert status == 1 and message in err[-1]
        assert len([line for line in err if "clipcap: error" in line]) == 1 and "Traceback" not in "".join(err)
