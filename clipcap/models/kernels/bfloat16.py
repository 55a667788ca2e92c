"""Whether this processor multiplies faster in bfloat16 than in float32: asked of it, and measured."""

from __future__ import annotations

import time
from functools import cache

import torch

from clipcap.models.kernels.packed_linear import PackedLinear, can_pack
from clipcap.models.kernels.switch import fast

TURNS = 5  # of the probe: some milliseconds in all
LEAST = 1.2  # how many times as fast bfloat16 must be
QUESTIONS = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")  # to torch, by these names since 2.6


def pick_cpu_dtype(choice: str) -> torch.dtype:
    """The numbers a CPU multiplies in: `float32`, `bfloat16`, or of the two what is faster here, `auto`."""
    if choice == "auto":
        return torch.bfloat16 if bfloat16_is_faster() else torch.float32
    return torch.bfloat16 if choice == "bfloat16" else torch.float32


def why(choice: str, dtype: torch.dtype) -> str:
    """What a run says of its numbers: `bfloat16 (--dtype auto: faster here than float32)`."""
    name = str(dtype).removeprefix("torch.")
    if choice != "auto":
        return name
    if dtype == torch.bfloat16:
        return f"{name} (--dtype auto: faster on this processor than float32)"
    return f"{name} (--dtype auto: bfloat16 is no faster on this processor)"


def bfloat16_is_faster() -> bool:
    """Whether the processor has instructions for bfloat16, and a product of middling size is faster by them."""
    return fast() and knows_bfloat16() and _probe()


def knows_bfloat16() -> bool:
    """Whether the processor multiplies in bfloat16: AMX or AVX512-BF16."""
    return any(ask() for name in QUESTIONS if (ask := getattr(torch.cpu, name, None)) is not None)


@cache
def _probe() -> bool:
    """Whether packed weights in bfloat16 are clearly faster: both in turn, the best of each."""
    if not can_pack(torch.bfloat16):
        return False
    rows, weight = torch.randn(64, 768, generator=torch.Generator().manual_seed(0)), torch.ones(768, 768)
    seconds: dict[torch.dtype, list[float]] = {torch.float32: [], torch.bfloat16: []}
    layers = {dtype: PackedLinear(weight, None, dtype=dtype) for dtype in seconds}
    with torch.inference_mode():
        for _ in range(TURNS):
            for dtype, layer in layers.items():
                start = time.perf_counter()
                layer(rows)
                seconds[dtype].append(time.perf_counter() - start)
    return LEAST * min(seconds[torch.bfloat16]) < min(seconds[torch.float32])
