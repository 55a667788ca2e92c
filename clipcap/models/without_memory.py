"""Networks without memory behind them: their shapes alone, or to be given stored tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

_SCALINGS = (Tensor.mul, Tensor.__mul__, Tensor.__rmul__, Tensor.div, Tensor.__truediv__)
_FILLINGS = (Tensor.fill_, Tensor.normal_, Tensor.triu_, Tensor.uniform_, Tensor.zero_)


class _NothingDrawn(TorchFunctionMode):
    """Leaves initial numbers out: where there is no memory, torch imports its compiler to draw them, a second."""

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__module__", None) == "torch.nn.init":
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        scaled = func in _SCALINGS and isinstance(args[1], Real)
        if (scaled or func in _FILLINGS) and args[0].is_meta:
            return args[0]
        return (torch.empty if func is torch.randn else func)(*args, **kwargs)


@contextmanager
def without_memory() -> Iterator[None]:
    """Within, tensors are made on torch's device `meta`, and parameters are not initialised."""
    with torch.device("meta"), _NothingDrawn():
        yield
