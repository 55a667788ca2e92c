"""The objective that a run's options name, and the features that it learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import numpy as np
from accelerate import Accelerator
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.errors import ClipcapError
from clipcap.features.feature_set import Features
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.encoders.load import load_encoder
from clipcap.training.config import ObjectiveConfig, TrainConfig
from clipcap.training.data import training_features
from clipcap.training.extra_pairs import ExtraPairs, read_extra
from clipcap.training.objective import CrossEntropy, Objective, Steps
from clipcap.training.reward_objective import RewardObjective
from clipcap.training.scoring import Scoring
from clipcap.training.text_data import text_features
from clipcap.training.text_objective import TextObjective

Prepared = tuple[TrainConfig, Features, Features | None, Callable[[Steps], Objective]]


def prepare(config: TrainConfig) -> Prepared:
    """A run's config with what its objective asks for, its features and what makes its objective.

    Returns:
        the config; the features to train on; those to validate on, or None; the objective of the run's steps.
    Raises:
        ClipcapError: options at odds with the objective, or bad data.
    """
    extra = config.task.extra if config.task.extra_share else None
    if config.prompting.prompts != "none":
        refused = {"--objective text": config.learning.objective == "text", "--extra": extra,
                   "--recipe reference": config.loop.recipe == "reference"}  # fmt: skip
        for flag in (flag for flag, there in refused.items() if there):
            raise ClipcapError(f"--prompts does not go with {flag}: leave one of them out")
    if extra and config.learning.objective != "cross_entropy":
        raise ClipcapError("--extra adds pairs to --objective cross_entropy: leave one of them out")
    if config.learning.objective == "text":
        return _texts(config)
    if config.learning.objective == "reward":
        config = _for_reward(config)
    features, val = _photos(config)
    if extra:
        pairs = read_extra(extra, features)
        return config, features, val, partial(ExtraPairs, extra=pairs, share=config.task.extra_share)
    return config, features, val, CrossEntropy


def _for_reward(config: TrainConfig) -> TrainConfig:
    """Turn dropout off and choose `best` by CIDEr-D: a model can learn to exploit its reward, and the loss does not
    measure the quality of captions."""
    if not config.model.weights_dir:
        raise ClipcapError(
            "--objective reward goes on from a captioner that cross-entropy has trained: pass --weights_dir"
        )
    if config.task.overfit or config.loop.recipe == "reference":
        raise ClipcapError("--objective reward knows neither --overfit nor --recipe reference: leave them out")
    return replace(config, task=replace(config.task, select="cider", dropout=False))


def reward_objective(
    config: ObjectiveConfig,
    features: Features,
    model: ClipCaptionModel,
    tokenizer: Tokenizer,
    accelerator: Accelerator,
) -> Callable[[Steps], Objective]:
    """What makes the objective of self-critical training of a model on these features.

    Raises:
        ClipcapError: the reward needs the features' encoder, and it is not to be had.
    """
    encoder = None
    if config.reward != "cider":
        if features.meta.encoder is None:
            raise ClipcapError(f"{features.path}: does not say its encoder: name it with --clip_model_type")
        encoder = load_encoder(features.meta.encoder, str(accelerator.device))
    index = features.image_index
    order = np.argsort(index, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(index[order])) + 1)
    references = [[features.captions[int(number)] for number in group] for group in groups]
    scoring = Scoring(config.reward, references, config.reward_end, config.score_worker, encoder)
    return partial(
        RewardObjective, model=model, tokenizer=tokenizer, accelerator=accelerator, scoring=scoring, config=config
    )


def _photos(config: TrainConfig) -> tuple[Features, Features | None]:
    """Features of photos alone."""
    chosen = config.features
    if not isinstance(chosen.data, str):
        raise ClipcapError("--data names several sets: photos and texts together need --objective text")
    if chosen.photos:
        raise ClipcapError("--photos belongs to --objective text: photos with captions go to --data")
    return training_features(chosen.of_photos(chosen.data), config.loop.seed, config.task.overfit)


def _texts(config: TrainConfig) -> Prepared:
    """Texts in place of photos: both are of unit length, in training and in prediction."""
    if config.model.normalize_prefix is False or config.loop.recipe == "reference":
        raise ClipcapError(
            "--objective text needs texts and photos of one length: leave out --no_normalize_prefix and "
            "--recipe reference"
        )
    if config.task.overfit:
        raise ClipcapError("--overfit is a self-test on photos: leave it out with --objective text")
    if config.model.mapping_type == "project":
        raise ClipcapError(
            "--objective text learns from texts, which have no tokens of an image: choose --mapping_type mlp or "
            "transformer"
        )
    features, val, inputs = text_features(config.features, config.learning.noise, config.loop.seed)
    config = replace(config, model=replace(config.model, normalize_prefix=True))
    return config, features, val, partial(TextObjective, inputs=inputs)
