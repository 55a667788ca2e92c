"""AdamW and the schedule of its learning rate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import get_linear_schedule_with_warmup

from clipcap.models.caption_model import ClipCaptionModel
from clipcap.training.config import LoopConfig

PLATEAU_EPOCHS = 2  # --schedule plateau: after so many epochs without a better one
PLATEAU_FACTOR = 0.5  # the rate is so much of what it was


def trained_parameters(model: ClipCaptionModel, mapper_lr: float, lm_lr: float | None = None) -> list[dict[str, Any]]:
    """All that requires gradients: one group where there is one rate, else the mapper's and the language model's."""
    if lm_lr is None or mapper_lr == lm_lr:
        return [{"params": [p for p in model.parameters() if p.requires_grad], "lr": mapper_lr}]
    parts: tuple[tuple[nn.Module, float], ...] = ((model.mapper, mapper_lr), (model.lm, lm_lr))
    groups = [{"params": [p for p in part.parameters() if p.requires_grad], "lr": lr} for part, lr in parts]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]], weight_decay: float) -> torch.optim.AdamW:
    """AdamW as the original sets it; each group has its `lr`, and may have its own `weight_decay`."""
    # Fused: a third of the time on a CPU, where torch's default steps through the tensors in Python.
    return torch.optim.AdamW(groups, eps=1e-6, weight_decay=weight_decay, fused=True)


def make_schedule(
    optimizer: torch.optim.Optimizer, options: LoopConfig, total: int, reductions: Callable[[], int]
) -> LambdaLR:
    """Linear warm-up, then straight down to 0 at the last of `total` steps, or a plateau lowered by `reductions`."""
    warmup = options.warmup(total)
    if options.schedule == "linear":
        return get_linear_schedule_with_warmup(optimizer, warmup, total)
    return LambdaLR(optimizer, lambda step: min(1.0, step / max(1, warmup)) * PLATEAU_FACTOR ** reductions())
