"""`clipcap export --format onnx`: a folder of graphs, what a program needs to know of them, and a runner.

encoder.onnx          pixels [B, 3, R, R] → clip_embedding [B, D]
mapper.onnx           clip_embedding [B, D] → prefix [B, P, E]
language_model.onnx   prefix, input_ids, past_key_values.* → logits [B, V], present.*
captioner.json        preprocessing, sizes, tokens that end a caption
tokens.json           the bytes of each token id, as Latin-1
caption.py, tidy.py   the runner: numpy, Pillow and onnxruntime, neither torch nor clipcap
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

import clipcap
from clipcap.captioning import tidy as tidy_module
from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import resolve, stop_token_ids
from clipcap.deploy import onnx_captioner
from clipcap.deploy.graphs import (
    LARGEST,
    CachedLM,
    CacheShape,
    Graph,
    cache_shape,
    export_lm,
    export_mapper,
    export_tower,
    merge_adapter,
)
from clipcap.deploy.int8 import round_to_int8
from clipcap.deploy.onnx_captioner import CONFIG, TOKENS, OnnxCaptioner
from clipcap.deploy.preprocessing import How, describe_preprocessing
from clipcap.deploy.token_bytes import token_bytes
from clipcap.errors import ClipcapError
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.encoders.base import FrozenEncoder
from clipcap.models.kernels.switch import plain
from clipcap.models.language_model import end_of_text, max_positions, token_embeddings
from clipcap.runtime.json_text import to_json
from clipcap.runtime.messages import logger

FORMAT_VERSION = 1
RUNNER = "caption.py"
NEEDED = ("onnx", "onnxscript", "onnxruntime")
PARTS = ("encoder", "mapper", "language_model")
TOLERANCE = 1e-3  # of the largest number, by which a graph may differ from torch


def check_packages(what: str) -> None:
    """Name the extra before any work.

    Raises:
        ClipcapError: a package is missing.
    """
    if lacking := [name for name in NEEDED if find_spec(name) is None]:
        raise ClipcapError(f"{what} needs the {lacking[0]} package: pip install 'clipcap-toolkit[onnx]'")


def write_graphs(captioner: Captioner, folder: Path, dtype: str) -> None:
    """Write the files of an export into an existing folder, and compare the graphs with torch.

    Args:
        captioner: from `plain_captioner`.
        folder: empty.
        dtype: float32 or int8.
    Raises:
        ClipcapError: a part cannot be described or exported, or its graph gives other numbers.
    """
    model, encoder = cast(ClipCaptionModel, captioner.model), cast(FrozenEncoder, captioner.encoder)
    how, shape = describe_preprocessing(captioner.encoder), cache_shape(model.lm)
    vocabulary = token_embeddings(model.lm).num_embeddings
    table = token_bytes(captioner.tokenizer, vocabulary)
    (folder / TOKENS).write_text(to_json([token.decode("latin-1") for token in table]), encoding="utf-8")
    (folder / CONFIG).write_text(to_json(_facts(captioner, how, shape, dtype), indent=2) + "\n", encoding="utf-8")
    pixels = torch.stack([encoder.preprocess(probe) for probe in _pictures()])  # [2, 3, R, R]
    logger.info("writing the graphs of encoder, mapper and language model …")
    graphs = dict(
        zip(PARTS, (export_tower(encoder, pixels), export_mapper(model), export_lm(model.lm, shape)), strict=True)
    )
    for name, graph in graphs.items():
        _save(graph, folder / f"{name}.onnx")
    _compare(OnnxCaptioner(folder), captioner, pixels, shape)
    if dtype == "int8":
        for name, graph in graphs.items():
            round_to_int8(graph)
            _save(graph, folder / f"{name}.onnx")
    shutil.copyfile(str(onnx_captioner.__file__), folder / RUNNER)
    shutil.copyfile(str(tidy_module.__file__), folder / "tidy.py")


def plain_captioner(checkpoint: str, lm: str | None, encoder: str | None) -> Captioner:
    """A captioner on the CPU without faster paths, which graphs cannot hold; a LoRA adapter is merged.

    Raises:
        ClipcapError: it cannot be loaded, or reads tokens of images.
    """
    with plain():
        captioner = Captioner.from_pretrained(checkpoint, lm=lm, clip_model_type=encoder, device="cpu")
        if captioner.model.token_layout:
            raise ClipcapError(f"{checkpoint}: reads tokens of images, which an export does not know yet")
        _ = captioner.encoder
    merge_adapter(captioner.model.lm)
    if cast(ClipCaptionModel, captioner.model).config.prompts != "none":
        logger.warning("the captioner reads prompts, which an export cannot retrieve: it captions without")
    return captioner


def _facts(captioner: Captioner, how: How, shape: CacheShape, dtype: str) -> dict[str, Any]:
    """What a program needs to know to caption with the graphs."""
    model, tokenizer = captioner.model, captioner.tokenizer
    config = resolve(DecodeConfig(), model)
    return {
        "format": "clipcap-onnx",
        "format_version": FORMAT_VERSION,
        "clipcap_version": clipcap.__version__,
        "dtype": dtype,
        "preprocess": how,
        "layers": shape.layers,
        "heads": shape.heads,
        "head_width": shape.width,
        "beam_size": config.beam_size,
        "max_new_tokens": min(config.longest, max_positions(model.lm) - model.longest_prefix),
        "stop_ids": stop_token_ids(tokenizer, config, model.caption_ends),
        "hidden_ids": sorted({end_of_text(tokenizer), *model.caption_ends}),
    }


def _save(graph: Graph, path: Path) -> None:
    """Write a graph: one file, and beyond what a file can hold its numbers beside it."""
    import onnx

    size = sum(int(np.prod(list(tensor.dims))) * 4 for tensor in graph.graph.initializer)
    if size > LARGEST:
        onnx.save_model(graph, path, save_as_external_data=True, location=f"{path.name}.data")
    else:
        onnx.save_model(graph, path)


def _pictures() -> list[Any]:
    from PIL import Image

    grey = Image.linear_gradient("L")
    return [grey.convert("RGB"), Image.merge("RGB", [grey, grey.rotate(90), grey.rotate(180)])]


@torch.no_grad()
def _compare(graphs: OnnxCaptioner, captioner: Captioner, pixels: Tensor, shape: CacheShape) -> None:
    """Compare every graph with torch, the language model at the prefix, and at a token after it.

    Raises:
        ClipcapError: the numbers differ.
    """
    model = cast(ClipCaptionModel, captioner.model)
    embedding = captioner.encoder.encode_images(pixels)  # [2, D]
    prefix = model.prefix(embedding)  # [2, P, E]
    _check_near("encoder", graphs.run("encoder", pixels=pixels.numpy())[0], embedding)
    _check_near("mapper", graphs.run("mapper", clip_embedding=embedding.numpy())[0], prefix)
    tokens = torch.zeros(2, 1, dtype=torch.long)
    nothing = torch.zeros(2, 0, prefix.shape[2])  # [2, 0, E]
    reference = CachedLM(model.lm)
    past = [torch.zeros(2, shape.heads, 0, shape.width)] * (2 * shape.layers)
    first, *past = reference(prefix, tokens[:, :0], past)
    second, *_ = reference(nothing, tokens, past)
    own_first, cache = graphs.logits(prefix.numpy(), tokens[:, :0].numpy())
    own_second, _ = graphs.logits(nothing.numpy(), tokens.numpy(), cache)
    _check_near("language model", own_first, first)
    _check_near("language model after a token", own_second, second)


def _check_near(what: str, own: np.ndarray, torchs: Tensor) -> None:
    expected = torchs.numpy()
    away = float(np.abs(own - expected).max() / max(float(np.abs(expected).max()), 1e-6))
    if not away <= TOLERANCE:
        raise ClipcapError(
            f"the graph of the {what} gives other numbers than torch (away by {away:.1e} of the largest): the "
            f"exporter of this release of torch does not know this model"
        )
