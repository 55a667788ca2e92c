"""AdamW and the schedule of its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from clipcap.config import LoopOptions

REFERENCE_WARMUP_STEPS = 5000
PLATEAU_EPOCHS = 2  # --schedule plateau: after so many epochs without a better one
PLATEAU_FACTOR = 0.5  # the rate is so much of what it was


def trained_parameters(model: nn.Module) -> list[dict[str, Any]]:
    """All that requires gradients, as one group."""
    return [{"params": [p for p in model.parameters() if p.requires_grad]}]


def make_optimizer(groups: list[dict[str, Any]], options: LoopOptions) -> torch.optim.AdamW:
    """AdamW as the original sets it; a group may have its own `lr` and `weight_decay`."""
    # Fused: a third of the time on a CPU, where torch's default steps through the tensors in Python.
    return torch.optim.AdamW(groups, lr=options.lr, eps=1e-6, weight_decay=options.weight_decay, fused=True)


def warmup_steps(options: LoopOptions, total: int) -> int:
    """Steps of warm-up: as asked; 5000 in the original; by default at most a tenth of the run."""
    if options.warmup_steps is not None:
        return options.warmup_steps
    return REFERENCE_WARMUP_STEPS if options.recipe == "reference" else min(REFERENCE_WARMUP_STEPS, total // 10)


def make_schedule(
    optimizer: torch.optim.Optimizer, options: LoopOptions, total: int, reductions: Callable[[], int]
) -> LambdaLR:
    """Linear warm-up, then straight down to 0 at the last of `total` steps, or a plateau lowered by `reductions`."""
    warmup = warmup_steps(options, total)
    if options.schedule == "linear":
        return get_linear_schedule_with_warmup(optimizer, warmup, total)
    return LambdaLR(optimizer, lambda step: min(1.0, step / max(1, warmup)) * PLATEAU_FACTOR ** reductions())
