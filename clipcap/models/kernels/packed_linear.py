"""Linear layers whose weights lie in memory as the matrix product reads them.

On a CPU, a product with few rows spends much of its time on arranging the weights, anew at every call: a third of it
at 5 rows, a fifth at 200. oneDNN takes weights that were arranged once, and gives the same numbers up to their
rounding.

In bfloat16 a product reads half of the memory, and on a processor that multiplies in bfloat16 takes half of the time
or less. Its sums are in float32; only what goes in and comes out is rounded to eight bits, and all else of a network
(norms, attention, the cache of keys and values, the sums along the layers) stays in float32. A GPU gains as much by
bfloat16, and arranges nothing.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipcap.models.kernels.gpt2_layers import Conv1D, FeedForward, is_conv1d, is_feed_forward
from clipcap.models.kernels.switch import fast

MOST_BYTES = 1 << 30  # the copies of a larger network would take more than they are worth
GPU_ACTIVATIONS = {"none": lambda x: x, "swish": F.silu, "gelu": partial(F.gelu, approximate="tanh")}


class PackedLinear:
    """activation(x·Wᵀ + b) without gradients.

    Args:
        weight: W [out, in], copied.
        bias: b [out].
        activation: by oneDNN's name, applied to each result while it is in the cache: none, swish (x·sigmoid(x)), or
            gelu, as tanh gives it.
        dtype: float32, or bfloat16 as a processor multiplies it, with sums in float32.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, activation: str = "none", dtype: torch.dtype = torch.float32
    ):
        self.weight, self.device = weight.detach().to(dtype).contiguous(), weight.device
        if self.device.type == "cpu":
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight)
        self.bias = None if bias is None else bias.detach().to(dtype)
        self.activation, self.dtype = activation, dtype

    def __call__(self, x: Tensor) -> Tensor:
        """[…, in] → […, out] in the dtype of the weights."""
        x = x.to(self.dtype)
        if self.device.type != "cpu":
            return GPU_ACTIVATIONS[self.activation](F.linear(x, self.weight, self.bias))
        kind = "tanh" if self.activation == "gelu" else ""
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, self.activation, [], kind)


def can_pack(dtype: torch.dtype = torch.float32) -> bool:
    """Whether this torch and processor do it: tried, since the operations are those of torch's own compiler."""
    if not fast():
        return False
    x, weight, bias = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)), torch.eye(5), torch.ones(5)
    try:
        swish, gelu = (PackedLinear(weight, bias, activation, dtype)(x).float() for activation in ("swish", "gelu"))
    except (AttributeError, RuntimeError):
        return False
    expected = F.silu(x + 1), F.gelu(x + 1, approximate="tanh")
    tolerance = 1e-5 if dtype == torch.float32 else 0.05
    return all(torch.allclose(a, b, atol=tolerance) for a, b in zip((swish, gelu), expected))


def packable(module: nn.Module, dtype: torch.dtype = torch.float32) -> bool:
    """Whether a network is small enough for packed copies in `dtype`, and its weights of a kind to be packed."""
    weights = list(module.parameters())
    if any(w.dtype != torch.float32 for w in weights):
        return False
    devices = {w.device for w in weights}
    if devices and all(device.type == "cuda" for device in devices):
        native = all(torch.cuda.get_device_capability(device)[0] >= 8 for device in devices)  # older ones emulate it
        return dtype == torch.bfloat16 and fast() and native
    small = sum(dtype.itemsize * w.numel() for w in weights) <= MOST_BYTES
    return small and all(device.type == "cpu" for device in devices) and can_pack(dtype)


def pack_for_rows(module: nn.Module, dtype: torch.dtype = torch.float32) -> None:
    """Let the linear layers of a network multiply by packed weights in inference mode; in place.

    In float32 that is so where they are given several rows: one row alone is as fast without. What they give stays in
    the dtype of what they are given.

    Parameters and their names stay, so that it can be stored and trained; the copies take as much memory again, in
    bfloat16 half as much.

    Args:
        module: in float32, on a CPU, or, for bfloat16, on a GPU.
        dtype: of the products.
    """
    heads = _heads(module) if dtype == torch.bfloat16 else []
    for layer in module.modules():
        if isinstance(layer.forward, _ByRows | _FeedForward):
            if layer.forward.dtype == dtype:
                continue
            setattr(layer, "forward", layer.forward.plain)  # noqa: B010 - as below
        if type(layer) is nn.Linear and any(layer is head for head in heads):
            setattr(layer, "forward", _CentredHead(layer, dtype))  # noqa: B010 - as below
        elif type(layer) is nn.Linear or is_conv1d(layer):
            setattr(layer, "forward", _ByRows(layer, dtype=dtype))  # noqa: B010 - as below
        elif is_feed_forward(layer) and type(layer.act) is nn.GELU and layer.act.approximate == "tanh":
            setattr(layer, "forward", _FeedForward(layer, dtype))  # noqa: B010 - a method, not an attribute


def _heads(module: nn.Module) -> list[nn.Linear]:
    """The heads of the language models in a network."""
    found = (getattr(part, "get_output_embeddings", None) for part in module.modules())
    return [head for output in found if output is not None and type(head := output()) is nn.Linear]


class _ByRows:
    """The forward of a linear layer, which packs its weights at their first use, and when they have changed."""

    def __init__(self, layer: nn.Linear | Conv1D, activation: str = "none", dtype: torch.dtype = torch.float32):
        self.plain, self.weight, self.bias = layer.forward, layer.weight, layer.bias
        self.transposed = is_conv1d(layer)  # GPT-2's; stores [in, out]
        self.activation, self.dtype = activation, dtype
        self._packed: PackedLinear | None = None
        self._version = -1

    def __call__(self, x: Tensor) -> Tensor:
        return self.packed()(x).to(x.dtype) if _pays(x, self.weight, self.dtype) else self.plain(x)

    def packed(self) -> PackedLinear:
        """The product with the weights as they are now."""
        version = 0 if self.weight.is_inference() else self.weight._version  # torch counts what is written into it
        if self._packed is None or self._version != version or self._packed.device != self.weight.device:
            self._packed, self._version = self._pack(self.weight.T if self.transposed else self.weight), version
        return self._packed

    def _pack(self, weight: Tensor) -> PackedLinear:
        return PackedLinear(weight, self.bias, self.activation, self.dtype)


class _CentredHead(_ByRows):
    """The forward of a language model's head in bfloat16, x·Wᵀ = x·(W - w̄)ᵀ + x·w̄ with the mean w̄ of all rows.

    GPT-2's logits all lie around -100, where numbers of eight bits are half a unit apart. Around 0 they are not.
    """

    def __init__(self, layer: nn.Linear, dtype: torch.dtype):
        super().__init__(layer, dtype=dtype)
        self._mean: Tensor | None = None

    def _pack(self, weight: Tensor) -> PackedLinear:
        self._mean = weight.detach().mean(dim=0)  # [in]
        return PackedLinear(weight.detach() - self._mean, None, dtype=self.dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if not _pays(x, self.weight, self.dtype):
            return self.plain(x)
        centred = self.packed()(x).float()  # […, V]
        assert self._mean is not None, "packing sets it"
        logits = centred.add_((x.float() @ self._mean)[..., None])
        return logits if self.bias is None else logits.add_(self.bias)


class _FeedForward:
    """The forward of GPT-2's feed-forward net, whose activation is part of the packed product before it."""

    def __init__(self, net: FeedForward, dtype: torch.dtype = torch.float32):
        self.net, self.dtype = net, dtype
        self.plain: Any = net.forward  # annotated as of a tuple, by mistake
        self.widen = _ByRows(net.c_fc, "gelu", dtype)

    def __call__(self, x: Tensor) -> Tensor:
        if not _pays(x, self.widen.weight, self.dtype):
            return self.plain(x)
        return self.net.dropout(self.net.c_proj(self.widen.packed()(x)).to(x.dtype))


def _pays(x: Tensor, weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether a product of these rows [..., in] is one with packed weights, if those are where the rows are."""
    several = dtype == torch.bfloat16 or (x.numel() > x.shape[-1] and x.device.type == "cpu")
    known = x.device == weight.device and (x.dtype == torch.float32 or x.dtype == dtype)
    return several and known and torch.is_inference_mode_enabled() and fast()
