"""Packed weights follow a network to another device."""

from __future__ import annotations

import torch
from torch import nn

from clipcap.models.kernels.packed_linear import pack_for_rows


def test_a_network_packed_on_a_cpu_and_moved_elsewhere_packs_anew_or_computes_plainly():
    layer = nn.Linear(6, 4)
    for dtype in (torch.float32, torch.bfloat16):
        pack_for_rows(layer, dtype)
        with torch.inference_mode():
            layer(torch.randn(3, 6))
    moved = layer.to("meta")
    with torch.inference_mode():
        assert moved(torch.randn(3, 6, device="meta")).shape == (3, 4)
