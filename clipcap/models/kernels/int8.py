"""A language model's matrices in eight bits, for a CPU: decoding reads a quarter of the memory."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.ao.quantization import qconfig

from clipcap.models.kernels.gpt2_layers import Conv1D, is_conv1d

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel


def quantised(lm: PreTrainedModel) -> PreTrainedModel:
    """The language model with its linear layers and its head in int8, by torch's dynamic quantisation.

    Weights are rounded per output, activations per call; token embeddings and a LoRA adapter stay in float32. The
    model given is used up.
    """
    for module in list(lm.modules()):
        for name, child in list(module.named_children()):
            if is_conv1d(child):  # GPT-2's, which torch does not know
                setattr(module, name, _linear(child))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.ao announces its move to another package
        kinds = qconfig.per_channel_dynamic_qconfig
        names = [name for name, module in lm.named_modules() if type(module) is nn.Linear and "lora_" not in name]
        return torch.ao.quantization.quantize_dynamic(lm, dict.fromkeys(names, kinds), inplace=True)


def _linear(layer: Conv1D) -> nn.Linear:
    """The same as a linear layer: a Conv1D stores [in, out]."""
    linear = nn.Linear(layer.nx, layer.nf, device="meta")
    linear.weight = nn.Parameter(layer.weight.detach().T.contiguous(), requires_grad=False)
    linear.bias = layer.bias
    return linear
