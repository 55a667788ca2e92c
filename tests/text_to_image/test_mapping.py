"""The mapping from hidden states to class embeddings: solved exactly or by Adam, trained, stored, read."""

from __future__ import annotations

import json

import pytest
import torch
from support.attacks import INSTRUCTIONS, attack
from support.small_generator import write_small_generator

from clipcap.errors import ClipcapError
from clipcap.text_to_image.config import TrainDrawConfig
from clipcap.text_to_image.mapping import load_mapping
from clipcap.text_to_image.solve import adam, least_squares, mean_square
from clipcap.text_to_image.train import train_draw

CAPTIONS = [
    f"{number} {food}{'s' * (number != 'one')} on a {colour} plate"
    for food in ("apple", "banana", "cherry", "donut")
    for number in ("one", "two", "three")
    for colour in ("white", "black", "red")
]


@pytest.fixture
def biggan(shared):
    return shared / "fixtures" / "biggan"


@pytest.fixture
def regression(biggan):
    """(hidden states [N, H], targets [N, Z], start, expected) of the reference."""
    inputs = torch.load(biggan / "mapping_inputs.pt", weights_only=True)
    expected = torch.load(biggan / "mapping_expected.pt", weights_only=True)
    return inputs["X"].flatten(0, 1), inputs["Z"].flatten(0, 1), inputs["start"], expected


def test_adam_takes_the_originals_steps(regression, biggan):
    hidden, target, start, expected = regression
    begin = start["0.weight"], start["0.bias"]
    weight, bias, losses = adam(begin, lambda: iter([(hidden, target)]), 8, 5e-3)
    reference = json.loads((biggan / "expected.json").read_text())["mapping"]
    assert losses == pytest.approx(reference["losses"], abs=1e-5)
    torch.testing.assert_close(weight, expected["end"]["0.weight"], atol=1e-5, rtol=0)
    torch.testing.assert_close(bias, expected["end"]["0.bias"], atol=1e-5, rtol=0)


def test_least_squares_reach_the_lowest_loss(regression):
    hidden, target, _, expected = regression
    halves = [(hidden[:40], target[:40]), (hidden[40:], target[40:])]
    weight, bias = least_squares(halves)
    assert mean_square(weight, bias, halves) == pytest.approx(0.036373, abs=1e-5)
    torch.testing.assert_close(weight, expected["lstsq_weight"].float(), atol=1e-3, rtol=1e-3)


def test_least_squares_are_the_solution_of_numpy():
    import numpy as np

    random = np.random.RandomState(0)
    hidden, target = random.randn(50, 6), random.randn(50, 3)
    expected = np.linalg.lstsq(np.c_[hidden, np.ones(50)], target, rcond=None)[0]
    weight, bias = least_squares([(torch.tensor(hidden), torch.tensor(target))])
    torch.testing.assert_close(weight.double().T, torch.tensor(expected[:-1]), atol=1e-5, rtol=0)
    torch.testing.assert_close(bias.double(), torch.tensor(expected[-1]), atol=1e-5, rtol=0)


def test_the_originals_checkpoint_loads(biggan):
    expected = torch.load(biggan / "mapping_expected.pt", weights_only=True)["end"]
    mapping = load_mapping(str(biggan / "mapping_catalyst.pth"))
    assert torch.equal(mapping.weight, expected["0.weight"])
    assert torch.equal(mapping.bias, expected["0.bias"])


@pytest.mark.parametrize("instruction", INSTRUCTIONS)
def test_a_checkpoint_with_code_is_refused_and_not_run(tmp_path, instruction):
    path, canary = tmp_path / "mapping.pth", tmp_path / "canary"
    path.write_bytes(attack(instruction, "os.system", canary))
    with pytest.raises(ClipcapError, match="cannot be loaded safely"):
        load_mapping(str(path))
    assert not canary.exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model_state_dict": {"0.weight": torch.zeros(2, 3)}}, "not 0.weight and 0.bias"),
        ({"model_state_dict": {"0.weight": torch.zeros(2, 3), "0.bias": torch.zeros(3)}}, "do not fit"),
        ([1, 2], "holds no mapping"),
    ],
)
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content, message):
    torch.save(content, tmp_path / "mapping.pth")
    with pytest.raises(ClipcapError, match=message):
        load_mapping(str(tmp_path / "mapping.pth"))


@pytest.fixture(scope="module")
def generator(tmp_path_factory):
    return write_small_generator(tmp_path_factory.mktemp("generator") / "small")


def train(folder, generator, lm_folder, **changes):
    """Train on CAPTIONS; the mapping."""
    (folder / "captions.txt").write_text("\n".join([*CAPTIONS, "an empty plate", "an apple and a banana"]))
    options = {"generator": str(generator), "text_model": str(lm_folder), "out_dir": str(folder / "mapping")}
    place = train_draw(str(folder / "captions.txt"), TrainDrawConfig(**options | changes))
    return load_mapping(str(place))


ADAM = {"solver": "adam", "lr": 0.05, "epochs": 60}


@pytest.mark.parametrize("changes", [{}, {"rows": "word"}, {"mask": False}, ADAM])
def test_training_beats_the_mean_target(tmp_path, generator, lm_folder, messages, changes):
    mapping = train(tmp_path, generator, lm_folder, **changes)
    figures = mapping.facts.figures
    assert figures["train mean square"] < 0.8 * figures["train mean square of the mean target"]
    assert figures["captions"] + int(messages()[1].split()[1]) == len(CAPTIONS)
    assert (tmp_path / "mapping" / "README.md").read_text().count("train mean square") == 2
    assert not (tmp_path / "mapping.hidden").exists()


def test_the_same_run_gives_the_same_mapping(tmp_path, generator, lm_folder):
    first = train(tmp_path, generator, lm_folder, keep_hidden=True)
    assert (tmp_path / "mapping.hidden" / "train.arrays").exists()
    again = train(tmp_path, generator, lm_folder)
    assert torch.equal(first.weight, again.weight)


def test_captions_without_the_words_are_refused(tmp_path, generator, lm_folder):
    (tmp_path / "captions.txt").write_text("a dog\na cat\na bus\n")
    config = TrainDrawConfig(generator=str(generator), text_model=str(lm_folder), out_dir=str(tmp_path / "m"))
    with pytest.raises(ClipcapError, match=r"none of its .* one of the generator's 8 words, such as apple"):
        train_draw(str(tmp_path / "captions.txt"), config)
