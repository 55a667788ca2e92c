"""Options of training on features: what captioners and CLIP-GPT have in common, and a captioner's own."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, Literal

from clipcap.errors import ClipcapError
from clipcap.models.config import ModelConfig, Template, Tune
from clipcap.options import LARGEST_SEED, Options, Recipe, at_least, option, part, within
from clipcap.prompts.config import PromptConfig

LONGEST_WARMUP = 5000  # steps, the original's


@dataclass(frozen=True)
class LoopConfig(Options, group="training"):
    """The training loop, whatever it trains."""

    out_dir: str = option("checkpoints", "folder of the checkpoints", group="output")
    prefix: str = option("clipcap", "name the checkpoints start with", group="output")
    epochs: int = option(10, "passes over the data")
    save_every: int | None = option(
        None, "epochs between numbered checkpoints (default: none is written, or 1 with --keep)", group="output"
    )
    save_steps: int = option(
        0, "also save `last` every this many optimiser steps (0: at epoch ends only)", group="output"
    )
    keep: int | None = option(
        None, "numbered checkpoints to keep beside best and last (default: none, or 0 with --save_every; 0: all)",
        group="output",
    )  # fmt: skip
    max_steps: int = option(0, "stop after this many optimiser steps, the schedule with them (0: all epochs)")
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
    tracker: Literal["none", "tensorboard", "wandb"] = option("none", "also log to", group="output")
    dtype: Literal["auto", "float32", "bfloat16"] = option(
        "float32",
        "bfloat16: mixed precision, with weights, loss and norms in float32; auto: where the processor is faster in "
        "it (what accelerate launch --mixed_precision states counts)",
        group="machine",
    )

    def __post_init__(self) -> None:
        for name in ("epochs", "grad_accum"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        for name in ("save_steps", "max_steps", "patience", "weight_decay", "grad_clip"):
            at_least(name, getattr(self, name), 0)
        if self.save_every is not None:
            at_least("save_every", self.save_every, 1)
        if self.keep is not None:
            at_least("keep", self.keep, 0)
        within("seed", self.seed, 0, LARGEST_SEED)
        if self.warmup_steps is not None:
            at_least("warmup_steps", self.warmup_steps, 0)
        if not self.prefix or self.prefix.startswith(".") or "/" in self.prefix:
            raise ClipcapError(f"--prefix {self.prefix!r}: must be a name, with no dot before it and no / in it")

    @property
    def precision(self) -> str:
        """The numbers to multiply in: auto, float32 or bfloat16."""
        return self.dtype

    @property
    def numbering(self) -> int:
        """Epochs between numbered checkpoints; 0 where none is written."""
        return self.save_every or int(self.keep is not None)

    def numbered_checkpoints(self) -> int:
        """How many numbered checkpoints the run holds in the end; the last epoch has one."""
        if not self.numbering:
            return 0
        written = -(-self.epochs // self.numbering)
        return min(written, self.keep) if self.keep else written

    def warmup(self, total: int) -> int:
        """Steps of warm-up of a run of `total` optimiser steps."""
        return min(LONGEST_WARMUP, total // 10) if self.warmup_steps is None else self.warmup_steps


def of_checkpoint(name: str) -> Any:
    """A training option that `ModelConfig` stores; None where it is not given, and --weights_dir decides."""
    stored = ModelConfig.__dataclass_fields__[name]
    default = "no" if stored.default is False else stored.default
    return option(None, f"{stored.metadata['help']} (default: {default}; with --weights_dir the checkpoint's)")


@dataclass(frozen=True)
class FeaturesConfig(Options, group="data"):
    """The features to train on, and those to validate on."""

    data: str = option("data/food_train.pkl", "feature file or folder to train on")
    val: str | None = option(
        None,
        "validation: a feature file, or a share of the images (0.1) split off "
        "(default: the *_val file beside a *_train file)",
    )
    clip_model_type: str | None = option(None, "encoder of the features, where an old file does not state it")
    is_rn: bool = option(False, "the features come from a ResNet CLIP (checked against the data)")
    limit: int = option(0, "train on the first images of the features alone, for a try (0: all)")


@dataclass(frozen=True)
class InitialModelConfig(Options, group="model"):
    """The model that a run starts from, and what it trains of the language model."""

    weights_dir: str | None = option(
        None, "warm start: a native checkpoint folder, a reference .pt, or a folder holding one"
    )
    lm: str | None = of_checkpoint("lm")
    tune: Literal["none", "lora", "full"] | None = option(None, "what to train of the language model (default: full)")
    lora_rank: int | None = of_checkpoint("lora_rank")
    normalize_prefix: bool | None = of_checkpoint("normalize_prefix")

    def __post_init__(self) -> None:
        if self.lora_rank is not None:
            at_least("lora_rank", self.lora_rank, 1)

    @property
    def tuning(self) -> Tune:
        """What is trained of the language model: none, lora or full."""
        return self.tune or "full"


@dataclass(frozen=True)
class FeatureTaskConfig(Options, group="training"):
    """What a language model learns of CLIP embeddings and captions, and how it is validated."""

    bs: int = option(40, "captions per batch and process", aliases=("batch_size",))
    lr: float | None = option(2e-5, "peak learning rate")
    dropout: bool = option(True, "use the language model's dropout while it is tuned")
    max_tokens: int | None = option(
        None, "cut captions to this many tokens (default: what the model takes)", group="data"
    )
    gradient_checkpointing: bool = option(
        False,
        "compute the language model's activations twice instead of storing them: for large ones",
        group="machine",
    )
    select: Literal["auto", "loss", "cider", "recall"] = option("loss", "what decides the `best` checkpoint")
    val_captions: int = option(64, "held-out images captioned after each epoch")
    overfit: int = option(0, "self-test: train and validate on this many images, one caption each (0: off)")

    def __post_init__(self) -> None:
        for name in ("bs", "max_tokens"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 1)
        for name in ("lr", "val_captions", "overfit"):
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), 0)


@dataclass(frozen=True)
class FeatureTrainConfig(Options):
    """A training run on CLIP embeddings and captions."""

    features: FeaturesConfig = part(FeaturesConfig)
    model: InitialModelConfig = part(InitialModelConfig)
    task: FeatureTaskConfig = part(FeatureTaskConfig)
    loop: LoopConfig = part(LoopConfig)


@dataclass(frozen=True)
class CaptionerLoopConfig(LoopConfig):
    """The training loop of a captioner."""

    epochs: int | None = option(  # pyright: ignore[reportIncompatibleVariableOverride]  # `train` fills it in
        None, "passes over the data (default: by what is trained and how many captions, printed at the start)"
    )
    recipe: Recipe = option("default", "reference: the original's numbers (docs/migrating.md)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.recipe == "reference" and self.dtype == "bfloat16":
            raise ClipcapError("--recipe reference computes in float32, as the original: leave --dtype bfloat16 out")

    @property
    def precision(self) -> str:
        """As of any loop; the reference recipe is in float32."""
        return "float32" if self.recipe == "reference" else super().precision

    @property
    def numbering(self) -> int:
        """As of any loop; in the reference recipe every epoch has a numbered checkpoint, as the original's."""
        return super().numbering or int(self.recipe == "reference")

    def warmup(self, total: int) -> int:
        """As of any loop; in the reference recipe 5,000 whatever the run's length."""
        long = self.recipe == "reference" and self.warmup_steps is None
        return LONGEST_WARMUP if long else super().warmup(total)


@dataclass(frozen=True)
class InitialCaptionerConfig(InitialModelConfig):
    """The captioner that a run starts from: the sizes of its mapper, and what it trains of the language model."""

    only_prefix: bool = option(False, "train the mapper alone, the language model frozen (--tune none)")
    tune: Literal["none", "lora", "full"] | None = option(
        None, "what to train of the language model (default: full, or none with --only_prefix)"
    )
    mapping_type: Literal["mlp", "transformer", "project"] | None = of_checkpoint("mapping_type")
    projection: Literal["linear", "mlp"] | None = of_checkpoint("projection")
    projection_hidden: int | None = of_checkpoint("projection_hidden")
    space_to_depth: int | None = of_checkpoint("space_to_depth")
    read_tokens: bool = option(
        True,
        "--mapping_type transformer: read the tokens of features that have some; --no_read_tokens: the vector alone",
    )
    template: Template | None = of_checkpoint("template")
    match_norms: bool = option(
        False, "start a new mapper so that its outputs are as long as the language model's embeddings on average"
    )
    prefix_length: int | None = of_checkpoint("prefix_length")
    prefix_length_clip: int | None = of_checkpoint("prefix_length_clip")
    num_layers: int | None = of_checkpoint("num_layers")
    num_heads: int | None = of_checkpoint("num_heads")

    def __post_init__(self) -> None:
        super().__post_init__()
        sizes = (
            "prefix_length", "prefix_length_clip", "num_layers", "num_heads", "projection_hidden", "space_to_depth",
        )  # fmt: skip
        for name in (size for size in sizes if getattr(self, size) is not None):
            at_least(name, getattr(self, name), 1)
        if self.only_prefix and self.tune not in (None, "none"):
            raise ClipcapError(f"--only_prefix means --tune none, but --tune {self.tune} was given: drop one")
        if self.mapping_type == "project" and self.prefix_length is not None:
            raise ClipcapError(
                "--prefix_length is not for --mapping_type project, whose positions are the tokens': leave it out "
                "(--space_to_depth makes fewer)"
            )

    @property
    def tuning(self) -> Tune:
        """`tune` after --only_prefix and the default are applied: none, lora or full."""
        return "none" if self.only_prefix else super().tuning


@dataclass(frozen=True)
class CaptionerTaskConfig(FeatureTaskConfig):
    """What a captioner learns, and how."""

    bs: int | None = option(  # pyright: ignore[reportIncompatibleVariableOverride]  # `train` fills it in
        None, "captions per batch and process (default: by how many there are)", aliases=("batch_size",)
    )
    select: Literal["auto", "loss", "cider"] = option(
        "auto",
        "what decides the `best` checkpoint; auto: CIDEr-D of the held-out images that are captioned, where these "
        "are 64 or more, else the validation loss (--objective reward: always cider)",
    )
    val_captions: int = option(128, "held-out images captioned after each epoch")
    lr: float | None = option(
        None, "peak learning rate of all that is trained (default: by what is trained, printed at the start)"
    )
    lm_lr: float | None = option(
        None, "peak learning rate of the language model or its adapter (default: that of --lr, or by what is trained)"
    )
    extra: str | None = option(
        None, "features of further pairs to train on, such as generated ones; never validated on", group="data"
    )
    extra_share: float = option(0.3, "share of every batch that comes from --extra; steps are counted by the others")
    share_prefix: bool = option(
        True, "compute the prefix of an image once for all its captions in a batch (not in --recipe reference)"
    )
    compile: bool = option(
        False,
        "torch.compile the loss: takes minutes at the start, and pays in long runs",
        group="machine",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.lm_lr is not None:
            at_least("lm_lr", self.lm_lr, 0)
        if not 0 <= self.extra_share < 1:
            raise ClipcapError(f"--extra_share is a share below 1, got {self.extra_share}")


@dataclass(frozen=True)
class CaptionerFeaturesConfig(FeaturesConfig):
    """What a captioner learns from, and is validated on: photos, and for --objective text also texts."""

    data: str | tuple[str, ...] = option(  # pyright: ignore[reportIncompatibleVariableOverride]  # `prepare` alone reads it
        "data/food_train.pkl",
        "feature file or folder to train on; with --objective text a folder of texts, and captioned photos beside it "
        "where there are some",
    )
    photos: str | None = option(
        None, "--objective text: features of photos, captioned or not: the texts are moved to their mean"
    )

    def of_photos(self, data: str) -> FeaturesConfig:
        """These options, for one feature file of photos."""
        same: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(FeaturesConfig)}
        return FeaturesConfig(**{**same, "data": data})


RewardKind = Literal["cider", "cider+clip", "clip", "retrieval"]


@dataclass(frozen=True)
class ObjectiveConfig(Options, group="training"):
    """What a captioner's loss is made of."""

    objective: Literal["cross_entropy", "text", "reward"] = option(
        "cross_entropy",
        "cross_entropy: captions of photos; text: learn from texts alone; reward: from scores of its own captions",
    )
    noise: str = option(
        "auto",
        "--objective text: deviation of the noise per dimension; auto: from the mean cosine of captioned photos",
    )

    reward: RewardKind = option(
        "cider",
        "--objective reward: cider: CIDEr-D; cider+clip: with CLIPScore; retrieval: whether a caption finds its "
        "image among those of the step; clip and retrieval need --xe_weight or --force_clip_reward",
    )
    samples: int = option(5, "--objective reward: captions of an image that are scored; --bs counts them")
    sample_by: Literal["beam", "chance"] = option(
        "beam", "--objective reward: score the captions of a beam search, or draw them from the model's distribution"
    )
    xe_weight: float = option(0.0, "--objective reward: weight of a human caption of each image (0: none)")
    reward_end: bool = option(True, "--objective reward: the end of a caption counts as a word")
    force_clip_reward: bool = option(False, "reward by the encoder alone, though captions lose their grammar")
    score_worker: bool = option(True, "score samples in a process of its own, beside sampling", group="machine")

    def __post_init__(self) -> None:
        at_least("samples", self.samples, 2)
        at_least("xe_weight", self.xe_weight, 0)
        held = self.reward.startswith("cider") or self.xe_weight or self.force_clip_reward
        if self.objective == "reward" and not held:
            raise ClipcapError(
                f"--reward {self.reward} alone teaches captions that please the encoder and are not sentences: "
                f"take --reward cider+clip, or hold it by --xe_weight 0.1 (or pass --force_clip_reward)"
            )
        if self.noise != "auto":
            try:
                at_least("noise", float(self.noise), 0)
            except ValueError as error:
                raise ClipcapError(f"--noise {self.noise}: must be auto or a number") from error


@dataclass(frozen=True)
class TrainConfig(FeatureTrainConfig):
    """A training run of a captioner."""

    features: CaptionerFeaturesConfig = part(CaptionerFeaturesConfig)
    learning: ObjectiveConfig = part(ObjectiveConfig)
    prompting: PromptConfig = part(PromptConfig)
    push_to_hub: str | None = option(
        None, "upload the best checkpoint to the hub as USER/NAME, private, at the end", group="output"
    )
    model: InitialCaptionerConfig = part(InitialCaptionerConfig)
    task: CaptionerTaskConfig = part(CaptionerTaskConfig)
    loop: CaptionerLoopConfig = part(CaptionerLoopConfig)
