"""Train CLIP-GPT: features, model and validation put together for the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from accelerate.utils import set_seed
from transformers import PreTrainedModel

from clipcap.clip_gpt.checkpoint import load_clip_gpt
from clipcap.clip_gpt.config import ClipGptConfig, ClipGptTaskConfig, InitialClipGptConfig, TrainClipGptConfig
from clipcap.clip_gpt.model import ClipGPT
from clipcap.clip_gpt.sequences import Layout
from clipcap.clip_gpt.task import InterleavedTask
from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import Features
from clipcap.models.language_model import check_vocabulary, load_lm, load_tokenizer
from clipcap.runtime.hub import absolute
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.run_file import write_run_file
from clipcap.runtime.text import printable
from clipcap.training.accelerator import make_accelerator
from clipcap.training.curves import write_curves
from clipcap.training.data import training_features
from clipcap.training.loop import Loop
from clipcap.training.run_folder import check_run_folder


@writes_to("config.loop.out_dir")
def train_clip_gpt(config: TrainClipGptConfig) -> Path:
    """Run a training.

    Returns:
        the folder of the `best` checkpoint.
    Raises:
        ClipcapError: a run that would be replaced, bad data, options at odds, a loss that is not finite; what was
            saved stays.
    """
    loop = config.loop
    check_run_folder(loop)
    accelerator = make_accelerator(loop, config.flat())
    features, val = training_features(config.features, loop.seed, config.task.overfit)
    set_seed(loop.seed)
    model, summary = initial_clip_gpt(config.model, config.task, features)
    logger.info(f"{printable(summary)}\n{model.parameter_report()}")
    task = InterleavedTask(config.task, loop, model, model.layout.tokenizer, features, val, accelerator)
    logger.info(task.describe())
    if accelerator.is_main_process:
        write_run_file(Path(loop.out_dir), "train-clip-gpt", config.flat())
    best = Loop(task, loop, accelerator).fit()
    if accelerator.is_main_process:
        write_curves(Path(loop.out_dir))
    return best


def initial_clip_gpt(
    config: InitialClipGptConfig, task: ClipGptTaskConfig, features: Features
) -> tuple[ClipGPT, str]:
    """A new model, or a warm start from --weights_dir, and a line that says which."""
    if config.weights_dir:
        return _warm_start(config, config.weights_dir, task, features)
    lm = config.lm or ClipGptConfig.lm
    model_config = ClipGptConfig(
        clip_dim=features.dim,
        normalize_prefix=config.normalize_prefix is not False,
        encoder=features.meta.encoder,
        encoder_weights_id=features.meta.encoder_weights_id,
        lm=absolute(lm),
        tune=config.tuning,
        lora_rank=config.lora_rank or ClipGptConfig.lora_rank,
    )
    network, tokenizer = load_lm(lm), load_tokenizer(lm)
    check_vocabulary(network, tokenizer, f"--lm {lm}")
    return _clip_gpt(task, model_config, network, Layout(tokenizer)), f"new CLIP-GPT of {lm}"


def _clip_gpt(task: ClipGptTaskConfig, model: ClipGptConfig, lm: PreTrainedModel, layout: Layout) -> ClipGPT:
    """A model that is trained with this task's losses and dropout."""
    return ClipGPT(
        model,
        lm,
        layout,
        embedding_loss=task.embedding_loss,
        contrastive_temp=task.contrastive_temp,
        lm_dropout=task.dropout,
    )


def _warm_start(
    config: InitialClipGptConfig, weights: str, task: ClipGptTaskConfig, features: Features
) -> tuple[ClipGPT, str]:
    """A checkpoint's weights; what is trained of them follows this run's options."""
    loaded = load_clip_gpt(weights, config.lm, normalize_prefix=config.normalize_prefix)
    model, old = loaded.model, loaded.model.config
    check_same_encoder(
        features.meta, features.dim, old.encoder, old.encoder_weights_id, old.clip_dim, features.path,
        f"the checkpoint {loaded.path}",
    )  # fmt: skip
    if old.tune == "lora" and (config.tuning != "lora" or config.lora_rank not in (None, old.lora_rank)):
        raise ClipcapError(
            f"--weights_dir {config.weights_dir} holds a LoRA adapter of rank {old.lora_rank}: go on with "
            f"--tune lora and without --lora_rank"
        )
    new = replace(
        old,
        encoder=features.meta.encoder,
        encoder_weights_id=features.meta.encoder_weights_id,
        tune=config.tuning,
        lora_rank=config.lora_rank or old.lora_rank,
        lm_stored=old.stores_lm,
        stop_token=None,
    )
    for hook in model.token_hooks:
        hook.remove()
    started = _clip_gpt(task, new, model.lm, model.layout)
    started.project_in.load_state_dict(model.project_in.state_dict())
    started.project_out.load_state_dict(model.project_out.state_dict())
    return started, f"warm start from {loaded.summary}"
