"""Training with prompts: what a step sees, the same after a resume, and captions by another datastore."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from support.road import draw_photos
from support.small import feature_file, interrupt_after, run, same, weights
from support.towers_small import vision_tower

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig, LoadConfig, PredictConfig
from clipcap.captioning.image_inputs import embed_pictures
from clipcap.captioning.load_captioner import load_captioner
from clipcap.captioning.predict import predict
from clipcap.demo.tiny import make_clip
from clipcap.errors import ClipcapError
from clipcap.features.feature_set import FeatureMeta
from clipcap.features.files import read_features, write_features
from clipcap.models.encoders.load import load_encoder
from clipcap.models.export import export
from clipcap.prompts.config import PromptConfig
from clipcap.prompts.entities import Entities, plural
from clipcap.prompts.prompter import report_prompts
from clipcap.prompts.template import PromptText
from clipcap.training.dataset import CaptionDataset
from clipcap.training.prompting import DrawnPrompts, NamedWords, open_prompting

GROUPS = [
    (c, f"{c} again", f"here {c}")[: 1 + i % 3] for i, c in enumerate([*CAPTIONS, *(f"{c} too" for c in CAPTIONS)])
]
CHOSEN = {"prompts": "captions", "prompt_captions": 2, "bs": 6, "save_steps": 1}


@pytest.fixture
def data(tmp_path):
    return feature_file(tmp_path / "f.pkl", GROUPS)


def drawn_of(data, tokenizer, dropout=0.3):
    features = read_features(data)
    config = PromptConfig(prompts="captions", datastore=str(data), prompt_captions=2, prompt_dropout=dropout)
    prompting = open_prompting(config, features, "cpu")
    text = PromptText(tokenizer, "captions", 2, prompting.of_model(tokenizer)["prompt_tokens"])
    dataset = CaptionDataset(features, tokenizer, 40, share_prefix=True)
    return DrawnPrompts(prompting, dataset, text, seed=4)


def renaming_of(tmp_path, tokenizer, kind, share=1.0, shares=True):
    groups = [(f"{word} on a plate", f"a plate of {word}s") for word in ("apple", "egg", "banana") for _ in range(4)]
    data = feature_file(tmp_path / "named.pkl", groups, meta=FeatureMeta(encoder="demo"), dim=128)
    (tmp_path / "words.txt").write_text("apple\negg\nbanana\ncherry\n")
    chosen = {"datastore": str(data), "prompt_captions": 3} if kind == "captions" else {}
    config = PromptConfig(
        prompts=kind, entities=str(tmp_path / "words.txt"), renaming=share, prompt_dropout=0, **chosen
    )
    features = read_features(data)
    prompting = open_prompting(config, features, "cpu")
    text = PromptText(tokenizer, kind, 3, prompting.of_model(tokenizer)["prompt_tokens"])
    return DrawnPrompts(prompting, CaptionDataset(features, tokenizer, 40, share_prefix=shares), text, seed=4)


def captions_in(batch, tokenizer):
    """The captions of each row, read back from its label tokens."""
    rows = [tokenizer.decode(labels[labels != -100]) for labels in batch.labels]
    return [[one for one in row.split("<|endoftext|>") if one] for row in rows]


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("kind", ["captions", "entities"])
def test_a_renamed_word_has_its_new_name_in_caption_and_prompt_alike(tmp_path, tokenizer, kind, shares):
    prompts = renaming_of(tmp_path, tokenizer, kind, shares=shares)
    plain = prompts.data.batch(np.arange(len(prompts.data)))
    seen = set()
    for step in range(6):
        batch = prompts.added(plain, step)
        assert (batch.captions == plain.captions).all() and (batch.row_of == plain.row_of).all()
        rows = zip(captions_in(batch, tokenizer), captions_in(plain, tokenizer), strict=True)
        for row, (new, old) in enumerate(rows):
            prompt = tokenizer.decode(batch.given.prompt_ids[row][batch.given.prompt_mask[row]])
            if not old[0].endswith(" on a plate"):
                continue  # the other caption of the image
            before, after = (texts[0].removesuffix(" on a plate") for texts in (old, new))
            seen.add(after)
            assert new == [f"{after} on a plate", f"a plate of {plural(after)}"][: len(old)]
            assert before not in prompt  # or there was nothing to exchange
            assert after == before or after in prompt or plural(after) in prompt
    assert {"apple", "egg", "banana", "cherry"} <= seen and len(seen) > 8  # of the list, and words of the vocabulary
    assert not {"plate", "on"} & seen


@pytest.mark.parametrize("kind", ["captions", "entities"])
def test_without_renaming_a_batch_keeps_its_captions(tmp_path, tokenizer, kind):
    prompts = renaming_of(tmp_path, tokenizer, kind, share=0)
    plain = prompts.data.batch(np.arange(len(prompts.data)))
    batch = prompts.added(plain, 1)
    assert torch.equal(batch.input_ids, plain.input_ids) and torch.equal(batch.labels, plain.labels)
    assert torch.equal(batch.positions, plain.positions)


def test_a_batch_that_counts_nothing_stays_so_when_words_are_renamed(tmp_path, tokenizer):
    prompts = renaming_of(tmp_path, tokenizer, "entities")
    idle = prompts.data.batch(np.arange(3))
    idle.labels.fill_(-100)
    assert all((prompts.added(idle, step).labels == -100).all() for step in range(4))


def broken_and_resumed(data, lm_folder, out_dir, monkeypatch, **chosen):
    """A run that is interrupted after four steps, and then continued."""
    interrupt_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        run(data, lm_folder, out_dir, **chosen)
    monkeypatch.undo()
    return run(data, lm_folder, out_dir, **chosen, resume=True)


def test_a_resumed_run_that_renames_has_the_weights_of_an_unbroken_one(data, lm_folder, tmp_path, monkeypatch):
    (tmp_path / "words.txt").write_text("apple\negg\ncake\nplate\ntable\n")
    chosen = {**CHOSEN, "datastore": str(data), "entities": str(tmp_path / "words.txt"), "renaming": 1.0}
    whole = run(data, lm_folder, tmp_path / "whole", **chosen)
    plain = run(data, lm_folder, tmp_path / "plain", **{**chosen, "renaming": 0.0})
    assert not same(weights(whole / "clipcap-last"), weights(plain / "clipcap-last"))
    broken = broken_and_resumed(data, lm_folder, tmp_path / "broken", monkeypatch, **chosen)
    assert same(weights(whole / "clipcap-last"), weights(broken / "clipcap-last"))


def test_a_row_reads_captions_of_other_images_drawn_anew_each_step(data, tokenizer):
    prompts = drawn_of(data, tokenizer)
    batch = prompts.data.batch(np.arange(len(prompts.data)))
    seen, without = [set() for _ in range(len(batch.given))], 0
    rows = prompts.data.features.caption_rows[batch.captions]
    for step in range(40):
        given = prompts.added(batch, step).given
        for row, (ids, mask) in enumerate(zip(given.prompt_ids, given.prompt_mask, strict=True)):
            if not mask.any():
                without += 1
                continue
            said = tokenizer.decode(ids[mask])
            lines = (
                said.removeprefix("Similar images show\n\n").removesuffix("\n\nThis image shows\n\n").split("\n\n")
            )
            assert len(lines) == 2
            seen[row] |= set(lines)
            own = prompts.data.features.captions_of(int(rows[batch.row_of == row][0]))
            assert not set(lines) & set(own)
    assert 0.2 < without / (40 * len(batch.given)) < 0.4
    assert all(len(lines) > 8 for lines in seen)


def test_what_a_row_reads_depends_on_its_step_alone(data, tokenizer):
    one, other = (drawn_of(data, tokenizer) for _ in range(2))
    whole = one.data.batch(np.arange(10))
    first, again = (prompts.added(whole, 7).given for prompts in (one, other))
    assert torch.equal(first.prompt_ids, again.prompt_ids) and torch.equal(first.prompt_mask, again.prompt_mask)
    assert not torch.equal(first.prompt_mask.sum(dim=1), one.added(whole, 8).given.prompt_mask.sum(dim=1))


def test_a_resumed_run_has_the_weights_of_an_unbroken_one(data, lm_folder, tmp_path, monkeypatch):
    chosen = {**CHOSEN, "datastore": str(data)}
    whole = run(data, lm_folder, tmp_path / "whole", **chosen)
    broken = broken_and_resumed(data, lm_folder, tmp_path / "broken", monkeypatch, **chosen)
    assert same(weights(whole / "clipcap-last"), weights(broken / "clipcap-last"))


def test_a_resumed_run_with_another_datastore_is_refused(data, lm_folder, tmp_path, monkeypatch):
    chosen = {**CHOSEN, "datastore": str(data)}
    interrupt_after(monkeypatch, 4)
    with pytest.raises(KeyboardInterrupt):
        run(data, lm_folder, tmp_path / "run", **chosen)
    monkeypatch.undo()
    other = feature_file(tmp_path / "other.pkl", GROUPS, seed=1)
    with pytest.raises(ClipcapError, match="datastore_id"):
        run(data, lm_folder, tmp_path / "run", **{**chosen, "datastore": str(other)}, resume=True)


@pytest.fixture(scope="module")
def trained(tmp_path_factory, lm_folder):
    folder = tmp_path_factory.mktemp("prompted")
    data = feature_file(folder / "f.pkl", GROUPS)
    chosen = {**CHOSEN, "datastore": str(data), "epochs": 12, "lr": 3e-3, "prompt_dropout": 0.1}
    return run(data, lm_folder, folder / "run", **chosen, val=str(data)) / "clipcap-best", data


def caption(checkpoint, vectors, **load):
    captioner = load_captioner(LoadConfig(load_pt=str(checkpoint), **load))
    found = captioner.caption(list(vectors), DecodeConfig(greedy=True, max_new_tokens=12))
    return captioner, [several[0] for several in found]


def test_checkpoint_knows_its_datastore_and_another_changes_what_is_read(trained, tmp_path):
    checkpoint, data = trained
    stored = json.loads((checkpoint / "config.json").read_text())["model"]
    assert stored["prompts"] == "captions" and stored["datastore"] == str(data) and stored["prompt_gate"] > -1
    vectors = read_features(data).rows(slice(None))
    _, own = caption(checkpoint, vectors)
    assert all(len(c.retrieved) in (0, 2) for c in own) and any(c.retrieved for c in own)
    other = feature_file(tmp_path / "other.pkl", [f"nothing but {i}" for i in range(16)], seed=3)
    captioner, swapped = caption(checkpoint, vectors, datastore=str(other), prompt_gate=-1)
    assert {one.caption for c in swapped for one in c.retrieved} <= {f"nothing but {i}" for i in range(16)}
    assert all(len(c.retrieved) == 2 for c in swapped) and captioner.prompter.counts.without == 0
    assert [c.logprob for c in own] != [c.logprob for c in swapped]
    best = [
        max(torch.cosine_similarity(vector[None], read_features(other).rows(slice(None))).tolist())
        for vector in vectors
    ]
    for c, cosine in zip(swapped, best, strict=True):
        assert c.retrieved[0].score == pytest.approx(cosine, abs=1e-5)


def test_images_of_another_world_are_captioned_as_without_a_prompt(trained, tmp_path):
    checkpoint, data = trained
    vectors = read_features(data).rows(slice(None))
    captioner, gated = caption(checkpoint, vectors, prompt_gate=0.9999)
    assert captioner.prompter.counts.without == len(vectors)
    plain = Captioner.from_pretrained(checkpoint)
    plain.prompter = None
    wanted = plain.caption(list(vectors), DecodeConfig(greedy=True, max_new_tokens=12))
    assert [c.token_ids for c in gated] == [several[0].token_ids for several in wanted]
    assert [c.logprob for c in gated] == [several[0].logprob for several in wanted]  # bit for bit


def test_an_image_that_is_like_nothing_in_another_datastore_reads_that_of_the_training(trained, tmp_path, messages):
    checkpoint, data = trained
    vectors = read_features(data).rows(slice(None))
    _, own = caption(checkpoint, vectors)
    other = feature_file(tmp_path / "other.pkl", [f"nothing but {i}" for i in range(16)], seed=3)
    captioner, swapped = caption(checkpoint, vectors, datastore=str(other), prompt_gate=0.9999)
    assert [(c.token_ids, c.retrieved) for c in swapped] == [(c.token_ids, c.retrieved) for c in own]
    counts = captioner.prompter.counts
    assert counts.otherwise == sum(bool(c.retrieved) for c in own) > 0
    assert counts.otherwise + counts.without == counts.images == len(vectors)
    report_prompts(counts)
    line = (
        f"{counts.otherwise} of {len(vectors)} images have nothing like them in --datastore, and read captions of the"
    )
    assert any(line in message for message in messages())


def test_a_batch_is_captioned_as_its_images_one_by_one(trained):
    checkpoint, data = trained
    captioner = load_captioner(LoadConfig(load_pt=str(checkpoint)))
    vectors = read_features(data).rows(slice(None))
    for how in (DecodeConfig(beam=True, max_new_tokens=10), DecodeConfig(temp=1.0, seed=1, max_new_tokens=10)):
        together = captioner.caption(list(vectors), how, batch_size=16)
        alone = captioner.caption(list(vectors), how, batch_size=1)
        assert [c.token_ids for [c] in together] == [c.token_ids for [c] in alone]


def test_prompts_that_a_captioner_has_not_learnt_are_refused(trained, data, lm_folder, tmp_path):
    checkpoint, _ = trained
    with pytest.raises(ClipcapError, match="--entities is for captioners"):
        load_captioner(LoadConfig(load_pt=str(checkpoint), entities="words.txt"))
    plain = run(data, lm_folder, tmp_path / "plain", epochs=1) / "clipcap-best"
    with pytest.raises(ClipcapError, match="--datastore is read by captioners of --prompts captions and by --rerank"):
        predict(PredictConfig.of(load_pt=str(plain), datastore=str(data), features=str(data)), [])
    with pytest.raises(ClipcapError, match="go on with --prompts captions"):
        run(data, lm_folder, tmp_path / "on", weights_dir=str(checkpoint), prefix_length=None)


def test_a_datastore_that_is_gone_is_named_and_captions_are_written_without(trained, messages):
    checkpoint, data = trained
    moved = data.rename(data.with_suffix(".moved"))
    try:
        captioner = load_captioner(LoadConfig(load_pt=str(checkpoint)))
    finally:
        moved.rename(data)
    assert captioner.prompter is None
    assert any("pass --datastore" in line for line in messages())


def test_python_swaps_the_datastore_too(trained, tmp_path):
    checkpoint, _ = trained
    other = feature_file(tmp_path / "other.pkl", [f"nothing but {i}" for i in range(16)], seed=3)
    captioner = Captioner.from_pretrained(checkpoint, datastore=other, prompt_gate=-1)
    [[found]] = captioner.caption([torch.randn(32)], DecodeConfig(greedy=True, max_new_tokens=5))
    assert all(one.caption.startswith("nothing but") for one in found.retrieved) and len(found.retrieved) == 2


def test_a_pt_of_the_original_cannot_hold_prompts(trained, tmp_path):
    with pytest.raises(ClipcapError, match="reads prompts"):
        export(str(trained[0]), tmp_path / "x.pt")
    card = (trained[0] / "README.md").read_text()
    assert f"reads captions of {trained[1]}" in card


def test_a_warm_start_states_which_prompts_are_new_to_the_checkpoint(trained, data, lm_folder, tmp_path, messages):
    checkpoint, _ = trained
    chosen = {**CHOSEN, "datastore": str(data), "prefix_length": None, "epochs": 1, "max_steps": 1}
    run(data, lm_folder, tmp_path / "more", **chosen | {"weights_dir": str(checkpoint), "prompt_captions": 1})
    assert any("it has read 2 captions of a prompt so far, here 1" in line for line in messages())
    plain = run(data, lm_folder, tmp_path / "plain", max_steps=1, epochs=1) / "clipcap-best"
    assert not any("prompt" in line for line in messages())
    run(data, lm_folder, tmp_path / "new", **chosen | {"weights_dir": str(plain)})
    assert any("it has read no prompts so far, and learns to from here on" in line for line in messages())
    with pytest.raises(ClipcapError, match=r"no room for a caption: .*: lower --prompt_captions 40"):
        run(data, lm_folder, tmp_path / "many", **chosen | {"prompt_captions": 40, "prefix_length": 4})


def test_a_run_with_prompts_is_not_resumed_without(data, lm_folder, tmp_path):
    (tmp_path / "words.txt").write_text("apple\negg\n")
    chosen = {"prompts": "captions", "datastore": str(data), "prompt_captions": 2, "max_steps": 1, "epochs": 1}
    words = {"entities": str(tmp_path / "words.txt")}
    run(data, lm_folder, tmp_path / "run", **chosen, **words)
    with pytest.raises(ClipcapError, match=r"has renaming 0\.3, this command None"):
        run(data, lm_folder, tmp_path / "run", **chosen, **words, renaming=0.0, resume=True)
    with pytest.raises(ClipcapError, match=r"has datastore_id \w+, this command None"):
        run(data, lm_folder, tmp_path / "run", max_steps=1, epochs=1, resume=True)


def test_samples_of_reward_training_are_written_behind_prompts(trained, lm_folder, tmp_path):
    checkpoint, data = trained
    chosen = {**CHOSEN, "datastore": str(data), "weights_dir": str(checkpoint), "prefix_length": None, "epochs": 1}
    out = run(data, lm_folder, tmp_path / "reward", **chosen, objective="reward", samples=2, val=str(data))
    assert not same(weights(out / "clipcap-last"), weights(checkpoint))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"prompts": "captions"}, "needs --datastore"),
        ({"prompts": "entities"}, "needs --entities"),
        ({"datastore": "x"}, "belongs to --prompts captions"),
        ({"entities": "x"}, "belongs to --prompts entities"),
        ({"renaming": 0.5}, "add that list"),
        ({"prompts": "captions", "datastore": "x", "recipe": "reference"}, "does not go with --recipe reference"),
    ],
)
def test_options_at_odds_are_refused_in_a_line(data, lm_folder, tmp_path, changes, line):
    with pytest.raises(ClipcapError, match=line) as error:
        run(data, lm_folder, tmp_path / "run", **changes)
    assert "\n" not in str(error.value)


def test_words_that_late_captions_alone_name_will_do_and_the_run_states_the_renaming(tmp_path, tokenizer):
    groups = [*[("nothing of the kind",)] * 1500, *[("an apple on a plate",)] * 1500]
    data = feature_file(tmp_path / "f.pkl", groups, meta=FeatureMeta(encoder="demo"), dim=128)
    (tmp_path / "words.txt").write_text("apple\negg\n")
    entities = {"prompts": "entities", "entities": str(tmp_path / "words.txt")}
    note = open_prompting(PromptConfig(**entities), read_features(data), "cpu").note
    assert "50% of the captions name; in 30% of the examples one is renamed" in note
    assert "none is renamed" in open_prompting(PromptConfig(**entities, renaming=0), read_features(data), "cpu").note
    (tmp_path / "words.txt").write_text("banana\negg\n")
    with pytest.raises(ClipcapError, match="of 1,000 captions none names one of its 2 words"):
        open_prompting(PromptConfig(**entities), read_features(data), "cpu")


def test_an_encoder_without_a_text_tower_cannot_name_words(tmp_path):
    """Found out before the training, and not at the end of its first epoch."""
    network = f"hf:{vision_tower(tmp_path / 'tower', 'resnet')}"
    data = feature_file(tmp_path / "f.pkl", ["an apple"] * 3, meta=FeatureMeta(encoder=network), dim=64)
    (tmp_path / "words.txt").write_text("apple\n")
    with pytest.raises(ClipcapError, match="train one for its features by `clipcap contrastive features`"):
        open_prompting(
            PromptConfig(prompts="entities", entities=str(tmp_path / "words.txt")), read_features(data), "cpu"
        )


def test_named_words_are_those_of_the_captions(data):
    source = NamedWords(read_features(data), Entities(["apple", "egg", "cake"]), torch.eye(3), 100.0)
    rng = np.random.default_rng(0)
    drawn = [source.drawn(0, rng) for _ in range(50)]
    assert {word for words in drawn for word in words} == {"apple"}
    assert 0.4 < sum(map(bool, drawn)) / 50 < 0.8


def test_a_second_encoder_retrieves_by_the_photos_themselves(clip_file, lm_folder, tmp_path):
    photos = draw_photos(tmp_path / "photos", 12)
    encoders = [str(clip_file), str(make_clip(tmp_path / "other.pt", embed_dim=48, seed=5))]
    for number, name in enumerate(encoders):
        encoder = load_encoder(name, "cpu")
        write_features(
            tmp_path / f"{number}.pkl", embeddings=embed_pictures(encoder, photos),
            image_ids=[p.stem for p in photos],
            image_paths=[str(p) for p in photos], captions=[(f"picture {i}",) for i in range(12)],
            meta=FeatureMeta(encoder=name, encoder_weights_id=encoder.weights_id),
        )  # fmt: skip
    chosen = {**CHOSEN, "datastore": str(tmp_path / "1.pkl"), "retrieve_with": encoders[1], "epochs": 1}
    checkpoint = run(tmp_path / "0.pkl", lm_folder, tmp_path / "run", **chosen) / "clipcap-best"
    captioner = load_captioner(LoadConfig(load_pt=str(checkpoint), prompt_gate=-1))
    how = DecodeConfig(greedy=True, max_new_tokens=5)
    [[found]] = captioner.caption([photos[3]], how)
    assert len(found.retrieved) == 2
    assert "picture 3" not in [one.caption for one in found.retrieved]
    [[by_row]] = [several for _, several in captioner.caption_rows(read_features(tmp_path / "0.pkl"), [3], how)]
    assert by_row[0].retrieved == found.retrieved
    with pytest.raises(ClipcapError, match=r"--retrieve_with .* looks at the photos themselves"):
        captioner.caption([torch.randn(64)], how)
