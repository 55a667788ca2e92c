"""Networks without memory behind them."""

from __future__ import annotations

import subprocess
import sys

import torch
from torch import nn

from clipcap.models.without_memory import without_memory

NETWORK = "nn.Sequential(nn.Linear(3, 5), nn.Embedding(7, 3), nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.LayerNorm(4))"


def test_all_tensors_have_their_shapes_and_no_memory():
    with without_memory():
        network = eval(NETWORK)
        scaled = nn.Parameter(torch.randn(4, 6) / 2 * 3)
        mask = torch.empty(5, 5).fill_(-1.0).triu_(1)
    assert {tensor.device.type for tensor in (*network.state_dict().values(), scaled, mask)} == {"meta"}
    wanted = {name: tensor.shape for name, tensor in eval(NETWORK).state_dict().items()}
    assert {name: tensor.shape for name, tensor in network.state_dict().items()} == wanted
    assert scaled.shape == (4, 6) and mask.shape == (5, 5)
    assert not torch.equal(torch.randn(3), torch.randn(3))  # nothing is left behind


def test_torch_does_not_import_its_compiler_for_them():
    code = (
        "import sys; from torch import nn; from clipcap.models.without_memory import without_memory\n"
        f"with without_memory(): {NETWORK}\n"
        "print('torch._dynamo' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout == "False\n"
    )
