"""Training states that no run of ours wrote are refused by field, and sound ones are the same bytes each time."""

from __future__ import annotations

import copy
import io
import math
from pathlib import Path

import pytest
import torch

from clipcap.errors import ClipcapError
from clipcap.training.run_state import canonical, check_state, restore

PATH = Path("training_state.pt")


@pytest.fixture
def made():
    """(optimiser, scheduler, state) of a network after a step."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    network(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    scheduler.step()
    progress = {"epoch": 1, "step": 0, "loss_sum": 0.0, "loss_weight": 0.0, "best": math.inf, "stale": 0}
    state = {
        "identity": {"seed": 1, "names": ("a", None)},
        "progress": {**progress, "reductions": 0, "history": [{"train_loss": 1.0, "epoch": 0}]},
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "scaler": None,
    }
    return optimizer, scheduler, copy.deepcopy(state)


def places(value, path=()):
    """All places of a state, from the outside in."""
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in items:
        yield from places(part, (*path, key))


BAD = [None, "x", -1, 2.5, math.nan, [], {}, torch.zeros(3), torch.tensor(math.nan), 10**30, [None], True]


def test_whatever_stands_in_a_state_it_is_restored_or_refused_in_one_line(made):
    optimizer, scheduler, good = made
    check_state(good, PATH)
    parts, refused = {"optimizer": optimizer, "scheduler": scheduler}, 0
    for place in places(good):
        for bad in BAD:
            state = copy.deepcopy(good)
            if place:
                target = state
                for key in place[:-1]:
                    target = target[key]
                target[place[-1]] = bad
            else:
                state = bad
            try:
                check_state(state, PATH)
                restore(
                    {"optimizer": (optimizer, state["optimizer"]), "scheduler": (scheduler, state["scheduler"])}, PATH
                )
            except ClipcapError as error:
                refused += 1
                assert str(error).startswith("training_state.pt: cannot resume from it: ") and "\n" not in str(error)
            else:  # what was taken must hold for a step
                optimizer.step()
                scheduler.step()
            restore({name: (part, good[name]) for name, part in parts.items()}, PATH)
    assert refused > 300


@pytest.mark.parametrize("name", ["identity", "progress", "optimizer", "scheduler"])
def test_a_part_that_is_missing(made, name):
    *_, state = made
    del state[name]
    with pytest.raises(ClipcapError, match=f"its {name} is missing"):
        check_state(state, PATH)


def saved(state) -> bytes:
    file = io.BytesIO()
    torch.save(state, file)
    return file.getvalue()


def test_equal_states_are_the_same_bytes(made):
    *_, state = made
    again = torch.load(io.BytesIO(saved(state)), weights_only=True)  # other objects, equal values
    other_order = dict(reversed(again.items()))
    assert saved(canonical(state)) == saved(canonical(again)) == saved(canonical(other_order))
    assert saved(state) != saved(other_order)
    loaded = torch.load(io.BytesIO(saved(canonical(state))), weights_only=True)
    assert list(loaded["progress"]["history"][0]) == ["train_loss", "epoch"]  # the order of the log
    assert loaded["progress"] == state["progress"] and loaded["identity"] == state["identity"]
    assert loaded["optimizer"]["param_groups"] == state["optimizer"]["param_groups"]
