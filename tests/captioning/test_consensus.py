"""Captions ordered by what is said of similar images."""

from __future__ import annotations

import pytest
import torch
from support.small import META, feature_file

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import CANDIDATES, DecodeConfig
from clipcap.captioning.consensus import NEIGHBOURS, Consensus
from clipcap.captioning.decode import Caption
from clipcap.captioning.prompting import check_datastore
from clipcap.errors import ClipcapError
from clipcap.features.files import read_features, write_features
from clipcap.prompts.datastore import Datastore

DOGS = [f"a brown dog runs over grass number {n}" for n in range(NEIGHBOURS + 1)]
BOATS = [f"two boats lie in a harbour at dusk {n}" for n in range(NEIGHBOURS + 1)]
SAID = ["two boats lie in a harbour", "a brown dog runs over grass", "a man on a horse"]


@pytest.fixture
def store(tmp_path) -> Datastore:
    """Pictures of dogs along one axis, of boats along another."""
    noise = 0.1 * torch.randn(len(DOGS + BOATS), 32, generator=torch.Generator().manual_seed(0))
    rows = noise + torch.eye(2, 32).repeat_interleave(len(DOGS), dim=0)
    write_features(
        tmp_path / "store.pkl", embeddings=rows, image_ids=[str(i) for i in range(len(rows))],
        image_paths=[None] * len(rows), captions=[(text,) for text in DOGS + BOATS], meta=META,
    )  # fmt: skip
    return Datastore.open(tmp_path / "store.pkl", META.encoder, META.encoder_weights_id, 32, "this test")


def captions(texts, scores=None) -> list[Caption]:
    return [Caption(text, [], score, score) for text, score in zip(texts, scores or [0.0] * len(texts))]


def test_the_caption_nearest_to_those_of_similar_images_comes_first(store):
    found = Consensus(store).order(torch.eye(2, 32), [captions(SAID), captions(SAID)])
    assert [several[0].text for several in found] == [SAID[1], SAID[0]]
    assert [sorted(c.text for c in several) for several in found] == [sorted(SAID)] * 2


def test_captions_that_nothing_tells_apart_stay_in_order(store):
    same = captions(["nothing of this kind", "something else"])
    assert Consensus(store).order(torch.eye(1, 32), [same]) == [same]
    assert Consensus(store).order(torch.eye(1, 32), [captions(SAID[:1])]) == [captions(SAID[:1])]


def test_what_is_said_of_nearer_images_counts_more(tmp_path):
    angles = torch.linspace(0.1, 1.2, NEIGHBOURS)  # the nearest third shows boats, the others dogs
    said = BOATS[: NEIGHBOURS // 3] + DOGS[: NEIGHBOURS - NEIGHBOURS // 3]
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    write_features(
        tmp_path / "store.pkl", embeddings=rows, image_ids=[str(i) for i in range(NEIGHBOURS)],
        image_paths=[None] * NEIGHBOURS, captions=[(text,) for text in said], meta=META,
    )  # fmt: skip
    store = Datastore.open(tmp_path / "store.pkl", META.encoder, META.encoder_weights_id, 2, "this test")
    near, far = (torch.tensor([[angle, 1 - angle]]) for angle in (1.0, 0.0))
    firsts = [Consensus(store).order(image, [captions(SAID)])[0][0].text for image in (near, far)]
    assert firsts == [SAID[0], SAID[1]]


def test_likelier_captions_come_first_among_those_that_neighbours_say_alike(store):
    texts = ["a brown dog runs over grass", "a brown dog runs over grass."]
    [found] = Consensus(store).order(torch.eye(1, 32), [captions(texts, [-1.2, -0.9])])
    assert [caption.text for caption in found] == texts[::-1]
    unlikely = captions(SAID[1:], [-3.0, -0.5])  # what neighbours say counts more
    assert Consensus(store).order(torch.eye(1, 32), [unlikely])[0][0].text == SAID[1]


def test_captions_of_the_same_words_stand_behind_the_others(store):
    texts = ["a brown dog runs over grass", "A brown dog runs over grass.", "a man on a horse"]
    [found] = Consensus(store).order(torch.eye(1, 32), [captions(texts)])
    assert [caption.text for caption in found] == [texts[0], texts[2], texts[1]]


def test_likelihood_is_that_of_the_model_whatever_the_temperature_of_the_search(store):
    texts = ["a brown dog runs over grass", "a brown dog runs over grass."]
    several = [Caption(text, [], score, logprob) for text, score, logprob in zip(texts, (-0.1, -9.0), (-2.0, -1.0))]
    [found] = Consensus(store).order(torch.eye(1, 32), [several])
    assert found[0].text == texts[1]


def test_captions_without_blanks_between_words_are_compared_by_character(tmp_path):
    said = ["一只棕色的狗在草地上奔跑", "两艘船停在黄昏的港口"] * 20
    rows = torch.eye(2, 32).repeat(20, 1) + 0.1 * torch.randn(40, 32, generator=torch.Generator().manual_seed(0))
    write_features(
        tmp_path / "store.pkl", embeddings=rows, image_ids=[str(i) for i in range(40)],
        image_paths=[None] * 40, captions=[(text,) for text in said], meta=META,
    )  # fmt: skip
    store = Datastore.open(tmp_path / "store.pkl", META.encoder, META.encoder_weights_id, 32, "this test")
    several = captions(["一个男人骑着马", "两艘船在港口", "一只狗在草地上跑"])
    found = Consensus(store).order(torch.eye(2, 32), [several, several])
    assert [one[0].text for one in found] == [several[2].text, several[1].text]


def test_an_image_without_direction_keeps_its_order_and_the_others_have_theirs(store):
    given = torch.cat([torch.zeros(1, 32), torch.eye(2, 32)])
    found = Consensus(store).order(given, [captions(SAID)] * 3)
    assert [one[0].text for one in found] == [SAID[0], SAID[1], SAID[0]]
    assert Consensus(store).order(given[:1], [captions(SAID)]) == [captions(SAID)]


def test_one_candidate_is_refused():
    for options in ({"beam_size": 1}, {"top_k": 1}):
        with pytest.raises(ClipcapError, match="--rerank consensus chooses among several captions"):
            DecodeConfig(rerank="consensus", **options)


def test_captioner_chooses_among_its_beams(make_model, tokenizer, store, tmp_path):
    model = make_model(encoder=META.encoder)
    captioner = Captioner(model, tokenizer)
    captioner.consensus = Consensus(store)
    vectors = torch.randn(6, 32, generator=torch.Generator().manual_seed(3))
    how = {"beam": True, "max_new_tokens": 8}
    beams = captioner.caption(list(vectors), DecodeConfig(**how, num_captions=CANDIDATES))
    chosen = captioner.caption(list(vectors), DecodeConfig(**how, rerank="consensus"))
    alone = captioner.caption(list(vectors), DecodeConfig(**how, rerank="consensus"), batch_size=1)
    assert [c.text for [c] in chosen] == [c.text for [c] in alone]
    expected = captioner.consensus.order(vectors, beams)
    assert [c.text for [c] in chosen] == [several[0].text for several in expected]


def test_consensus_without_a_datastore_and_one_without_use_are_refused(make_model, tokenizer):
    with pytest.raises(ClipcapError, match="name them by --datastore"):
        Captioner(make_model(), tokenizer).caption([torch.randn(32)], DecodeConfig(beam=True, rerank="consensus"))
    with pytest.raises(ClipcapError, match="add that, or leave it out"):
        check_datastore("clip", "x.pkl", "none")
    check_datastore("consensus", "x.pkl", "none")
    check_datastore("none", "x.pkl", "captions")


def test_a_checkpoint_without_prompts_takes_a_datastore_to_choose_by(make_model, tokenizer, tmp_path):
    data = feature_file(tmp_path / "d.pkl", DOGS)
    folder = Captioner(make_model(encoder=META.encoder), tokenizer).save_pretrained(tmp_path / "checkpoint")
    captioner = Captioner.from_pretrained(folder, datastore=data)
    assert captioner.prompter is None and captioner.consensus is not None
    [[best]] = captioner.caption(list(read_features(data).rows([0])), DecodeConfig(beam=True, rerank="consensus"))
    assert not best.retrieved


def test_captions_that_a_captioner_reads_are_those_it_chooses_by(make_model, tokenizer, tmp_path):
    data = feature_file(tmp_path / "d.pkl", DOGS)
    prompts = {"prompts": "captions", "prompt_captions": 1, "prompt_tokens": 60, "datastore": str(data)}
    model = make_model(encoder=META.encoder, **prompts)
    folder = Captioner(model, tokenizer).save_pretrained(tmp_path / "checkpoint")
    captioner = Captioner.from_pretrained(folder)
    assert captioner.consensus is not None and captioner.prompter is not None
    how = DecodeConfig(beam=True, rerank="consensus", max_new_tokens=8)
    [[best]] = captioner.caption([torch.randn(32)], how)
    assert len(best.retrieved) == 1


def test_a_gate_without_captions_to_read_is_refused(make_model, tokenizer, tmp_path):
    folder = Captioner(make_model(encoder=META.encoder), tokenizer).save_pretrained(tmp_path / "checkpoint")
    with pytest.raises(ClipcapError, match="--prompt_gate is for captioners"):
        Captioner.from_pretrained(folder, prompt_gate=0.5)
