"""The plain baselines give the numbers of ours, and the counted arithmetic is what is computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from support.small import feature_file
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.__main__ import rows_of
from benchmarks.measure import peak_gib
from benchmarks.plain import PlainTraining
from benchmarks.speed.train.arithmetic import plain_flops, step_flops
from clipcap.features.files import read_features
from clipcap.models.base import IGNORE
from clipcap.training.dataset import CaptionDataset

# Of one length each, so that nothing is padded and what must be computed is what is computed.
CAPTIONS = [("a red apple on a plate", "two fried eggs on a plate"), ("three cookies and a tea", "a bowl of soup.")]


@pytest.fixture(scope="module")
def features(tmp_path_factory):
    return read_features(feature_file(tmp_path_factory.mktemp("data") / "f.pkl", CAPTIONS))


@pytest.mark.parametrize("mapping_type", ["mlp", "transformer"])
@pytest.mark.parametrize("tune", ["full", "none"])
def test_plain_training_has_the_loss_and_the_mapper_gradients_of_ours(
    make_model, features, tokenizer, mapping_type, tune
):
    model = make_model(mapping_type=mapping_type, tune=tune)
    data = CaptionDataset(features, tokenizer, 100, reference=True)
    plain = PlainTraining(data, model.mapper, model.lm, tuned=tune == "full")
    plain.lm.eval()
    batch = data.batch(np.arange(4))
    ours = model(**batch.inputs(torch.device("cpu"))) / (batch.labels != IGNORE).sum()
    theirs = plain.loss(np.arange(4))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    ours.backward(), theirs.backward()
    for one, other in zip(model.mapper.parameters(), plain.mapper.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-4, atol=1e-5)
    assert all(p.grad is not None for p in plain.lm.parameters())  # as in the original, frozen or not


def test_a_plain_step_updates_what_is_trained_alone(make_model, features, tokenizer):
    model = make_model(tune="none")
    data = CaptionDataset(features, tokenizer, 100, reference=True)
    plain = PlainTraining(data, model.mapper, model.lm, tuned=False)
    plain.step(np.arange(4))
    changed = [not torch.equal(a, b) for a, b in zip(plain.mapper.parameters(), model.mapper.parameters())]
    assert all(changed)
    assert all(torch.equal(a, b) for a, b in zip(plain.lm.parameters(), model.lm.parameters()))


@pytest.mark.parametrize("mapping_type", ["mlp", "transformer"])
@pytest.mark.parametrize("tune", ["full", "none"])
def test_counted_arithmetic_is_what_a_step_computes(make_model, features, tokenizer, mapping_type, tune):
    model = make_model(mapping_type=mapping_type, tune=tune, prefix_length=24, prefix_length_clip=24)
    model.lm.set_attn_implementation("eager")  # a fused one may go uncounted: so in the mapper too, below
    data = CaptionDataset(features, tokenizer, 100)
    captions = np.array([0])
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model(**data.batch(captions).inputs(torch.device("cpu"))).backward()
    needed = step_flops(model.config, model.lm.config, [data.lengths[captions].tolist()])
    computed = counter.get_total_flops()
    # Attention is counted where it may look, and computed everywhere.
    assert 0.9 * computed < needed < 1.05 * computed


@pytest.mark.parametrize("mapping_type", ["mlp", "transformer"])
def test_counted_arithmetic_of_the_plain_baseline_is_what_it_computes(make_model, features, tokenizer, mapping_type):
    model = make_model(mapping_type=mapping_type, tune="none", prefix_length=24, prefix_length_clip=24)
    model.lm.set_attn_implementation("eager")
    data = CaptionDataset(features, tokenizer, 100, reference=True)
    plain = PlainTraining(data, model.mapper, model.lm, tuned=False)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        plain.loss(np.arange(4)).backward()
    counted = plain_flops(model.config, model.lm.config, 4, plain.longest)
    assert counter.get_total_flops() == pytest.approx(counted, rel=0.02)


def test_the_peak_of_a_process_is_not_that_of_the_one_that_starts_it():
    assert bytearray(1 << 29)
    assert 0 < peak_gib("platform") < 0.25


def test_a_benchmark_that_fails_is_a_line_and_the_others_go_on(capsys):
    assert rows_of("no_such_one") == []
    assert capsys.readouterr().out.startswith(
        "no_such_one: failed: ModuleNotFoundError: No module named 'benchmarks.speed.no"
    )
