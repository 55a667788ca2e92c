"""Parameters written as flax writes them, by hand: msgpack of maps, arrays as extensions."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


def packed(value: Any) -> bytes:
    """A value as msgpack: maps, lists, texts, bytes, whole numbers, tensors."""
    if isinstance(value, Tensor):
        return array(list(value.shape), str(value.dtype).removeprefix("torch."), _raw(value))
    if isinstance(value, dict):
        return struct.pack(">BI", 0xDF, len(value)) + b"".join(packed(k) + packed(v) for k, v in value.items())
    if isinstance(value, list):
        return struct.pack(">BH", 0xDC, len(value)) + b"".join(map(packed, value))
    if isinstance(value, str):
        return struct.pack(">BB", 0xD9, len(value.encode())) + value.encode()
    if isinstance(value, bytes):
        return struct.pack(">BI", 0xC6, len(value)) + value
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    return struct.pack(">BI", 0xCE, value)


def array(shape: list[int], dtype: Any, data: bytes, kind: int = 1) -> bytes:
    """An extension whose payload is (shape, dtype, bytes)."""
    payload = packed([shape, dtype, data])
    return struct.pack(">BIb", 0xC9, len(payload), kind) + payload


def chunked(tensor: Tensor, size: int) -> dict:
    """An array cut into flat pieces of `size`."""
    pieces = tensor.flatten().split(size)
    return {
        "__msgpack_chunked_array__": True,
        "shape": {str(i): n for i, n in enumerate(tensor.shape)},
        "chunks": {str(i): piece for i, piece in enumerate(pieces)},
    }


def _raw(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes() if tensor.dim() else _raw(tensor[None])


def tree(state: dict[str, Tensor]) -> dict:
    """A state dict of torch, classic names, as flax's tree of parameters."""
    found: dict = {}
    for name, tensor in state.items():
        *parts, leaf = name.split(".")
        if leaf == "weight":
            table = "embedding" in parts[-1] and tensor.dim() == 2
            norm = tensor.dim() == 1
            leaf = "embedding" if table else "scale" if norm else "kernel"
            if leaf == "kernel":
                tensor = tensor.permute(2, 3, 1, 0) if tensor.dim() == 4 else tensor.T
        node = found
        for part in parts:
            node = node.setdefault(part, {})
        node[leaf] = tensor
    return found


def write_hybrid(folder: Path, state: dict[str, Tensor], config: dict) -> Path:
    """A folder of `FlaxHybridCLIP.save_pretrained`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "flax_model.msgpack").write_bytes(packed(tree(state)))
    (folder / "config.json").write_text(json.dumps({"model_type": "hybrid-clip", "projection_dim": 12, **config}))
    return folder
