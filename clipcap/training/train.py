"""Train a captioner: features, model and validation put together for the loop."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import set_seed
from transformers import PreTrainedModel
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.captioning.captioner import Captioner
from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder, check_tokens, for_model
from clipcap.features.feature_set import Features
from clipcap.models.caption_model import ClipCaptionModel, token_layout
from clipcap.models.checkpoint import Loaded, load_checkpoint
from clipcap.models.config import ModelConfig, Template
from clipcap.models.language_model import check_vocabulary, load_lm, load_tokenizer, token_embeddings
from clipcap.models.lm_text import LmText, end_captions_with, lm_text
from clipcap.models.mapper import positions_of_tokens
from clipcap.options import Recipe, given
from clipcap.prompts.template import PromptText
from clipcap.runtime.hub import absolute, check_login
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.run_file import write_run_file
from clipcap.runtime.text import printable
from clipcap.training.accelerator import make_accelerator
from clipcap.training.caption_task import CaptionTask
from clipcap.training.config import InitialCaptionerConfig, TrainConfig
from clipcap.training.curves import write_curves
from clipcap.training.loop import Loop
from clipcap.training.prepare import prepare, reward_objective
from clipcap.training.prompting import DrawnPrompts, Prompting, open_prompting
from clipcap.training.recipe import Length, Start, too_short, with_length
from clipcap.training.run_folder import check_run_folder


@writes_to(lambda called: given(TrainConfig, called["config"], called["options"]).loop.out_dir)
def train(config: TrainConfig | None = None, **options: Any) -> Path:
    """Train a captioner.

    >>> train(data="food_train.pkl", only_prefix=True, epochs=5)

    Args:
        config: of the run (default: the defaults of `clipcap train`).
        options: in place of those of `config`, by the names of their flags.
    Returns:
        the folder of the `best` checkpoint.
    Raises:
        ClipcapError: a run that would be replaced, bad data, options at odds, a loss that is not finite; what was
            saved stays.
    """
    config = given(TrainConfig, config, options)
    loop = config.loop
    check_run_folder(loop)
    if config.push_to_hub:
        check_login(config.push_to_hub)
    accelerator = make_accelerator(loop, config.flat())
    config, features, val, objective = prepare(config)
    set_seed(loop.seed)
    prompting = open_prompting(config.prompting, features, str(accelerator.device))
    model, tokenizer, summary = initial_captioner(config.model, features, loop.recipe, config.task.dropout, prompting)
    moved = config.learning.objective == "text" and config.features.photos is not None
    model.config = replace(model.config, texts_moved=moved)
    logger.info(f"{printable(summary)}\n{model.parameter_report()}")
    features, val = for_model(features, model), None if val is None else for_model(val, model)
    start = Start.of_model(model, warm=config.model.weights_dir is not None)
    config, length = with_length(config, len(features.captions), start, accelerator.num_processes)
    loop = config.loop
    text = None
    if prompting:
        text = PromptText(tokenizer, model.config.prompts, model.config.prompt_captions, model.config.prompt_tokens)
        val = None if val is None else prompting.with_best(val, text)
    if config.learning.objective == "reward":
        features = prompting.with_best(features, text) if prompting and text else features
        objective = reward_objective(config.learning, features, model, tokenizer, accelerator)
    task = CaptionTask(config.task, loop, model, tokenizer, features, val, accelerator, objective, start)
    if prompting and text:
        task.prompts = DrawnPrompts(prompting, task.data, text, loop.seed)
    logger.info(task.describe())
    _report_length(config, length, start, task.steps_per_epoch())
    if accelerator.is_main_process:
        write_run_file(Path(loop.out_dir), "train", config.flat())
    try:
        best = Loop(task, loop, accelerator).fit()
    finally:
        task.objective.close()
    if accelerator.is_main_process:
        write_curves(Path(loop.out_dir))
        if config.push_to_hub:
            _push(best, config.push_to_hub)
    return best


def _report_length(config: TrainConfig, length: Length | None, start: Start, per_epoch: int) -> None:
    """State how long a run is that chose its length, and warn of one from scratch that is too short to learn.

    Args:
        config: with batch and epochs.
        length: as chosen; None where all of it was given.
        start: what the run starts from.
        per_epoch: optimiser steps of an epoch, as the data are batched.
    """
    loop = config.loop
    if length:
        logger.info(replace(length, per_epoch=per_epoch).describe(loop.max_steps))
    asked_for_a_try = loop.max_steps or config.task.overfit or config.features.limit
    warning = too_short(per_epoch * (loop.epochs or 0), start)
    if warning and not asked_for_a_try and loop.recipe != "reference":
        logger.warning(warning)


def _push(best: Path, name: str) -> None:
    """Upload the best checkpoint.

    Raises:
        ClipcapError: it could not be uploaded; the message names the command that tries again.
    """
    try:
        logger.info(f"uploaded: {Captioner.from_pretrained(best, device='cpu').push_to_hub(name)}")
    except ClipcapError as error:
        raise ClipcapError(f"{error}; the checkpoint is at {best}: clipcap push {best} {name}") from error


def initial_captioner(
    config: InitialCaptionerConfig,
    features: Features,
    recipe: Recipe,
    dropout: bool = True,
    prompting: Prompting | None = None,
) -> tuple[ClipCaptionModel, Tokenizer, str]:
    """A new model, or a warm start from --weights_dir, that reads the prompts of the run."""
    if config.weights_dir:
        return _warm_start(config, config.weights_dir, features, recipe, dropout, prompting)
    lm = config.lm or ModelConfig.lm
    network, tokenizer = load_lm(lm), load_tokenizer(lm)
    check_vocabulary(network, tokenizer, f"--lm {lm}")
    text = _text_around(network, tokenizer, config.template or "none", recipe)
    model_config = ModelConfig(
        **{"num_heads": _heads(config, network, recipe), **_given(config), **asdict(text)},
        **_tokens_read(config, features),
        lm=absolute(lm),
        clip_dim=features.dim,
        encoder=features.meta.encoder,
        encoder_weights_id=features.meta.encoder_weights_id,
        tune=config.tuning,
        stop_token="." if recipe == "reference" else None,
        recipe=recipe,
        **(prompting.of_model(tokenizer) if prompting else {}),
    )
    if model_config.mapping_type == "project":
        model_config = replace(model_config, prefix_length=positions_of_tokens(model_config))
    model = ClipCaptionModel(model_config, network, dropout)
    if config.match_norms:
        some = features.given(range(min(MEASURED, features.num_images)))
        model.match_norms(some)
    return model, tokenizer, f"new {model_config.mapping_type} mapper before {lm}"


def _tokens_read(config: InitialCaptionerConfig, features: Features) -> dict[str, Any]:
    """Which tokens of the features a new mapper reads, as options of its model."""
    layout = features.meta.tokens
    if layout is None or config.mapping_type in (None, "mlp") or not config.read_tokens:
        if layout is not None and config.mapping_type in (None, "mlp"):
            logger.info("the features hold tokens, which --mapping_type mlp does not read: transformer or project do")
        return {}
    names = ("layer", "pool", "count", "width", "extra")
    return {"tokens": layout.name, **{f"token_{name}": getattr(layout, name) for name in names}}


MEASURED = 256  # images by which --match_norms measures the mapper


def _text_around(lm: PreTrainedModel, tokenizer: Tokenizer, template: Template, recipe: Recipe) -> LmText:
    """The text around the image's positions; captions are taught to end as the template's turns do."""
    if recipe == "reference":
        if template != "none":
            raise ClipcapError(f"--template {template}: the original has none: leave it out, or --recipe reference")
        return LmText()
    text = lm_text(lm, tokenizer, template)
    if template == "chat" and text.ends:
        end_captions_with(tokenizer, text.ends[0])
    return text


def _heads(config: InitialCaptionerConfig, lm: PreTrainedModel, recipe: Recipe) -> int:
    """Attention heads of a new transformer mapper: 8, or the nearest number that divides the embeddings' width."""
    width, usual = token_embeddings(lm).embedding_dim, ModelConfig.num_heads
    if recipe == "reference" or config.mapping_type != "transformer":
        return usual
    return min((n for n in range(1, 2 * usual) if width % n == 0), key=lambda n: (abs(n - usual), -n))


_SIZES = (
    "mapping_type", "projection", "projection_hidden", "space_to_depth", "template", "prefix_length",
    "prefix_length_clip", "num_layers", "num_heads", "lora_rank",
)  # fmt: skip


def _given(config: InitialCaptionerConfig) -> dict[str, Any]:
    """What the run's options say of the model; the rest is the checkpoint's, or by default."""
    return {name: value for name in (*_SIZES, "normalize_prefix") if (value := getattr(config, name)) is not None}


def _warm_start(
    config: InitialCaptionerConfig,
    weights: str,
    features: Features,
    recipe: Recipe,
    dropout: bool,
    prompting: Prompting | None,
) -> tuple[ClipCaptionModel, Tokenizer, str]:
    """Weights and sizes of a checkpoint; what is trained of them follows this run's options."""
    loaded = load_checkpoint(weights, config.lm, config.num_heads)
    old = loaded.model.config
    guessed = features.meta.encoder_guessed or Path(loaded.path).is_file()
    expected = None if guessed and features.dim == old.clip_dim else old.encoder  # guesses may differ
    check_same_encoder(
        features.meta, features.dim, expected, old.encoder_weights_id, old.clip_dim,
        features.path, f"the checkpoint {loaded.path}",
    )  # fmt: skip
    check_tokens(features, token_layout(old), f"the checkpoint {loaded.path}")
    _check_sizes(config, old)
    if old.tune == "lora" and config.tuning != "lora":
        raise ClipcapError(
            f"--weights_dir {config.weights_dir} holds a LoRA adapter: go on with --tune lora, or merge it first by "
            f"`clipcap export`"
        )
    if old.prompts != "none" and (prompting is None or prompting.config.prompts != old.prompts):
        raise ClipcapError(
            f"--weights_dir {config.weights_dir} reads prompts: go on with --prompts {old.prompts}, and what it needs"
        )
    new = replace(
        old,
        **(prompting.of_model(loaded.tokenizer) if prompting else {}),
        **_given(config),
        encoder=features.meta.encoder,
        encoder_weights_id=features.meta.encoder_weights_id,
        **_text_of_warm_start(config, loaded, recipe),
        tune=config.tuning,
        lm_stored=(old.lm_stored or old.tune == "full") and not _is_base(loaded.model, old.lm),
        stop_token="." if recipe == "reference" else None,
        recipe=recipe,
    )
    model = ClipCaptionModel(new, loaded.model.lm, dropout)
    model.mapper.load_state_dict(loaded.model.mapper.state_dict())
    return model, loaded.tokenizer, f"warm start from {loaded.summary}{_new_to_it(old, new)}"


def _new_to_it(old: ModelConfig, new: ModelConfig) -> str:
    """What a run lets a checkpoint read that it has not read so far, as the end of a line; empty for nothing."""
    if new.prompts != old.prompts:
        return "; it has read no prompts so far, and learns to from here on"
    if new.prompts == "captions" and new.prompt_captions != old.prompt_captions:
        return f"; it has read {old.prompt_captions} captions of a prompt so far, here {new.prompt_captions}"
    return ""


def _text_of_warm_start(config: InitialCaptionerConfig, loaded: Loaded, recipe: Recipe) -> dict[str, Any]:
    """The text around the image's positions: the checkpoint's, or that of --template."""
    old = loaded.model.config
    if config.template in (None, old.template):
        if old.template == "chat" and old.ends:
            end_captions_with(loaded.tokenizer, old.ends[0])
        return {}
    return asdict(_text_around(loaded.model.lm, loaded.tokenizer, config.template, recipe))


def _check_sizes(config: InitialCaptionerConfig, old: ModelConfig) -> None:
    """Refuse sizes that were asked for and are not the checkpoint's."""
    counting = ["mapping_type", "prefix_length"]
    if old.mapping_type == "project":
        counting += ["projection", "projection_hidden", "space_to_depth"]
    if old.mapping_type == "transformer":
        counting += ["prefix_length_clip", "num_layers", "num_heads"]
    if old.tune == "lora":
        counting.append("lora_rank")
    for name in counting:
        asked, there = getattr(config, name), getattr(old, name)
        if asked not in (None, there):
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
