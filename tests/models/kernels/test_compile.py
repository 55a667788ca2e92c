"""--compile changes how a loss is computed: not the loss, not the checkpoint, not how a run goes on.

The code is traced and differentiated as in a real run, and then run as it is: what is left out is the minute that the
C++ compiler takes.
"""

from __future__ import annotations

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from conftest import CAPTIONS
from support.launched import forked_in_two
from support.small import feature_file, flags, options, run, same, weights

from clipcap.errors import ClipcapError
from clipcap.features.files import read_features
from clipcap.models.kernels.compile import compile_loss
from clipcap.models.language_model import checkpoint_layers
from clipcap.training.caption_task import CaptionTask
from clipcap.training.dataset import CaptionDataset

SEVERAL = [(c, c + " again", "it is " + c)[: 1 + i % 3] for i, c in enumerate(CAPTIONS)]
TRACED = partial(torch.compile, backend="aot_eager")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return feature_file(tmp_path_factory.mktemp("data") / "features.pkl", SEVERAL)


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch.inputs(torch.device("cpu")))
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("tune", ["full", "none"])
def test_loss_gradients_and_names_are_the_same(make_model, data, tokenizer, monkeypatch, tune):
    dataset = CaptionDataset(read_features(data), tokenizer, 100, share_prefix=True)
    batches = [dataset.batch(np.arange(count)) for count in (6, 10)]
    model = make_model(mapping_type="transformer", tune=tune).train(tune == "none")
    if tune == "none":
        checkpoint_layers(model.lm)
    names = list(model.state_dict())
    expected = [loss_and_gradients(model, batch) for batch in batches]
    calls = []
    monkeypatch.setattr(torch, "compile", lambda *a, **k: calls.append(k) or TRACED(*a, **k))
    compile_loss(model, torch.device("cpu"))
    assert len(calls) > 1
    torch.testing.assert_close([loss_and_gradients(model, batch) for batch in batches], expected)
    assert list(model.state_dict()) == names


def test_a_compiled_run_is_resumed_with_it_or_without(data, lm_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", TRACED)
    chosen = {"bs": 8, "compile": True}
    unbroken = run(data, lm_folder, tmp_path / "unbroken", **chosen)
    windows = CaptionTask.windows

    def interrupted(self, at, skip):
        if at == 1:
            raise KeyboardInterrupt
        return windows(self, at, skip)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(CaptionTask, "windows", interrupted)
        run(data, lm_folder, tmp_path / "compiled", **chosen)
    shutil.copytree(tmp_path / "compiled", tmp_path / "plain")
    for name, compiled in (("compiled", True), ("plain", False)):
        run(data, lm_folder, tmp_path / name, bs=8, compile=compiled, resume=True)
    expected = weights(unbroken / "clipcap-last")
    assert same(weights(tmp_path / "compiled" / "clipcap-last"), expected)
    torch.testing.assert_close(weights(tmp_path / "plain" / "clipcap-last"), expected, rtol=1e-3, atol=1e-5)


def test_two_processes_train_as_one(data, lm_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "compile", TRACED)
    chosen = {"epochs": 1, "dropout": False}
    one = run(data, lm_folder, tmp_path / "one", bs=16, **chosen)
    words = flags(options(data, lm_folder, tmp_path / "two", bs=8, **chosen, compile=True))
    both = forked_in_two(tmp_path / "log", "train", *words)
    assert [rank.status for rank in both] == [0, 0], both
    torch.testing.assert_close(
        weights(tmp_path / "two" / "clipcap-last"), weights(one / "clipcap-last"), rtol=1e-3, atol=1e-4
    )


def test_without_a_compiler_it_is_refused_at_the_start(data, lm_folder, tmp_path, monkeypatch):
    from torch._inductor import config

    monkeypatch.setattr(config.cpp, "cxx", ("no-such-compiler",))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(ClipcapError, match="--compile does not work here: leave it out"):
        run(data, lm_folder, tmp_path / "out", compile=True)
