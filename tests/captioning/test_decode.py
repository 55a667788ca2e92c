import math
from dataclasses import replace

import pytest
import torch
from support import oracle

from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import decode
from clipcap.errors import ClipcapError


@pytest.fixture(scope="module")
def embeddings():
    return torch.randn(6, 32, generator=torch.Generator().manual_seed(3))


def stop_word(model, tokenizer, embeddings) -> str:
    """A token that some captions come to within a few steps, and others do not."""
    stop = [tokenizer.eos_token_id]
    written = [oracle.beam_search(model, e, 3, stop, 12)[0][0] for e in embeddings]
    middle = [set(tokens[1:8]) for tokens in written]
    counts = {t: sum(t in tokens for tokens in middle) for tokens in middle for t in tokens}
    return tokenizer.decode([max((t for t in counts if counts[t] < len(middle)), key=counts.get)])


def ids(results):
    return [[caption.token_ids for caption in captions] for captions in results]


@pytest.mark.parametrize("beams", [1, 2, 5])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_cached_batched_beam_search_equals_the_plain_search_of_each_image(
    make_model, tokenizer, embeddings, beams, temperature
):
    model = make_model()
    word = stop_word(model, tokenizer, embeddings)
    config = DecodeConfig(
        beam=True, beam_size=beams, num_captions=beams, temp=temperature, max_new_tokens=12, stop_token=word
    )
    stop = [tokenizer.eos_token_id, *tokenizer(word)["input_ids"]]
    lengths = set()
    for found, embedding in zip(decode(model, tokenizer, embeddings, config), embeddings):
        expected = oracle.beam_search(model, embedding, beams, stop, 12, temperature)
        assert [c.token_ids for c in found] == [tokens for tokens, _ in expected]
        assert [c.score for c in found] == pytest.approx([score for _, score in expected], abs=1e-4)
        lengths |= {len(c.token_ids) for c in found}
    assert len(lengths) > 1  # some stopped early, others did not


def test_images_that_finish_early_leave_the_batch_unharmed(make_model, tokenizer, embeddings):
    model = make_model(seed=5)
    word = stop_word(model, tokenizer, embeddings)
    config = DecodeConfig(beam=True, beam_size=3, num_captions=3, max_new_tokens=10, stop_token=word)
    together = ids(decode(model, tokenizer, embeddings, config))
    alone = [ids(decode(model, tokenizer, e[None], config))[0] for e in embeddings]
    assert together == alone


def test_beam_of_one_equals_greedy(make_model, tokenizer, embeddings):
    model = make_model()
    beam = decode(model, tokenizer, embeddings, DecodeConfig(beam=True, beam_size=1, max_new_tokens=10))
    greedy = decode(model, tokenizer, embeddings, DecodeConfig(greedy=True, max_new_tokens=10))
    assert ids(beam) == ids(greedy)


def test_greedy_and_temperature_zero_equal_the_plain_argmax(make_model, tokenizer, embeddings):
    model = make_model()
    expected = [[oracle.greedy(model, e, [tokenizer.eos_token_id], 10)] for e in embeddings]
    for config in (DecodeConfig(greedy=True, max_new_tokens=10), DecodeConfig(temp=0, max_new_tokens=10)):
        assert ids(decode(model, tokenizer, embeddings, config)) == expected


def test_seed_repeats_samples_and_another_seed_does_not(make_model, tokenizer, embeddings):
    model = make_model()
    draw = lambda seed: ids(decode(model, tokenizer, embeddings, DecodeConfig(top_p=1, seed=seed, max_new_tokens=10)))  # noqa: E731
    assert draw(1) == draw(1) != draw(2)
    assert draw(None) != draw(None)


def test_samples_do_not_depend_on_the_batch(make_model, tokenizer, embeddings):
    model = make_model()
    config = DecodeConfig(top_p=0.9, seed=4, num_captions=2, max_new_tokens=10)
    together = ids(decode(model, tokenizer, embeddings, config))
    halves = ids(decode(model, tokenizer, embeddings[:2], config))
    halves += ids(decode(model, tokenizer, embeddings[2:], config, numbers=range(2, 6)))
    assert together == halves
    assert ids(decode(model, tokenizer, embeddings[[5, 3]], config, numbers=[5, 3])) == [together[5], together[3]]


def test_sampling_follows_the_distribution(make_model, tokenizer, embeddings):
    model = make_model()
    temperature, n = 1.7, 4000
    config = DecodeConfig(top_p=1, temp=temperature, seed=0, num_captions=n, max_new_tokens=1)
    drawn = [c.token_ids[0] for c in decode(model, tokenizer, embeddings[:1], config)[0]]
    expected = oracle.log_probs(model, embeddings[0], [], temperature).exp()
    for token in expected.argsort(descending=True)[:5].tolist():
        p = expected[token].item()
        assert abs(drawn.count(token) / n - p) < 4 * math.sqrt(p * (1 - p) / n) + 1e-3


def test_top_k_and_top_p_cut_the_tail(make_model, tokenizer, embeddings):
    model = make_model()
    probability, order = oracle.log_probs(model, embeddings[0], []).exp().sort(descending=True)
    nucleus = int((probability.cumsum(0) < 0.5).sum()) + 1  # smallest set that reaches 0.5
    for options, size in (({"top_k": 3, "top_p": 1}, 3), ({"top_p": 0.5}, nucleus), ({"top_p": 0.0}, 1)):
        config = DecodeConfig(**options, seed=0, num_captions=500, max_new_tokens=1)
        drawn = {c.token_ids[0] for c in decode(model, tokenizer, embeddings[:1], config)[0]}
        assert drawn <= set(order[:size].tolist())
        assert len(drawn) > size // 3


def test_logprob_is_the_mean_at_temperature_one(make_model, tokenizer, embeddings):
    model = make_model()
    for config in (
        DecodeConfig(beam=True, temp=0.5, num_captions=3, max_new_tokens=6),
        DecodeConfig(temp=2.0, seed=0, num_captions=3, max_new_tokens=6, repetition_penalty=1.5),
    ):
        for caption in decode(model, tokenizer, embeddings[:1], config)[0]:
            tokens = caption.token_ids
            steps = [oracle.log_probs(model, embeddings[0], tokens[:i])[t].item() for i, t in enumerate(tokens)]
            assert caption.logprob == pytest.approx(sum(steps) / len(steps), abs=1e-4)


def test_prompt_starts_every_caption_and_steers_it(make_model, tokenizer, embeddings):
    model = make_model()
    config = DecodeConfig(beam=True, beam_size=2, prompt="a red apple", max_new_tokens=5)
    prompt = tokenizer("a red apple")["input_ids"]
    for captions, embedding in zip(decode(model, tokenizer, embeddings, config), embeddings):
        assert captions[0].text.startswith("a red apple")
        following = oracle.log_probs(model, embedding, prompt)
        assert following[captions[0].token_ids[0]] >= following.topk(2).values[1]


def test_min_new_tokens_keeps_captions_from_stopping(make_model, tokenizer, embeddings):
    model = make_model()
    for how in ({"beam": True, "beam_size": 1}, {"greedy": True}):
        config = DecodeConfig(**how, max_new_tokens=9)
        free = decode(model, tokenizer, embeddings[:1], config)[0][0].token_ids
        config = replace(config, stop_token=tokenizer.decode([free[2]]))  # it would stop there
        stopped = decode(model, tokenizer, embeddings[:1], config)[0][0].token_ids
        held = decode(model, tokenizer, embeddings[:1], replace(config, min_new_tokens=6))[0][0].token_ids
        assert len(stopped) <= 3
        assert len(held) >= 6 and free[2] not in held[:5]


def test_strong_repetition_penalty_writes_no_token_twice(make_model, tokenizer, embeddings):
    model = make_model()
    for how in ({"beam": True}, {"greedy": True}):
        config = DecodeConfig(**how, repetition_penalty=1e6, max_new_tokens=10)
        for captions in decode(model, tokenizer, embeddings, config):
            assert len(set(captions[0].token_ids)) == len(captions[0].token_ids)


def test_caption_longer_than_the_language_model_is_refused(make_model, tokenizer, embeddings):
    with pytest.raises(ClipcapError, match=r"--max_new_tokens 125 does not fit.*128 positions.*at most 124"):
        decode(make_model(), tokenizer, embeddings, DecodeConfig(max_new_tokens=125))


def test_captions_of_no_given_length_are_as_long_as_there_is_room(make_model, tokenizer, embeddings):
    model = make_model()
    prompt = " ".join(["apple"] * 70)
    room = 128 - model.longest_prefix - len(tokenizer(prompt)["input_ids"])
    assert room < DecodeConfig().longest
    for [caption] in decode(
        model, tokenizer, embeddings, DecodeConfig(greedy=True, prompt=prompt, min_new_tokens=room)
    ):
        assert len(caption.token_ids) == room
    with pytest.raises(ClipcapError, match="at most 0"):
        decode(model, tokenizer, embeddings, DecodeConfig(prompt=" ".join(["apple"] * 128)))


def test_stop_token_of_several_tokens_is_refused(make_model, tokenizer, embeddings):
    with pytest.raises(ClipcapError, match="it must be one"):
        decode(make_model(), tokenizer, embeddings, DecodeConfig(stop_token="zebra crossing"))


def test_more_captions_than_beams_is_refused():
    with pytest.raises(ClipcapError, match=r"--num_captions 6 is more than --beam_size 5"):
        DecodeConfig(beam=True, beam_size=5, num_captions=6)


def test_beams_are_as_many_as_captions_unless_their_number_is_given():
    assert DecodeConfig(num_captions=7).resolved().beam_size == 7
    assert DecodeConfig(num_captions=2).resolved().beam_size == 5


@pytest.mark.parametrize(
    ("options", "searches"),
    [
        ({}, True), ({"num_captions": 3}, True), ({"beam": True, "temp": 0.5, "seed": 1}, True),
        ({"recipe": "reference", "beam": True}, True), ({"recipe": "reference"}, False), ({"greedy": True}, False),
        ({"temp": 1.0}, False), ({"top_p": 0.8}, False), ({"top_k": 0}, False), ({"seed": 0}, False),
        ({"beam": False}, False),
    ],
)  # fmt: skip
def test_captions_are_searched_for_unless_an_option_of_sampling_is_given(options, searches):
    assert DecodeConfig(**options).resolved().beam is searches


def test_beam_and_greedy_contradict_each_other():
    with pytest.raises(ClipcapError, match="--beam and --greedy are two ways to decode"):
        DecodeConfig(beam=True, greedy=True)


def test_beam_search_counts_a_temperature_of_nought_as_one(make_model, tokenizer, embeddings):
    model, found = make_model(), {}
    for temp in (0, 1, 0.3):
        config = DecodeConfig(beam=True, temp=temp, num_captions=5, max_new_tokens=10)
        found[temp] = [[c.score for c in captions] for captions in decode(model, tokenizer, embeddings, config)]
    assert found[0] == found[1] != found[0.3]


@pytest.mark.parametrize("how", [{"greedy": True}, {"temp": 0.0}, {"recipe": "reference"}])
def test_greedy_decoding_writes_one_caption(make_model, tokenizer, embeddings, how):
    with pytest.raises(ClipcapError, match="writes one caption: --num_captions and --rerank need --beam or sampling"):
        decode(make_model(), tokenizer, embeddings, DecodeConfig(num_captions=2, **how))


def test_more_beams_than_tokens_is_refused(make_model, tokenizer, embeddings):
    with pytest.raises(ClipcapError, match=r"--beam_size 100000 is more than the language model's \d+ tokens"):
        decode(make_model(), tokenizer, embeddings, DecodeConfig(beam=True, beam_size=100_000))
