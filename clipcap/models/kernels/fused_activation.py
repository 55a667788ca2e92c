"""GPT-2's activation as one operation."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel
from transformers.activations import NewGELUActivation

from clipcap.models.kernels.switch import fast


def fuse_activations(lm: PreTrainedModel) -> None:
    """Let GPT-2's activation be one operation, in place: transformers writes the same formula as eight, whose results
    are a third of what training keeps and a tenth of its time on a CPU."""
    if not fast():
        return
    for module in list(lm.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):
                setattr(module, name, nn.GELU(approximate="tanh"))
