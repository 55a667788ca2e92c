"""Gradients of batches in few shapes equal those of the batches as they come; on a GPU graphs compute them."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import CAPTIONS
from support.gpu import needs_gpu
from support.small import feature_file

from clipcap.features.files import read_features
from clipcap.models.base import IGNORE
from clipcap.training.dataset import BatchShare, CaptionDataset
from clipcap.training.gradients import Gradients, GraphedGradients, make_gradients


@pytest.fixture(params=[True, False], ids=["shared prefix", "a row each"])
def batches(request, tmp_path, tokenizer):
    captions = [(c, c + " again") for c in CAPTIONS]
    features = read_features(feature_file(tmp_path / "features.pkl", captions))
    data = CaptionDataset(features, tokenizer, 20, share_prefix=request.param)
    return [batch for window in data.windows(3, 0, 0, BatchShare(0, 1, 3)) for batch in window]


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state()
    yield Accelerator(cpu=not torch.cuda.is_available())
    AcceleratorState._reset_state()


def gradients_of(model, how, batch):
    """Loss and gradients, one after the other."""
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.zero_()
    loss = how.add(batch, 0.5, last=True)
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


@pytest.mark.parametrize("options", [{}, {"tune": "none"}, {"mapping_type": "transformer"}], ids=str)
def test_rounded_batches_have_the_loss_and_the_gradients_of_the_batches(batches, make_model, options):
    model = make_model(**options)
    shapes = set()
    for batch in batches:
        found = []
        for inputs in (
            batch.inputs(torch.device("cpu")),
            {**batch.rounded().inputs(torch.device("cpu")), "everywhere": True},
        ):
            loss = model(**inputs)
            parameters = [p for p in model.parameters() if p.requires_grad]
            found.append((loss, torch.cat([g.flatten() for g in torch.autograd.grad(loss, parameters)])))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-4)
        shapes.add(tuple(batch.rounded().labels.shape))
    assert all(rows % 4 == 0 and columns % 8 == 0 for rows, columns in shapes)
    assert len(shapes) < len({tuple(batch.labels.shape) for batch in batches})


def test_rounded_batches_keep_the_weights_of_their_tokens(batches, make_model):
    model, batch = make_model(), batches[0]
    batch.weights = torch.rand(batch.labels.shape, generator=torch.Generator().manual_seed(0))
    rounded = batch.rounded()
    assert (rounded.labels != IGNORE).sum() == (batch.labels != IGNORE).sum()
    with torch.no_grad():
        loss = model(**batch.inputs(torch.device("cpu")))
        torch.testing.assert_close(model(**rounded.inputs(torch.device("cpu")), everywhere=True), loss)


def test_columns_are_added_only_where_the_language_model_has_positions_for_them(tmp_path, tokenizer):
    features = read_features(feature_file(tmp_path / "features.pkl", [("a plate " * 30,)] * 4))
    data = CaptionDataset(features, tokenizer, 13, share_prefix=False)
    assert data.batch(np.arange(3)).rounded().labels.shape == (4, 13)
    data = CaptionDataset(features, tokenizer, 21, share_prefix=False)
    assert data.batch(np.arange(3)).rounded().labels.shape == (4, 21)


def test_gradients_are_kept_in_their_place_only_for_graphs(batches, make_model, accelerator):
    model = make_model()
    graphed, optimizer = GraphedGradients(model, accelerator), torch.optim.SGD(model.parameters(), lr=0.1)
    graphed.add(batches[0], 1.0, last=True)
    graphed.clear(optimizer)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_without_a_gpu_gradients_are_computed_as_ever(make_model, accelerator):
    if accelerator.device.type == "cpu":
        assert type(make_gradients(make_model(), accelerator)) is Gradients


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is captured here cannot be")
def test_a_run_goes_on_where_no_graph_can_be_captured(batches, make_model, accelerator):
    model = make_model()
    graphed, plain = GraphedGradients(model, accelerator), Gradients(model, accelerator)
    for _ in range(3):
        for batch in batches:
            loss, gradients = gradients_of(model, graphed, batch)
            torch.testing.assert_close((loss, gradients), gradients_of(model, plain, batch), rtol=1e-4, atol=1e-4)
    assert not graphed.works and not graphed.graphs


@needs_gpu
def test_graphs_give_the_loss_and_the_gradients_of_eager_steps(batches, make_model, accelerator):
    model = copy.deepcopy(make_model()).cuda()
    graphed, plain = make_gradients(model, accelerator), Gradients(model, accelerator)
    for _ in range(3):
        for batch in batches:
            found = gradients_of(model, graphed, batch)
            torch.testing.assert_close(found, gradients_of(model, plain, batch), rtol=1e-3, atol=1e-3)
    assert graphed.works and graphed.graphs


@needs_gpu
def test_dropout_within_a_graph_follows_the_seed_of_the_step(batches, make_model, accelerator):
    model = copy.deepcopy(make_model()).cuda().train()
    graphed, losses = make_gradients(model, accelerator), []
    for seed in (5, 6, 1, 1, 2):  # the first is eager, the second captures
        torch.manual_seed(seed)
        losses.append(gradients_of(model, graphed, batches[0])[0])
    assert losses[2] == losses[3] != losses[4]
