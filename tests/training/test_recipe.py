"""The default recipe: rates by what is trained, batch and epochs by how many captions there are."""

from __future__ import annotations

import json

import pytest
from support.small import feature_file, metrics, options, run

from clipcap.training.config import CaptionerTaskConfig, TrainConfig
from clipcap.training.optimizer import trained_parameters
from clipcap.training.recipe import Start, choose_length, choose_rates, too_short, with_length
from clipcap.training.train import train


def rates(model, warm=False, recipe="default", **flags):
    chosen = choose_rates(CaptionerTaskConfig(**flags), Start.of_model(model, warm), recipe)
    return chosen.mapper, chosen.lm


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        # of a language model of less than 20 M parameters
        ({"tune": "none"}, (4e-3, 4e-3)),
        ({"tune": "lora"}, (2e-3, 1e-3)),
        ({"tune": "full"}, (2e-3, 1e-3)),
        ({"tune": "full", "mapping_type": "transformer", "num_layers": 8}, (6e-4, 1e-3)),
    ],
)
def test_rates_follow_what_is_trained(model, expected, make_model):
    assert rates(make_model(**model)) == expected
    assert rates(make_model(**model), recipe="reference") == (2e-5, 2e-5)
    assert max(rates(make_model(**model), warm=True)) < min(expected)


def test_flags_override_the_choice(make_model):
    model = make_model()
    assert rates(model, lr=1e-4) == (1e-4, 1e-4)
    assert rates(model, lr=1e-4, lm_lr=1e-5) == (1e-4, 1e-5)
    assert rates(model, lm_lr=1e-5) == (2e-3, 1e-5)
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
    assert line.startswith("learning rates 0.002 for the mapper, 0.001 for the language model: a new mlp mapper")
    assert "--lr" in line and "--lm_lr" in line
    assert metrics(tmp_path / "run")
    flags = {**flags, "weights_dir": str(tmp_path / "run"), "out_dir": str(tmp_path / "warm")}
    train(TrainConfig.of(**flags))
    [line] = [line for line in messages() if line.startswith("learning rate")]
    assert ": low, as the weights are trained already" in line


def test_the_mapper_moves_and_the_language_model_does_not_at_a_rate_of_zero(tmp_path, lm_folder):
    from clipcap.models.checkpoint import load_checkpoint
    from clipcap.models.language_model import load_lm

    out = run(feature_file(tmp_path / "train.pkl"), lm_folder, tmp_path / "run", lm_lr=0, epochs=1)
    tuned, base = load_checkpoint(out).model.lm.state_dict(), load_lm(str(lm_folder)).state_dict()
    assert all(tuned[name].equal(base[name]) for name in base)
    assert json.loads((out / "metrics.jsonl").read_text().splitlines()[0])["train_loss"] > 0


NEW = Start("none", 124_000_000, warm=False)


def test_few_captions_have_small_batches_and_many_epochs():
    lengths = [choose_length(count, NEW) for count in (250, 3000, 10_000, 500_000)]
    assert [length.bs for length in lengths] == [8, 16, 40, 40]
    assert [length.epochs for length in lengths] == sorted((length.epochs for length in lengths), reverse=True)
    assert all(length.steps >= 1500 for length in lengths)
    assert choose_length(3, NEW).epochs == 100
    warm = choose_length(3000, Start("none", 124_000_000, warm=True))
    assert warm.steps < choose_length(3000, NEW).steps


def test_batch_and_epochs_of_flags_go_before_the_choice():
    config = TrainConfig()
    chosen, length = with_length(config, 10_000, NEW, 1)
    assert length is not None
    line = length.describe()
    assert (chosen.task.bs, chosen.loop.epochs) == (40, 8)
    assert line.startswith("8 epochs of 250 steps of 40 captions, 2,000 steps in all: for 10,000 captions")
    assert "--epochs and --bs" in line
    chosen, length = with_length(config.with_options(epochs=3), 10_000, NEW, 1)
    assert (chosen.task.bs, chosen.loop.epochs) == (40, 3)
    assert length is not None and "--epochs as given" in length.describe()
    assert "750 steps in all, of which --max_steps makes 60: for" in length.describe(60)
    assert "max_steps" not in length.describe(750)
    assert with_length(config.with_options(bs=5, epochs=3), 10_000, NEW, 1)[1] is None
    two, _ = with_length(config.with_options(grad_accum=2), 3000, NEW, 2)
    assert two.task.bs == 16 and two.loop.epochs > with_length(config, 3000, NEW, 1)[0].loop.epochs


@pytest.mark.parametrize("options", [{"recipe": "reference"}, {"objective": "reward", "weights_dir": "x"}])
def test_the_original_and_training_on_scores_have_the_original_batch_and_epochs(options):
    chosen, length = with_length(TrainConfig.of(**options), 30, NEW, 1)
    assert (chosen.task.bs, chosen.loop.epochs, length) == (40, 10, None)


def test_a_run_from_scratch_of_few_steps_is_too_short_and_a_warm_one_is_not():
    assert "21 steps from scratch are too few" in too_short(21, NEW) and "--weights_dir" in too_short(21, NEW)
    assert too_short(500, NEW) == too_short(21, Start("none", 124_000_000, warm=True)) == ""
