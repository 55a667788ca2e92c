"""What a step learns from: cross-entropy is the unweighted path, and weights multiply each token's share."""

from __future__ import annotations

import itertools

import pytest
import torch
from conftest import CAPTIONS
from support.small import feature_file

from clipcap.features.files import read_features
from clipcap.models.base import IGNORE
from clipcap.models.kernels.switch import fast
from clipcap.training.dataset import BatchShare, CaptionDataset
from clipcap.training.objective import CrossEntropy, Steps


@pytest.fixture
def dataset(tmp_path, tokenizer):
    captions = [(c, c + " again") for c in CAPTIONS]
    features = read_features(feature_file(tmp_path / "features.pkl", captions))
    return CaptionDataset(features, tokenizer, 20, share_prefix=True)


def test_cross_entropy_gives_the_windows_of_the_data_without_weights(dataset):
    parts = BatchShare(0, 1, 4)
    objective = CrossEntropy(Steps(dataset, 8, 5, parts))
    assert objective.steps_per_epoch() == dataset.count_steps(8)
    expected = list(dataset.windows(8, 1, 5, parts, 1))
    for window, wanted in zip(objective.windows(1, 1), expected, strict=True):
        for batch, other in zip(window, wanted, strict=True):
            ours, theirs = (b.inputs(torch.device("cpu")) for b in (batch, other))
            assert "weights" not in ours and ours.keys() == theirs.keys()
            assert torch.equal(ours.pop("given").vectors, theirs.pop("given").vectors)
            assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_weights_multiply_each_tokens_share_of_loss_and_gradient(dataset, make_model):
    model = make_model(clip_dim=32, tune="full")
    batch = next(iter(dataset.windows(8, 0, 0, BatchShare(0, 1, 8))))[0]
    inputs = batch.inputs(torch.device("cpu"))
    logits_of = {k: v for k, v in inputs.items() if k not in ("labels", "positions")}
    weights = torch.randn(inputs["labels"].shape, generator=torch.Generator().manual_seed(0))
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = model(**inputs, weights=weights)
    counted = inputs["labels"] != IGNORE
    one_by_one = []
    for row, positions in zip(range(len(counted)), inputs["positions"]):
        begins = [*torch.nonzero((positions == 0) & counted[row]).flatten().tolist(), int(counted[row].sum())]
        for first, last in itertools.pairwise(begins):
            ids = inputs["input_ids"][row : row + 1, first:last]
            logits = model(logits_of["given"][row : row + 1], ids)[0]
            picked = logits.log_softmax(dim=-1).gather(1, ids[0, :, None])[:, 0]
            one_by_one.append(-(weights[row, first:last] * picked).sum())
    plain = torch.stack(one_by_one).sum()
    torch.testing.assert_close(loss, plain, rtol=1e-4, atol=1e-3)
    for ours, theirs in zip(torch.autograd.grad(loss, parameters), torch.autograd.grad(plain, parameters)):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)
    ones = model(**inputs, weights=torch.ones_like(weights))
    torch.testing.assert_close(ones, model(**inputs))
    assert fast()
