"""Options of parsing, of checkpoints, of the training loop and of prediction: default, choices and meaning.

The fields below are the command-line flags, the options table of the README and (`ModelConfig`) what a
checkpoint's `config.json` holds. Nothing else declares a default.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from clipcap.errors import ClipcapError

Recipe = Literal["default", "reference"]
LARGEST_SEED = 2**32 - 1  # that NumPy and scikit-learn take
LONGEST_WARMUP = 5000  # steps, the original's


def option(default: Any, help: str, aliases: tuple[str, ...] = ()) -> Any:
    """A config field with its meaning, and other names of its flag."""
    return field(default=default, metadata={"help": help, "aliases": aliases})


@dataclass(frozen=True)
class SourceOptions:
    """An image-caption set on disk, and how its images are read."""

    data_path: str = option("", "folder (or file) of the image-caption set")
    captions: str | None = option(None, "caption file, where it is not in its usual place under --data_path")
    images: str | None = option(None, "folder of the photos, where it is not in its usual place")
    image_column: str | None = option(None, "column of the image paths (custom data; default: guessed)")
    caption_column: str | None = option(None, "column of the captions (custom data; default: guessed)")
    train_size: float | None = option(
        None, "share of the images to train on, the rest is val (sets without a split of their own)"
    )
    seed: int = option(42, "seed of the split")
    workers: int | None = option(None, "processes that decode images (default: the cores, at most 8; on a CPU 1)")
    max_bad: float = option(0.05, "share of missing or unreadable images above which the run ends with an error")
    frame: Literal["first", "middle"] = option("first", "which frame of an animation to take")

    def __post_init__(self) -> None:
        within("max_bad", self.max_bad, 0, 1)
        within("seed", self.seed, 0, LARGEST_SEED)
        if self.train_size is not None and not 0 < self.train_size < 1:
            raise ClipcapError(f"--train_size is a share between 0 and 1, got {self.train_size}")
        if self.workers is not None:
            at_least("workers", self.workers, 0)


@dataclass(frozen=True)
class ParseConfig(SourceOptions):
    """How images and captions become a feature file."""

    out: str | None = option(
        None,
        "feature file to write: NAME.pkl, or a folder NAME for memory-mapped shards; "
        "with several splits NAME_train, NAME_val, ...",
    )
    clip_model_type: str = option(
        "ViT-B/32",
        "frozen encoder: an OpenAI name, a checkpoint in OpenAI's format, "
        "open_clip:NAME/PRETRAINED or hf:NAME_OR_PATH",
    )
    lm: str = option("gpt2", "language model whose tokenizer counts --token_limit")
    token_limit: int | None = option(None, "drop captions longer than this many tokens of --lm")
    batch_size: int = option(32, "images per encoder call", aliases=("bs",))
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = option(
        "auto", "numbers of the encoder and of the file: auto is float16 on a GPU, float32 on a CPU"
    )
    dry_run: bool = option(False, "report what the set holds and encode nothing")
    recipe: Recipe = option("default", "reference: do not turn photos by their EXIF tag, as the original")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("batch_size", self.batch_size, 1)
        if self.token_limit is not None:
            at_least("token_limit", self.token_limit, 1)


@dataclass(frozen=True)
class ModelConfig:
    """What a checkpoint stores: the mapping network (ClipCap, section 3.3) and all else that captioning needs."""

    mapping_type: Literal["mlp", "transformer"] = option("mlp", "network from CLIP embedding to prefix")
    prefix_length: int = option(10, "language-model positions given to the image (paper, section 3.1: k)")
    prefix_length_clip: int = option(10, "positions the transformer mapper splits the CLIP embedding into")
    num_layers: int = option(8, "layers of the transformer mapper")
    normalize_prefix: bool = option(False, "L2-normalise the CLIP embedding before the mapper")
    clip_dim: int = option(512, "width of the CLIP embedding")
    num_heads: int = option(8, "attention heads of the transformer mapper (8 in the original)")
    encoder: str | None = option(None, "encoder of the features it was trained on")
    encoder_weights_id: str | None = option(None, "fingerprint of that encoder's weights")
    lm: str = option("gpt2", "causal language model: hub name or local folder")
    tune: Literal["none", "lora", "full"] = option("none", "what was trained of the language model")
    lora_rank: int = option(8, "rank of the LoRA adapter of --tune lora")
    lm_stored: bool = option(False, "the checkpoint holds the language model's weights itself")
    stop_token: str | None = option(None, "text token that ends a caption, besides end-of-text")
    recipe: Recipe = option("default", "recipe it was trained with")

    def __post_init__(self) -> None:
        for name in ("prefix_length", "prefix_length_clip", "num_layers", "clip_dim", "num_heads", "lora_rank"):
            at_least(name, getattr(self, name), 1)


@dataclass(frozen=True)
class LoopOptions:
    """The training loop, whatever it trains."""

    out_dir: str = option("checkpoints", "folder of the checkpoints")
    prefix: str = option("clipcap", "name the checkpoints start with")
    epochs: int = option(10, "passes over the data")
    save_every: int = option(1, "epochs between numbered checkpoints")
    save_steps: int = option(0, "also save `last` every this many optimiser steps (0: at epoch ends only)")
    keep: int = option(0, "numbered checkpoints to keep (0: all)")
    grad_accum: int = option(1, "batches per optimiser step")
    warmup_steps: int | None = option(None, "steps of linear warm-up (default: 5000, at most a tenth of the run)")
    weight_decay: float = option(0.0, "AdamW weight decay")
    grad_clip: float = option(0.0, "clip the gradient's L2 norm (0: off)")
    schedule: Literal["linear", "plateau"] = option(
        "linear", "learning rate after warm-up: down to 0 at the end, or halved after 2 epochs without a better one"
    )
    resume: bool = option(False, "continue the run in --out_dir from its `last` checkpoint")
    patience: int = option(0, "stop after this many epochs without a better one (0: never)")
    seed: int = option(42, "seed of initial weights, order and dropout")
    tracker: Literal["none", "tensorboard", "wandb"] = option("none", "also log to")

    def __post_init__(self) -> None:
        for name in ("epochs", "save_every", "grad_accum"):
            at_least(name, getattr(self, name), 1)
        for name in ("save_steps", "keep", "patience", "weight_decay", "grad_clip"):
            at_least(name, getattr(self, name), 0)
        within("seed", self.seed, 0, LARGEST_SEED)
        if self.warmup_steps is not None:
            at_least("warmup_steps", self.warmup_steps, 0)
        if not self.prefix or self.prefix.startswith(".") or "/" in self.prefix:
            raise ClipcapError(f"--prefix {self.prefix!r}: must be a name, with no dot before it and no / in it")

    def warmup(self, total: int) -> int:
        """Steps of warm-up of a run of `total` optimiser steps."""
        return min(LONGEST_WARMUP, total // 10) if self.warmup_steps is None else self.warmup_steps


@dataclass(frozen=True)
class DecodeConfig:
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
class LoadOptions:
    """Which checkpoint to load, and what its file may not tell."""

    load_pt: str | None = option(None, "checkpoint: a folder made by train.py, a .pt of the original, a hub name")
    lm: str | None = option(
        None, "language model of a .pt (default: gpt2), or where a folder that holds none finds its own now"
    )
    clip_model_type: str | None = option(None, "encoder, where the checkpoint's is elsewhere or not known")
    normalize_prefix: bool | None = option(None, "a .pt was trained on normalised embeddings (a folder tells itself)")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps")


@dataclass(frozen=True)
class CaptionerOptions(LoadOptions):
    """Which captioner to load, and how."""

    num_heads: int | None = option(
        None, "attention heads of a .pt's transformer mapper (default: 8, the original's; a folder tells itself)"
    )
    dtype: Literal["float32", "int8"] = option(
        "float32", "numbers of the language model: int8 is about twice as fast on a CPU, and some captions differ"
    )

    def __post_init__(self) -> None:
        if self.num_heads is not None:
            at_least("num_heads", self.num_heads, 1)


@dataclass(frozen=True)
class CaptionConfig(LoadOptions, DecodeConfig):
    """What to caption, and where the captions go."""

    features: str | None = option(None, "caption the embeddings of a feature file instead of photos")
    batch_size: int = option(16, "images decoded together")
    out: str | None = option(None, "write FILE.jsonl or FILE.csv, a line per image, instead of printing")
    sidecar: bool = option(False, "write a .txt with the caption beside each photo")
    overwrite: bool = option(False, "--sidecar: replace .txt files that are there")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("batch_size", self.batch_size, 1)
        if self.out and not self.out.endswith((".jsonl", ".csv")):
            raise ClipcapError(f"--out {self.out}: end the name in .jsonl or .csv")
        if self.sidecar and self.features:
            raise ClipcapError("--sidecar writes beside photos, --features has none: use --out")


@dataclass(frozen=True)
class PredictConfig(CaptionerOptions, CaptionConfig):
    """A captioner, and what it is to caption."""

    def __post_init__(self) -> None:
        CaptionerOptions.__post_init__(self)
        CaptionConfig.__post_init__(self)


def at_least(name: str, value: float, least: float) -> None:
    """Refuse an option below `least`, or not a number."""
    if not value >= least:
        raise ClipcapError(f"--{name} must be at least {least}, got {value}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Refuse an option outside of [low, high]."""
    if not low <= value <= high:
        raise ClipcapError(f"--{name} must lie between {low} and {high}, got {value}")
