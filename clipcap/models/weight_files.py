"""Where the weights lie in a folder that a training framework wrote: transformers, accelerate, DeepSpeed, FSDP."""

from __future__ import annotations

from pathlib import Path

from clipcap.runtime.safe_load.weights import INDEX, SUFFIXES, shard_of
from clipcap.runtime.text import shown

_USUAL = ("model.safetensors", f"model.safetensors{INDEX}", f"pytorch_model.bin{INDEX}", "pytorch_model.bin")
_DEEPSPEED = "mp_rank_00_model_states.pt"
_SECOND = "mp_rank_01_model_states.pt"  # holds the other half of each matrix: tensors in parallel
_LATEST = "latest"  # names the folder of DeepSpeed's last step
_BELOW = "pytorch_model"  # accelerate's folder of it


def weights_in(folder: Path) -> Path | None:
    """The file to read weights from: of several it is the index, or the first of them; None where there is none."""
    try:
        names = sorted(path.name for path in folder.iterdir())
    except (OSError, ValueError):  # not there, or a name with a NUL character
        return None
    for name in _USUAL:
        if name in names:
            return folder / name
    if _DEEPSPEED in names and _SECOND not in names:
        return folder / _DEEPSPEED
    indices = [name for name in names if name.endswith(INDEX)]
    shards = [name for name in names if name.endswith(SUFFIXES) and shard_of(name)]
    if len(indices) == 1 or (shards and not indices):
        return folder / (indices or shards)[0]
    below = _named_in(folder / _LATEST) if _LATEST in names else _BELOW if _BELOW in names else None
    return weights_in(folder / below) if below and (folder / below).is_dir() else None


def is_part_of_matrices(path: Path) -> bool:
    """Whether a file of DeepSpeed holds a part of each matrix, as other files beside it do."""
    return path.name.startswith("mp_rank_") and path.with_name(_SECOND).exists()


def how_to_join(folder: Path) -> str | None:
    """What makes one file of weights that processes have written each a part of; None for other folders."""
    for place in (folder, *(path for path in sorted(folder.iterdir()) if path.is_dir())):
        names = [path.name for path in place.iterdir()]
        if any(name.endswith(".distcp") for name in names):
            command = f"python -m torch.distributed.checkpoint.format_utils dcp_to_torch {shown(place)} weights.pt"
            return f"is a distributed checkpoint of FSDP: make one file of it: {command}"
        if _SECOND in names:
            return "is a checkpoint of tensors in parallel (mp_rank_00, mp_rank_01): save it from one process"
        if any(name.startswith(("zero_pp_rank_", "bf16_zero_pp_rank_")) for name in names):
            return "is a checkpoint of DeepSpeed's ZeRO: make one file of it: python zero_to_fp32.py . weights.pt"
    return None


def _named_in(file: Path) -> str | None:
    """The name in DeepSpeed's `latest`, where it is one."""
    try:
        name = file.read_text(encoding="utf-8")[:200].strip()
    except (OSError, ValueError):
        return None
    return name if name and Path(name).name == name else None
