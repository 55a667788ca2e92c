"""Learning rates: by what is trained, by flags, and one group where there is one rate."""

from __future__ import annotations

import json

import pytest
from support.small import feature_file, metrics, options, run

from clipcap.training.config import CaptionerTaskConfig, TrainConfig
from clipcap.training.optimizer import trained_parameters
from clipcap.training.rates import choose_rates
from clipcap.training.train import train


def rates(model, warm=False, recipe="default", **flags):
    chosen = choose_rates(CaptionerTaskConfig(**flags), model, warm, recipe)
    return chosen.mapper, chosen.lm


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"tune": "none"}, (1e-3, 1e-3)),
        ({"tune": "lora"}, (1e-3, 1e-3)),
        ({"tune": "full"}, (1e-3, 5e-4)),  # a language model of less than 20 M parameters
        ({"tune": "full", "mapping_type": "transformer", "num_layers": 8}, (3e-4, 5e-4)),
    ],
)
def test_rates_follow_what_is_trained(model, expected, make_model):
    assert rates(make_model(**model)) == expected
    assert rates(make_model(**model), recipe="reference") == (2e-5, 2e-5)
    assert rates(make_model(**model), warm=True) == (2e-5, 2e-5)


def test_flags_override_the_choice(make_model):
    model = make_model()
    assert rates(model, lr=1e-4) == (1e-4, 1e-4)
    assert rates(model, lr=1e-4, lm_lr=1e-5) == (1e-4, 1e-5)
    assert rates(model, lm_lr=1e-5) == (1e-3, 1e-5)
    assert rates(model, lr=1e-4, recipe="reference") == (1e-4, 1e-4)


def test_there_is_a_group_for_each_rate(make_model):
    model = make_model()
    [one] = trained_parameters(model, 1e-3, 1e-3)
    mapper, lm = trained_parameters(model, 1e-3, 1e-4)
    assert len(one["params"]) == len(mapper["params"]) + len(lm["params"])
    assert (mapper["lr"], lm["lr"]) == (1e-3, 1e-4)
    assert len(trained_parameters(make_model(tune="none"), 1e-3, 1e-4)) == 1


def test_a_run_says_what_was_chosen_and_what_overrides_it(tmp_path, lm_folder, messages):
    flags = options(feature_file(tmp_path / "train.pkl"), lm_folder, tmp_path / "run", epochs=1)
    del flags["lr"]
    train(TrainConfig.of(**flags))
    [line] = [line for line in messages() if line.startswith("learning rate")]
    assert line.startswith("learning rates 0.001 for the mapper, 0.0005 for the language model: a new mlp mapper")
    assert "--lr" in line and "--lm_lr" in line
    assert metrics(tmp_path / "run")
    flags = {**flags, "weights_dir": str(tmp_path / "run"), "out_dir": str(tmp_path / "warm")}
    train(TrainConfig.of(**flags))
    [line] = [line for line in messages() if line.startswith("learning rate")]
    assert line.startswith("learning rate 2e-05 for mapper and language model: low, as the weights are trained")


def test_the_mapper_moves_and_the_language_model_does_not_at_a_rate_of_zero(tmp_path, lm_folder):
    from clipcap.models.checkpoint import load_checkpoint
    from clipcap.models.language_model import load_lm

    out = run(feature_file(tmp_path / "train.pkl"), lm_folder, tmp_path / "run", lm_lr=0, epochs=1)
    tuned, base = load_checkpoint(out).model.lm.state_dict(), load_lm(str(lm_folder)).state_dict()
    assert all(tuned[name].equal(base[name]) for name in base)
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["train_loss"] > 0
