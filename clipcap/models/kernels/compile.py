"""torch.compile for training: fused kernels, the same numbers."""

from __future__ import annotations

from typing import Any

import torch

from clipcap.errors import ClipcapError
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.runtime.text import one_line


def compile_loss(model: ClipCaptionModel, device: torch.device) -> None:
    """Let the mapper and the language model compute a loss by compiled code; in place.

    Parameters and their names stay, so that checkpoints do not tell. Decoding is not compiled: its lengths change at
    every step. The loss of the head stays as it is: large matrix products in parts, to which fusing adds nothing.

    Args:
        model: its methods are replaced by compiled ones, for batches of any size.
        device: it will train on.

    Raises:
        ClipcapError: torch.compile finds no compiler for this device.
    """
    _try(device)
    mapper: Any = model.mapper  # of several kinds, which take different arguments
    mapper.forward = torch.compile(mapper.forward, dynamic=True)
    model.hidden_of = torch.compile(model.hidden_of, dynamic=True)
    model.logits_of = torch.compile(model.logits_of, dynamic=True)


def _try(device: torch.device) -> None:
    """Compile something small, so that a missing compiler is reported at the start, not at the first step."""
    try:
        torch.compile(lambda x: (x + 1).tanh())(torch.zeros(8, device=device))
    except Exception as error:  # of a dozen kinds: no C++ compiler, no Python.h, no Triton, an old GPU
        raise ClipcapError(
            f"--compile does not work here: leave it out, or install what it lacks ({one_line(error)[:200]})"
        ) from error
