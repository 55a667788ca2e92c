"""Options of captioning: which captioner to load, how it decodes, where the captions go."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import LARGEST_SEED, Options, Recipe, at_least, option, part, within


@dataclass(frozen=True)
class DecodeConfig(Options, group="decoding"):
    """How captions are written (ClipCap, section 3.4)."""

    beam: bool = option(False, "beam search instead of sampling")
    beam_size: int = option(5, "beams of --beam")
    greedy: bool = option(False, "always the most likely token (same as --temp 0)")
    temp: float = option(
        1.0,
        "temperature of sampling: below 1 safer, above 1 wilder, 0 greedy (of --beam: of its scores; 0 counts as 1, "
        "as in the original)",
        aliases=("temperature",),
    )
    top_p: float = option(0.8, "sampling only: from the smallest set of tokens with this probability (1: all)")
    top_k: int = option(0, "sampling only: from this many likeliest tokens (0: all)")
    num_captions: int = option(1, "captions per image, best first")
    max_new_tokens: int = option(67, "longest caption in tokens", aliases=("entry_length",))
    min_new_tokens: int = option(0, "shortest caption in tokens")
    repetition_penalty: float = option(1.0, "above 1: tokens already written become less likely")
    stop_token: str | None = option(
        None, "token that ends a caption, besides end-of-text (default: the checkpoint's; '.' for a .pt)"
    )
    prompt: str = option("", "words every caption starts with")
    rerank: Literal["none", "clip"] = option("none", "clip: order captions by how well they fit the image")
    seed: int | None = option(None, "repeat the same samples")
    recipe: Recipe = option("default", "reference: raw text, stop at '.', sampling is greedy, as the original")

    def __post_init__(self) -> None:
        if self.beam and self.greedy:
            raise ClipcapError("--beam and --greedy are two ways to decode: choose one")
        for name in ("beam_size", "num_captions", "max_new_tokens"):
            at_least(name, getattr(self, name), 1)
        for name in ("temp", "top_k", "min_new_tokens"):
            at_least(name, getattr(self, name), 0)
        within("top_p", self.top_p, 0, 1)
        if self.repetition_penalty <= 0:
            raise ClipcapError(f"--repetition_penalty must be above 0, got {self.repetition_penalty}")
        if self.beam and self.num_captions > self.beam_size:
            raise ClipcapError(
                f"--num_captions {self.num_captions} is more than --beam_size {self.beam_size}: "
                f"raise --beam_size to {self.num_captions}"
            )
        if self.seed is not None:
            within("seed", self.seed, 0, LARGEST_SEED)
        if self.min_new_tokens > self.max_new_tokens:
            raise ClipcapError(
                f"--min_new_tokens {self.min_new_tokens} is above --max_new_tokens {self.max_new_tokens}"
            )


@dataclass(frozen=True)
class LoadOptions(Options, group="model"):
    """Which checkpoint to load, and what its file may lack."""

    load_pt: str | None = option(None, "checkpoint: a folder made by train.py, a .pt of the original, a hub name")
    lm: str | None = option(
        None, "language model of a .pt (default: gpt2), or the new place of the one that a folder names"
    )
    clip_model_type: str | None = option(None, "encoder, where the checkpoint's has moved or is not known")
    normalize_prefix: bool | None = option(None, "a .pt was trained on normalised embeddings (a folder states it)")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")


@dataclass(frozen=True)
class LoadConfig(LoadOptions):
    """Which captioner to load, and how."""

    num_heads: int | None = option(
        None, "attention heads of a .pt's transformer mapper (default: 8, the original's; a folder states it)"
    )
    memory: str | None = option(
        None, "folder of texts: each photo becomes a mixture of them first (for captioners of --objective text)"
    )
    dtype: Literal["float32", "int8"] = option(
        "float32",
        "numbers of the language model: int8 is about twice as fast on a CPU, and some captions differ",
        group="machine",
    )

    def __post_init__(self) -> None:
        if self.num_heads is not None:
            at_least("num_heads", self.num_heads, 1)


@dataclass(frozen=True)
class OutputConfig(Options, group="output"):
    """What to caption beside photos, and where the captions go."""

    features: str | None = option(None, "caption the embeddings of a feature file instead of photos", group="data")
    batch_size: int = option(16, "images decoded together", group="machine")
    out: str | None = option(None, "write FILE.jsonl or FILE.csv, a line per image, instead of printing")
    sidecar: bool = option(False, "write a .txt with the caption beside each photo")
    overwrite: bool = option(False, "with --sidecar: replace existing .txt files")

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        if self.out and not self.out.endswith((".jsonl", ".csv")):
            raise ClipcapError(f"--out {self.out}: end the name in .jsonl or .csv")
        if self.sidecar and self.features:
            raise ClipcapError("--sidecar writes beside photos, --features has none: use --out")


@dataclass(frozen=True)
class CaptionConfig(Options):
    """Which model captions, how it decodes, and where the captions go."""

    load: LoadOptions = part(LoadOptions)
    decode: DecodeConfig = part(DecodeConfig)
    output: OutputConfig = part(OutputConfig)


@dataclass(frozen=True)
class PredictConfig(CaptionConfig):
    """A captioner, and what it captions."""

    load: LoadConfig = part(LoadConfig)
