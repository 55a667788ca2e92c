"""A generator on disk: the published folder {config.json, pytorch_model.bin}, read strictly and written alike.

Files are read as tensors alone: their code never runs, and every name and shape must be what the configuration
asks for.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from clipcap.errors import ClipcapError
from clipcap.runtime.bundled import DEMO, GENERATOR, bundled
from clipcap.runtime.safe_load.torch_file import load_tensors
from clipcap.text_to_image.generator import Generator, GeneratorConfig
from clipcap.text_to_image.generator_config import PUBLISHED, parse_config

WEIGHTS, CONFIG = "pytorch_model.bin", "config.json"
CACHE_VARIABLE, CACHE = "PYTORCH_PRETRAINED_BIGGAN_CACHE", "~/.pytorch_pretrained_biggan"
_VECTORS = (".weight_orig", ".weight_u", ".weight_v")  # of a spectrally normalised weight


def load_generator(name: str | Path, device: str | torch.device = "cpu") -> Generator:
    """Load a BigGAN-deep for evaluation, spectral norms folded into its weights.

    Args:
        name: a folder of `config.json` and `pytorch_model.bin`; a bare `.bin` with its configuration beside it
            (`config.json` or `NAME-config.json`), or of a published size; the cache folder of the package
            pytorch-pretrained-biggan, or `biggan-deep-128`, `-256` or `-512`, which are looked for there;
            `demo` is the bundled one.
        device: where it computes.
    Returns:
        a Generator: `g(noise, class_embedding, truncation)`, `g.class_embeddings`.
    Raises:
        ClipcapError: nothing of that name, a damaged or hostile file, tensors missing, unknown or of other shapes.
    """
    weights, config_file = _find(Path(bundled(str(name), GENERATOR)).expanduser(), str(name))
    state = _read_state(weights)
    config = _find_config(weights, config_file, state)
    folded = fold_spectral_norms(state, weights)
    with torch.device("meta"):  # shapes alone: a configuration cannot take memory before the file is compared
        network = Generator(config)
    _compare(folded, {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}, weights)
    network.load_state_dict(folded, assign=True)
    return network.to(device).eval().requires_grad_(False)


def generator_folder(name: str | Path) -> Path | None:
    """The folder of a generator's files, in which its `words.json` may lie; None of one in the package's cache."""
    path = Path(bundled(str(name), GENERATOR)).expanduser()
    return path if path.is_dir() else path.parent if path.is_file() else None


def _find(path: Path, name: str) -> tuple[Path, Path | None]:
    """(weights, configuration or None) of what the user named."""
    if path.is_file():
        beside = (path.with_name(path.name.removesuffix("-" + WEIGHTS) + "-" + CONFIG), path.with_name(CONFIG))
        return path, next((file for file in beside if file.is_file()), None)
    if path.is_dir():
        if (path / WEIGHTS).is_file():
            return path / WEIGHTS, path / CONFIG
        if cached := _cached(path):
            if len(cached) == 1:
                return next(iter(cached.values()))
            raise ClipcapError(
                f"--generator {name}: holds {', '.join(cached)}: name one, as {path / next(iter(cached))}"
            )
        raise ClipcapError(f"--generator {name}: a folder without {WEIGHTS}: pass the one that holds it and {CONFIG}")
    if path.name in PUBLISHED:
        folder = path.parent if path.parent.is_dir() and len(path.parts) > 1 else None
        folder = folder or Path(os.environ.get(CACHE_VARIABLE, CACHE)).expanduser()
        if found := _cached(folder).get(path.name):
            return found
        raise ClipcapError(
            f"--generator {name}: not in {folder}: fetch {path.name}-{WEIGHTS} and {path.name}-{CONFIG} of "
            f"pytorch-pretrained-biggan and pass their folder"
        )
    raise ClipcapError(
        f"--generator {name}: no such folder or file; names are {', '.join(PUBLISHED)} and {DEMO}, the bundled one"
    )


def _cached(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """Models in the package's cache, where each file lies under a hash with a note of its URL beside it."""
    files: dict[str, Path] = {}
    for note in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        try:
            url = json.loads(note.read_text(encoding="utf-8"))["url"]
            files[str(url).rpartition("/")[2]] = note.with_suffix("")
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {
        name.removesuffix("-" + WEIGHTS): (file, files.get(name.removesuffix(WEIGHTS) + CONFIG))
        for name, file in files.items()
        if name.endswith("-" + WEIGHTS) and file.is_file()
    }


def _read_state(path: Path) -> dict[str, Tensor]:
    try:
        state = load_tensors(path)
    except OSError:
        raise
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError and more
        raise ClipcapError(
            f"{path}: cannot be loaded safely: a damaged file, or one with code in it, which is not run; "
            f"fetch it again from where it was published"
        ) from error
    if not isinstance(state, Mapping) or not all(
        isinstance(key, str) and isinstance(value, Tensor) for key, value in state.items()
    ):
        raise ClipcapError(f"{path}: holds no state dict of a generator (names with their tensors)")
    if "G_ema.pth" in path.name or {"linear.weight", "shared.weight"} <= state.keys():
        raise ClipcapError(f"{path}: a BigGAN in another layout; the published one of {WEIGHTS} is read")
    return {key: value.float() if value.is_floating_point() else value for key, value in state.items()}


def _find_config(weights: Path, file: Path | None, state: Mapping[str, Tensor]) -> GeneratorConfig:
    if file is not None:
        return parse_config(file)
    blocks = sum(key.endswith(".conv_0.bias") for key in state)
    for config in PUBLISHED.values():
        if len(config.layers) == blocks and state.get("generator.bn.weight", torch.empty(0)).numel() == 128:
            return config
    raise ClipcapError(f"{weights}: its configuration is missing: place {CONFIG} beside it")


def fold_spectral_norms(state: Mapping[str, Tensor], where: Path) -> dict[str, Tensor]:
    """Replace every `X.weight_orig`, `_u`, `_v` by `X.weight` = weight_orig / (uᵀ W v), W flattened to [out, rest].

    Raises:
        ClipcapError: a vector is missing or of another length, or σ is not a positive number.
    """
    folded = {key: value for key, value in state.items() if not key.endswith(_VECTORS)}
    for key in (key for key in state if key.endswith(_VECTORS[0])):
        name = key.removesuffix(_VECTORS[0])
        weight, u, v = (state.get(name + part) for part in _VECTORS)
        if weight is None or u is None or v is None:
            raise ClipcapError(f"{where}: lacks {name}{'.weight_u' if u is None else '.weight_v'}")
        matrix = weight.flatten(1) if weight.dim() > 1 else weight[:, None]  # [out, rest]
        if u.shape != matrix.shape[:1] or v.shape != matrix.shape[1:]:
            raise ClipcapError(f"{where}: {name}.weight_u or .weight_v does not fit {list(weight.shape)}")
        sigma = u @ (matrix @ v)
        if not 0 < sigma < float("inf"):
            raise ClipcapError(
                f"{where}: {name} has the spectral norm {sigma.item():g}, which is not a positive number"
            )
        folded[name + ".weight"] = weight / sigma
    orphans = [key for key in state if key.endswith(_VECTORS[1:]) and key[:-2] + "_orig" not in state]
    if orphans:
        raise ClipcapError(f"{where}: {orphans[0]} belongs to no weight")
    return folded


def _compare(state: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], where: Path) -> None:
    """Refuse a state dict whose names or shapes are not those of the configuration."""
    missing, unknown = sorted(shapes.keys() - state.keys()), sorted(state.keys() - shapes.keys())
    for names, what in ((missing, "lacks"), (unknown, "holds the unknown")):
        if names:
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            raise ClipcapError(f"{where}: {what} {', '.join(names[:3])}{more}: not the weights of its {CONFIG}")
    for name, shape in shapes.items():
        if tuple(state[name].shape) != shape:
            raise ClipcapError(f"{where}: {name} is {list(state[name].shape)}, its {CONFIG} asks for {list(shape)}")


def save_generator(network: Generator, folder: Path, dtype: torch.dtype = torch.float32) -> None:
    """Write a generator in the published layout.

    Weights are stored with vectors u and v whose σ is 1, so that every reader of the layout gets the same pictures.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        tensor = tensor.detach().cpu().contiguous()
        if name.endswith(".weight") and tensor.dim() > 1 and not name.startswith("embeddings"):
            tensor = tensor.to(dtype)
            matrix = tensor.float().flatten(1)
            column = matrix.norm(dim=0).argmax()
            v = F.one_hot(column, matrix.shape[1]).float()
            u = matrix[:, column]
            base = name.removesuffix(".weight")
            state |= dict(zip((base + part for part in _VECTORS), (tensor, u / (u @ u), v), strict=True))
        else:
            state[name] = tensor.to(dtype)
    torch.save(state, folder / WEIGHTS)
    content = dict(sorted(asdict(network.config).items()))
    (folder / CONFIG).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
