"""Options of the dual encoder's training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import Options, at_least, option, part, within
from clipcap.sources.config import SourceConfig
from clipcap.training.config import FeaturesConfig, LoopConfig


@dataclass(frozen=True)
class ContrastiveLoopConfig(LoopConfig):
    """The training loop of a dual encoder."""

    out_dir: str = option("checkpoints/clip", "folder of the checkpoints", group="output")
    prefix: str = option("clip", "name the checkpoints start with", group="output")
    epochs: int = option(30, "passes over the images, each time with another caption of each")
    weight_decay: float = option(0.1, "AdamW weight decay (not of biases, norms and the temperature)")
    grad_clip: float = option(1.0, "clip the gradient's L2 norm (0: off)")
    seed: int = option(42, "seed of split, initial weights, order, crops and dropout")


@dataclass(frozen=True)
class TowersConfig(Options, group="model"):
    """The dual encoder that a run starts from: one to fine-tune, two towers of transformers, or a new CLIP."""

    clip_model_type: str | None = option(
        None, "fine-tune this CLIP: an OpenAI name, a checkpoint in OpenAI's format, hf:NAME_OR_PATH"
    )
    tokenizer: str | None = option(None, "tokenizer of an hf: CLIP whose folder has none")
    vision_model: str | None = option(None, "image tower of transformers, name or folder (with --text_model)")
    text_model: str | None = option(None, "text tower of transformers, name or folder (with --vision_model)")
    from_scratch: bool = option(False, "new weights in the architectures of --vision_model and --text_model")
    embed_dim: int = option(256, "width of the common embedding of a new model")
    resolution: int = option(128, "pixels of a new CLIP's input; of a --vision_model that does not state its own")
    patch_size: int = option(16, "pixels of a patch of a new CLIP's ViT")
    vision_width: int = option(192, "width of a new CLIP's image tower (64 is that of OpenAI's RN50)")
    vision_layers: str = option("6", "layers of a new CLIP's ViT, or the four stages of a ResNet: 3,4,6,3")
    text_width: int = option(128, "width of a new CLIP's text tower")
    text_layers: int = option(4, "layers of a new CLIP's text tower")
    max_seq_length: int | None = option(None, "cut captions to this many tokens (default: what the text tower takes)")

    def __post_init__(self) -> None:
        for name in ("embed_dim", "resolution", "patch_size", "text_layers"):
            at_least(name, getattr(self, name), 1)
        # OpenAI's format assumes heads of width 64 without storing it; a ResNet's attend over 32 times its width.
        steps = {"vision_width": 2 if "," in self.vision_layers else 64, "text_width": 64}
        for name, step in steps.items():
            if getattr(self, name) < step or getattr(self, name) % step:
                raise ClipcapError(f"--{name} must be a multiple of {step}, got {getattr(self, name)}")
        if self.max_seq_length is not None:
            at_least("max_seq_length", self.max_seq_length, 3)
        if bool(self.vision_model) != bool(self.text_model):
            raise ClipcapError("--vision_model and --text_model belong together: give both, or neither")
        if self.clip_model_type and self.vision_model:
            raise ClipcapError("--clip_model_type is a whole model: drop it, or --vision_model and --text_model")
        if self.from_scratch and not self.vision_model:
            raise ClipcapError("--from_scratch is for --vision_model and --text_model: a new CLIP is always so")


@dataclass(frozen=True)
class ContrastiveConfig(Options, group="training"):
    """A training run of a dual encoder: which one, and on what."""

    loop: ContrastiveLoopConfig = part(ContrastiveLoopConfig)  # first: its --seed is that of the source, too
    source: SourceConfig = part(SourceConfig)
    towers: TowersConfig = part(TowersConfig)
    freeze: Literal["none", "image", "text"] = option("none", "a tower that is not trained (its projection is)")
    head_lr: float | None = option(None, "learning rate of projections and temperature (1e-3, OpenAI's CLIP 1e-5)")
    image_lr: float | None = option(None, "of the image tower (new 1e-3, of transformers 1e-4, OpenAI's CLIP 1e-5)")
    text_lr: float | None = option(None, "of the text tower (new 1e-3, of transformers 1e-5, OpenAI's CLIP 1e-5)")
    bs: int = option(128, "images per batch and process: each is compared with all others of its batch",
                     aliases=("batch_size",))  # fmt: skip
    extra: str | None = option(
        None, "further pairs to train on, never to validate on: a set of `clipcap synthesise`, or any custom set",
        group="data",
    )  # fmt: skip
    extra_share: float = option(0.3, "share of every batch that comes from --extra; steps are counted by the others")
    crop: float = option(0.7, "smallest share of a picture that a random crop keeps (1: no augmentation)")
    flip: bool = option(False, "mirror half of the pictures (makes captions that name left and right wrong)")
    cache_mb: int = option(
        2000, "keep decoded pictures in memory where they take at most this much (0: never)", group="machine"
    )

    def __post_init__(self) -> None:
        at_least("bs", self.bs, 1)
        for name in ("head_lr", "image_lr", "text_lr"):
            at_least(name, getattr(self, name) or 0, 0)
        within("crop", self.crop, 0.05, 1)
        at_least("cache_mb", self.cache_mb, 0)
        if not 0 <= self.extra_share < 1:
            raise ClipcapError(f"--extra_share is a share below 1, got {self.extra_share}")


@dataclass(frozen=True)
class TextTowerConfig(Options, group="model"):
    """The text tower and the common space of a locked-image dual encoder."""

    weights_dir: str | None = option(None, "warm start: a checkpoint of this command, of the same sizes")
    embed_dim: int = option(256, "width of the common embedding")
    text_width: int = option(128, "width of the text tower")
    text_layers: int = option(2, "layers of the text tower")
    max_seq_length: int = option(77, "cut captions to this many tokens")

    def __post_init__(self) -> None:
        for name in ("embed_dim", "text_layers"):
            at_least(name, getattr(self, name), 1)
        at_least("max_seq_length", self.max_seq_length, 3)
        if self.text_width < 64 or self.text_width % 64:
            raise ClipcapError(f"--text_width must be a multiple of 64, got {self.text_width}")


@dataclass(frozen=True)
class LockedImageConfig(Options, group="training"):
    """A training run of a text tower for stored features of an image network that stays as it is."""

    loop: ContrastiveLoopConfig = part(ContrastiveLoopConfig)
    features: FeaturesConfig = part(FeaturesConfig)
    towers: TextTowerConfig = part(TextTowerConfig)
    head_lr: float = option(1e-3, "learning rate of projections and temperature")
    text_lr: float = option(1e-3, "of the text tower")
    bs: int = option(512, "images per batch and process: each is compared with all others of its batch",
                     aliases=("batch_size",))  # fmt: skip
    dropout: float = option(0.2, "of the features and of the embedded words")

    def __post_init__(self) -> None:
        at_least("bs", self.bs, 1)
        for name in ("head_lr", "text_lr"):
            at_least(name, getattr(self, name), 0)
        if not 0 <= self.dropout < 1:
            raise ClipcapError(f"--dropout is a share below 1, got {self.dropout}")

    def as_pairs(self) -> ContrastiveConfig:
        """These options as those of training on pictures."""
        return ContrastiveConfig(
            loop=self.loop, source=SourceConfig(data_path=self.features.data), head_lr=self.head_lr,
            text_lr=self.text_lr, bs=self.bs, crop=1.0,
        )  # fmt: skip
