"""`clipcap doctor`: the versions, devices and caches of this machine, for bug reports."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

import clipcap
from clipcap.errors import ClipcapError

PACKAGES = (
    "torch", "torchvision", "transformers", "accelerate", "clip-anytorch", "scikit-learn", "Pillow",
    "numpy", "pyarrow", "safetensors", "matplotlib", "open_clip_torch", "peft", "pycocoevalcap",
    "faiss-cpu", "gradio", "tensorboard", "wandb",
)  # fmt: skip


def report() -> str:
    """Versions, devices, memory, Java, and where weights are cached."""
    import torch
    from huggingface_hub import constants

    lines = [f"clipcap {clipcap.__version__}", f"python {platform.python_version()} on {platform.platform()}"]
    lines += [f"{name} {_version(name)}" for name in PACKAGES]
    lines.append(f"cores: {os.cpu_count()}, torch threads: {torch.get_num_threads()}")
    lines.append(f"memory: {_memory()}")
    lines.append(f"--device auto: {_device()}")
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    lines += [f"GPU: {g.name}, {g.total_memory / 2**30:.0f} GiB" for g in gpus] or ["GPU: none found by CUDA"]
    lines.append(f"torch is built for: {f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU alone'}")
    lines.append(f"java: {_java()}")
    lines.append(f"OpenAI CLIP weights: {_clip_cache()}")
    lines.append(f"hub weights: {constants.HF_HUB_CACHE} ({_files(constants.HF_HUB_CACHE)})")
    lines.append(f"hub: {'offline (HF_HUB_OFFLINE)' if constants.HF_HUB_OFFLINE else constants.ENDPOINT}")
    return "\n".join(lines)


def _device() -> str:
    try:
        from clipcap.models.encoders.base import pick_device
    except ClipcapError as error:
        return str(error)
    return str(pick_device())


def _clip_cache() -> str:
    try:
        from clipcap.models.encoders.openai_weights import CACHE, clip_package

        clip_package()
    except ClipcapError as error:  # report the error: doctor runs when something is broken
        return str(error)
    return f"{CACHE} ({_files(CACHE)})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES") / 2**30
    except (ValueError, OSError, AttributeError):  # not on this system
        return "not known"
    return f"{total:.1f} GiB, {free:.1f} GiB free"


def _java() -> str:
    if shutil.which("java") is None:
        return "no (only METEOR and SPICE need it)"
    printed = subprocess.run(["java", "-version"], capture_output=True, text=True, timeout=30).stderr
    return printed.splitlines()[0] if printed else "yes"


def _files(folder: str | os.PathLike) -> str:
    try:
        names = sorted(name for name in os.listdir(folder) if not name.startswith((".", "CACHEDIR", "version")))
    except OSError:
        return "empty"
    return ", ".join(names[:8]) or "empty"
