"""Options of parsing: how images and captions become a feature file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.options import Recipe, at_least, option
from clipcap.sources.config import SourceOptions


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
