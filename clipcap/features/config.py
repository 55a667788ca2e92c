"""Options of parsing: how images and captions become a feature file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import Options, Recipe, at_least, option, part
from clipcap.sources.config import SourceConfig


@dataclass(frozen=True)
class ParseTextsConfig(Options, group="data"):
    """How texts become a folder of their embeddings."""

    data_path: str = option("", "lines (.txt), a table (.csv, .jsonl, ...), a feature file, or with --source a set")
    source: Literal["food", "coco", "flickr8k", "conceptual", "custom"] | None = option(
        None, "the image-caption set that --data_path is: its captions are the texts"
    )
    caption_column: str | None = option(None, "column of the texts (default: guessed)")
    image_column: str | None = option(
        None, "column of a name that texts of the same image share (default: guessed; none: each stands alone)"
    )
    out: str = option("data/texts", "folder to write", group="output")
    clip_model_type: str = option("ViT-B/32", "frozen encoder whose text tower is used", group="model")
    batch_size: int = option(256, "texts per encoder call", group="machine")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = option(
        None,
        "numbers the encoder computes in; auto: on a CPU bfloat16 where that is faster (default: float16 on a GPU, "
        "float32 on a CPU)",
        group="machine",
    )

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)


@dataclass(frozen=True)
class ParseConfig(Options, group="model"):
    """How images and captions become a feature file."""

    source: SourceConfig = part(SourceConfig)
    out: str | None = option(
        None,
        "feature file to write: NAME.pkl, or a folder NAME for memory-mapped shards; "
        "with several splits NAME_train, NAME_val, ...",
        group="output",
    )
    clip_model_type: str = option(
        "ViT-B/32",
        "frozen encoder: an OpenAI name, a checkpoint in OpenAI's format, "
        "open_clip:NAME/PRETRAINED, hf:NAME_OR_PATH or timm:NAME",
    )
    lm: str = option("gpt2", "language model whose tokenizer counts --token_limit", group="data")
    token_limit: int | None = option(None, "drop captions longer than this many tokens of --lm", group="data")
    tokens: str | None = option(
        None,
        "tokens beside each vector, for the mappers transformer and project: grid, crops:3 (3 x 3 parts of the "
        "picture), frames:8 (of animations and of folders of frames); --out is then a folder",
    )
    layer: int = option(-1, "--tokens grid: the encoder's layer, counted from the end")
    pool: int = option(0, "--tokens grid: average the grid to this many places a side (0: as it is)")
    batch_size: int = option(32, "images per encoder call", aliases=("bs",), group="machine")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")
    dtype: Literal["auto", "float32", "float16", "bfloat16"] | None = option(
        None,
        "numbers of the encoder and of the file; auto: on a CPU bfloat16 where that is faster (default: float16 on a "
        "GPU, float32 on a CPU)",
        group="machine",
    )
    dry_run: bool = option(False, "report what the set holds and encode nothing", group="output")
    recipe: Recipe = option("default", "reference: do not turn photos by their EXIF tag, as the original")

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        if self.token_limit is not None:
            at_least("token_limit", self.token_limit, 1)
        if self.tokens is None and (self.layer != -1 or self.pool):
            raise ClipcapError("--layer and --pool are of --tokens grid: add it, or leave them out")
