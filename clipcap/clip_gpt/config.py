"""Options of CLIP-GPT: its training, its captions, the pictures it imagines."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.captioning.config import CaptionConfig, LoadOptions
from clipcap.errors import ClipcapError
from clipcap.models.config import PrefixConfig, Tune
from clipcap.options import Options, at_least, option, part
from clipcap.training.config import FeatureTaskConfig, FeatureTrainConfig, InitialModelConfig, LoopConfig

EmbeddingLoss = Literal["mse", "cosine", "contrastive"]


@dataclass(frozen=True)
class ClipGptConfig(PrefixConfig):
    """What a checkpoint of CLIP-GPT stores besides weights."""

    normalize_prefix: bool = option(True, "L2-normalise CLIP embeddings as they come in, and those to be predicted")
    tune: Tune = option("full", "what was trained of the language model")
    prefix_length: int = option(7, "positions before a caption: those of `[CLIP IN] … [\\CLIP IN] Caption: [`")


@dataclass(frozen=True)
class ClipGptLoopConfig(LoopConfig):
    """The training loop of CLIP-GPT."""

    out_dir: str = option("checkpoints/clip_gpt", "folder of the checkpoints", group="output")
    prefix: str = option("clip_gpt", "name the checkpoints start with", group="output")


@dataclass(frozen=True)
class InitialClipGptConfig(InitialModelConfig):
    """The CLIP-GPT that a run starts from."""

    normalize_prefix: bool | None = option(
        None,
        "L2-normalise CLIP embeddings as they come in, and those to be predicted (default: yes; with --weights_dir "
        "the checkpoint's)",
    )
    weights_dir: str | None = option(
        None, "warm start: a CLIP-GPT checkpoint folder, a folder holding one, or a GPT-2 folder in its layout"
    )


@dataclass(frozen=True)
class ClipGptTaskConfig(FeatureTaskConfig):
    """What a CLIP-GPT learns."""

    embedding_loss: EmbeddingLoss = option(
        "contrastive",
        "how a predicted embedding is compared with its image's: squared error (the original's), cosine, or "
        "contrasted with those of the other images of the step",
    )
    text_weight: float = option(1.0, "weight of the text's loss, the mean over its tokens")
    embedding_weight: float = option(0.1, "weight of the embeddings' loss, the mean over them (mse needs 1 or more)")
    contrastive_temp: float = option(0.05, "temperature of --embedding_loss contrastive")
    projection_lr: float = option(1e-3, "peak learning rate of the projections, where CLIP's width is not the LM's")
    images_per_sequence: int = option(1, "images, each with its caption, in one sequence")
    clip_recall: bool = option(True, "compare with the recall of CLIP's own text tower on the held-out images")

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("images_per_sequence", self.images_per_sequence, 1)
        for name in ("text_weight", "embedding_weight", "projection_lr"):
            at_least(name, getattr(self, name), 0)
        if not self.contrastive_temp > 0:
            raise ClipcapError(f"--contrastive_temp must be above 0, got {self.contrastive_temp}")
        if not self.text_weight + self.embedding_weight > 0:
            raise ClipcapError("--text_weight and --embedding_weight are both 0: there would be nothing to learn")


@dataclass(frozen=True)
class TrainClipGptConfig(FeatureTrainConfig):
    """A training run of CLIP-GPT."""

    model: InitialClipGptConfig = part(InitialClipGptConfig)
    task: ClipGptTaskConfig = part(ClipGptTaskConfig)
    loop: ClipGptLoopConfig = part(ClipGptLoopConfig)


@dataclass(frozen=True)
class LoadClipGptConfig(LoadOptions):
    """Which CLIP-GPT to load, and what its files may lack."""

    load_pt: str | None = option(
        None, "checkpoint: a folder made by train-clip-gpt, a hub name, or a GPT-2 folder in the original's layout"
    )
    lm: str | None = option(None, "the new place of the language model that a checkpoint names")
    normalize_prefix: bool | None = option(
        None, "whether a folder in the original's layout was trained on normalised embeddings (default: yes)"
    )
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "float32",
        "numbers to multiply in: bfloat16, faster where the processor or GPU has it; auto: where a CPU is faster in "
        "it; some captions differ",
        group="machine",
    )


@dataclass(frozen=True)
class CaptionClipGptConfig(CaptionConfig):
    """A CLIP-GPT, and what it captions."""

    load: LoadClipGptConfig = part(LoadClipGptConfig)


@dataclass(frozen=True)
class ImagineConfig(Options, group="query"):
    """A search for the pictures that CLIP-GPT imagines."""

    load: LoadClipGptConfig = part(LoadClipGptConfig)
    index: str = option("", "where to look: features, an index made by `clipcap index`, or one of clip-retrieval")
    k: int = option(5, "matches to show", group="output")
    out: str | None = option(None, "write the matches: NAME.jsonl, or a labelled grid, NAME.png", group="output")
    round_trip: bool = option(False, "also caption the imagined embedding", group="output")

    def __post_init__(self) -> None:
        at_least("k", self.k, 1)
        if not self.index:
            raise ClipcapError("--index is missing: features of the pictures, or an index made by `clipcap index`")
