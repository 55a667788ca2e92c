"""Train a captioner: features, model and validation put together for the loop."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import torch
from accelerate.utils import set_seed
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.caption_task import CaptionTask
from clipcap.checkpoint import load_checkpoint
from clipcap.config import ModelConfig, TrainConfig
from clipcap.encoders import is_resnet
from clipcap.errors import ClipcapError
from clipcap.features import Features, check_same_encoder, read_features, split_by_image
from clipcap.hub import absolute
from clipcap.launch import make_accelerator
from clipcap.lm import load_lm, load_tokenizer
from clipcap.loop import Loop
from clipcap.model import ClipCaptionModel, parameter_report


def train(config: TrainConfig) -> Path:
    """Run a training.

    Returns:
        the folder of the `best` checkpoint.
    Raises:
        ClipcapError: bad data, options at odds, a loss that is not finite; what was saved stays.
    """
    accelerator = make_accelerator(config)
    features, val = open_features(config)
    if val is not None:
        _check_finite(val)
    for line in dict.fromkeys(f.encoder_note for f in (features, val) if f is not None):
        if line:
            accelerator.print(line)
    set_seed(config.seed)
    model, tokenizer, summary = initial_model(config, features)
    accelerator.print(f"{summary}\n{parameter_report(model)}")
    task = CaptionTask(config, model, tokenizer, features, val, accelerator)
    accelerator.print(task.describe())
    return Loop(task, config, accelerator, task.restore).fit()


def open_features(config: TrainConfig) -> tuple[Features, Features | None]:
    """The training and validation features that the options name, checked against each other."""
    features = read_features(config.data, encoder=config.clip_model_type)
    if config.is_rn and is_resnet(features.meta.encoder) is False:
        raise ClipcapError(
            f"--is_rn: {config.data} holds features of {features.meta.encoder} ({features.dim} wide), which is no "
            f"ResNet: leave the flag out, or parse the images with a ResNet"
        )
    if config.overfit:
        few = one_caption_each(features, config.overfit)
        return few, few
    val = config.val or _sibling(config.data)
    if val is None:
        return features, None
    if _is_share(val):
        return split_by_image(features, float(val), config.seed)
    held_out = read_features(val, encoder=config.clip_model_type)
    meta = features.meta
    check_same_encoder(
        held_out.meta, held_out.dim, None if meta.encoder_guessed else meta.encoder, meta.encoder_weights_id,
        features.dim, val, f"the training features {config.data}",
    )  # fmt: skip
    return features, held_out


def _check_finite(val: Features) -> None:
    """Validation comes at the end of an epoch: too late to find out that its features are no good."""
    if len(bad := val.non_finite_rows()):
        image = val.image_ids[int(bad[0])]
        raise ClipcapError(f"{val.path}: the features of image {image} are not finite: parse the images again")


def one_caption_each(features: Features, images: int) -> Features:
    """The first caption of each of the first images."""
    _, first = np.unique(features.image_index, return_index=True)
    first = np.sort(first)[:images]
    few = features.subset_by_row(features.caption_rows[first])
    return replace(few, captions=[features.captions[int(i)] for i in first], caption_rows=np.arange(len(first)))


def _sibling(data: str) -> str | None:
    """The `*_val` file that parsing writes beside a `*_train` file."""
    path = Path(data)
    sibling = path.with_name(path.name.replace("_train", "_val"))
    return str(sibling) if sibling != path and sibling.exists() else None


def _is_share(text: str) -> bool:
    try:
        share = float(text)
    except ValueError:
        return False
    if not 0 < share < 1:
        raise ClipcapError(f"--val {text}: a share of the images lies between 0 and 1 (0.1)")
    return True


def initial_model(config: TrainConfig, features: Features) -> tuple[ClipCaptionModel, Tokenizer, str]:
    """A new model, or a warm start from --weights_dir."""
    if config.weights_dir:
        return _warm_start(config, features)
    model_config = ModelConfig(
        **{name: getattr(config, name) for name in _COPIED},
        lm=absolute(config.lm),
        clip_dim=features.dim,
        encoder=features.meta.encoder,
        encoder_weights_id=features.meta.encoder_weights_id,
        tune=config.tuning,
        stop_token="." if config.recipe == "reference" else None,
    )
    model = ClipCaptionModel(model_config, load_lm(config.lm))
    return model, load_tokenizer(config.lm), f"new {config.mapping_type} mapper before {config.lm}"


_SIZES = ("mapping_type", "prefix_length", "prefix_length_clip", "num_layers", "num_heads")
_COPIED = (*_SIZES, "normalize_prefix", "lora_rank", "recipe")
_DEFAULTS = {f.name: f.default for f in fields(TrainConfig)}


def _warm_start(config: TrainConfig, features: Features) -> tuple[ClipCaptionModel, Tokenizer, str]:
    """Weights and sizes of a checkpoint; what is trained of them follows this run's options."""
    lm = None if config.lm == _DEFAULTS["lm"] else config.lm
    loaded = load_checkpoint(config.weights_dir, lm, config.num_heads)
    old = loaded.model.config
    guessed = features.meta.encoder_guessed or Path(loaded.path).is_file()
    check_same_encoder(
        features.meta, features.dim, None if guessed else old.encoder, old.encoder_weights_id, old.clip_dim,
        config.data, f"the checkpoint {loaded.path}",
    )  # fmt: skip
    _check_sizes(config, old)
    if old.tune == "lora" and config.tuning != "lora":
        raise ClipcapError(
            f"--weights_dir {config.weights_dir} holds a LoRA adapter: go on with --tune lora, or merge it first by "
            f"`clipcap export`"
        )
    new = replace(
        old,
        normalize_prefix=old.normalize_prefix or config.normalize_prefix,
        encoder=features.meta.encoder,
        encoder_weights_id=features.meta.encoder_weights_id,
        tune=config.tuning,
        lora_rank=old.lora_rank if old.tune == "lora" else config.lora_rank,
        lm_stored=(old.lm_stored or old.tune == "full") and not _is_base(loaded.model, old.lm),
        stop_token="." if config.recipe == "reference" else None,
        recipe=config.recipe,
    )
    if old.tune == "lora":
        loaded.model.config = new
        model = loaded.model
    else:
        model = ClipCaptionModel(new, loaded.model.lm)
        model.mapper.load_state_dict(loaded.model.mapper.state_dict())
    return model, loaded.tokenizer, f"warm start from {loaded.summary}"


def _check_sizes(config: TrainConfig, old: ModelConfig) -> None:
    """Refuse sizes that were asked for and are not the checkpoint's; by default they are the checkpoint's."""
    only_transformer = ("prefix_length_clip", "num_layers", "num_heads")
    for name in _SIZES:
        asked, there = getattr(config, name), getattr(old, name)
        counts = old.mapping_type == "transformer" or name not in only_transformer
        if counts and asked not in (_DEFAULTS[name], there):
            raise ClipcapError(
                f"--{name} {asked}: the checkpoint {config.weights_dir} has {there}: leave the flag out, or start "
                f"without --weights_dir"
            )


def _is_base(model: ClipCaptionModel, lm: str) -> bool:
    """Whether the model's language model has the very weights of `lm`, so that they need not be stored again."""
    try:
        base = load_lm(lm).state_dict()
    except ClipcapError:
        return False
    own = model.lm.state_dict()
    return own.keys() == base.keys() and all(torch.equal(own[k], base[k]) for k in own)
