"""What a run stores besides its weights: checked when it is read, restored as a whole, the same bytes each time."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from clipcap.errors import ClipcapError
from clipcap.runtime.safe_load.torch_file import is_finite
from clipcap.runtime.text import one_line

_COUNTS = ("epoch", "step", "stale", "reductions")
_SLOT = {"step", "exp_avg", "exp_avg_sq"}  # what AdamW keeps of each parameter
_AGAIN = "start anew in another --out_dir, or go on from its weights with --weights_dir"


def check_state(state: Any, path: Path) -> None:
    """Refuse a training state that clipcap did not write.

    Args:
        state: the content of the file at `path`.
    Raises:
        ClipcapError: names the field.
    """
    if fault := _fault(state):
        raise ClipcapError(f"{path}: cannot resume from it: {fault}: {_AGAIN}")


def _fault(state: Any) -> str:
    """What is wrong with a training state; empty where it is sound."""
    if not isinstance(state, dict):
        return "it is not a dictionary"
    for name in ("identity", "progress", "optimizer", "scheduler"):
        if not isinstance(state.get(name), dict):
            return f"its {name} is missing or damaged"
    if not all(map(_is_plain, state["identity"].values())):
        return "its identity is damaged"
    if not isinstance(state.get("scaler"), dict | None):
        return "its scaler is damaged"
    if fault := _progress_fault(state["progress"]):
        return fault
    slots, groups = state["optimizer"].get("state"), state["optimizer"].get("param_groups")
    if not isinstance(slots, dict) or not isinstance(groups, list) or not all(isinstance(g, dict) for g in groups):
        return "its optimizer is damaged"
    for slot in slots.values():
        if not isinstance(slot, dict) or not all(isinstance(v, Tensor) and is_finite(v) for v in slot.values()):
            return "its optimizer holds NaN, infinity, or something other than numbers"
    return ""


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (str, int, float))


def _progress_fault(progress: dict[str, Any]) -> str:
    for name in _COUNTS:
        value = progress.get(name)
        if type(value) is not int or value < 0:
            return f"its {name} is {value!r:.40}, no count"
    for name in ("loss_sum", "loss_weight", "best"):
        value = progress.get(name)
        number = cast(float, value)
        if type(value) not in (int, float) or math.isnan(number) or (name != "best" and math.isinf(number)):
            return f"its {name} is {value!r:.40}, no number"
    history = progress.get("history")
    if not isinstance(history, list) or len(history) != progress["epoch"] or not all(map(_are_metrics, history)):
        return "its history is not that of its epochs"
    return ""


def _are_metrics(value: Any) -> bool:
    """Whether a value is metrics by name."""
    return isinstance(value, dict) and all(
        isinstance(name, str) and type(number) in (int, float) for name, number in value.items()
    )


def restore(parts: Mapping[str, tuple[Any, Any]], path: Path) -> None:
    """Give the optimiser and its kin back what they stored.

    Args:
        parts: by name, what is restored and the state it is given.
        path: the file of the states.
    Raises:
        ClipcapError: one of them does not take it: it is damaged, or of another model.
    """
    for name, (part, state) in parts.items():
        try:
            if hasattr(part, "param_groups"):
                _check_optimizer(part, state)
            else:
                state = _matching(part.state_dict(), state)
            part.load_state_dict(state)
        except Exception as error:  # torch checks little of it, and fails in many ways
            fault = f"its {name} does not fit ({one_line(error)[:160]})"
            raise ClipcapError(f"{path}: cannot resume from it: {fault}: {_AGAIN}") from error


def _matching(own: Mapping[str, Any], state: Mapping[str, Any]) -> dict[str, Any]:
    """What a scheduler knows of a state; it takes anything as its attributes, and fails at the next step.

    Raises:
        ValueError: a field is of another kind.
    """
    for name in own.keys() & state.keys():
        mine, stored = own[name], state[name]
        pairs = [(mine, stored)]
        if isinstance(mine, list) and isinstance(stored, list):
            pairs = list(zip(mine, stored, strict=True))
        for a, b in pairs:
            numbers = type(a) in (int, float) and type(b) in (int, float) and math.isfinite(b)
            if not numbers and type(a) is not type(b):
                raise ValueError(f"{name} is {b!r:.40}")
    return {name: state[name] for name in own if name in state}


def _check_optimizer(optimizer: Any, state: Mapping[str, Any]) -> None:
    """torch takes moments of any shape, and fails at the first step."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    own, stored = optimizer.param_groups, state["param_groups"]
    for group, before in zip(own, stored, strict=True):
        for name, value in group.items():
            stored_value = before.get(name, value)  # newer releases of torch have more options
            number = name in ("lr", "initial_lr") and type(stored_value) in (int, float)
            switched = isinstance(value, bool) and stored_value is not value
            if name != "params" and not number and (switched or type(stored_value) is not type(value)):
                raise ValueError(f"{name} of a group is {stored_value!r:.40}")
    for parameter, number in zip(parameters, numbers, strict=True):
        slot = state["state"].get(number, {})
        if slot and slot.keys() != _SLOT:
            raise ValueError(f"it has {', '.join(map(str, slot))[:60]}")
        for name, value in slot.items():
            if value.shape != (() if name == "step" else parameter.shape):
                raise ValueError(f"{name} is {list(value.shape)}, its parameter {list(parameter.shape)}")


def canonical(value: Any, texts: dict[str, str] | None = None, sort: bool = True) -> Any:
    """A copy whose pickle has the same bytes wherever equal values came from: pickles write shared objects once.

    Equal texts become one object, lists and tuples objects of their own. Dictionaries are sorted, as optimisers order
    theirs differently after a resume; `progress` keeps its order, in which the log is written.
    """
    texts = {} if texts is None else texts
    if isinstance(value, str):
        return texts.setdefault(value, value)
    if isinstance(value, dict):
        items = list(value.items())
        if sort:
            items.sort(key=lambda item: (type(item[0]).__name__, item[0]))
        return {canonical(k, texts): canonical(v, texts, sort and k != "progress") for k, v in items}
    if isinstance(value, (list, tuple)):
        return type(value)(canonical(part, texts, sort) for part in value)
    return value
