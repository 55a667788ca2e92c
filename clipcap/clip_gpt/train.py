"""Train CLIP-GPT: features, model and validation put together for the loop."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from accelerate.utils import set_seed

from clipcap.clip_gpt.checkpoint import load_clip_gpt, stores_lm
from clipcap.clip_gpt.config import ClipGptConfig, InitialClipGptConfig, TrainClipGptConfig
from clipcap.clip_gpt.model import ClipGPT
from clipcap.clip_gpt.sequences import Layout
from clipcap.clip_gpt.task import InterleavedTask
from clipcap.errors import ClipcapError
from clipcap.features.encoder_check import check_same_encoder
from clipcap.features.feature_set import Features
from clipcap.models.language_model import load_lm, load_tokenizer
from clipcap.runtime.hub import absolute
from clipcap.runtime.places import writes_to
from clipcap.runtime.text import printable
from clipcap.training.accelerator import make_accelerator
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
    features, val = training_features(config.features, loop.seed, config.task.overfit, accelerator.print)
    set_seed(loop.seed)
    model, summary = initial_model(config.model, features)
    accelerator.print(f"{printable(summary)}\n{parameter_report(model)}")
    task = InterleavedTask(config.task, loop, model, model.layout.tokenizer, features, val, accelerator)
    accelerator.print(task.describe())
    return Loop(task, loop, accelerator).fit()


def initial_model(config: InitialClipGptConfig, features: Features) -> tuple[ClipGPT, str]:
    """A new model, or a warm start from --weights_dir, and a line that says which."""
    if config.weights_dir:
        return _warm_start(config, features)
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
    return ClipGPT(model_config, load_lm(lm), Layout(load_tokenizer(lm))), f"new CLIP-GPT of {lm}"


def _warm_start(config: InitialClipGptConfig, features: Features) -> tuple[ClipGPT, str]:
    """A checkpoint's weights; what is trained of them follows this run's options."""
    loaded = load_clip_gpt(config.weights_dir, config.lm, normalize_prefix=config.normalize_prefix)
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
        lm_stored=stores_lm(old),
        stop_token=None,
    )
    if old.tune == "lora":
        model.config = new
        return model, f"warm start from {loaded.summary}"
    for hook in model.token_hooks:
        hook.remove()
    started = ClipGPT(new, model.lm, model.layout)
    for name in ("project_in", "project_out"):
        getattr(started, name).load_state_dict(getattr(model, name).state_dict())
    return started, f"warm start from {loaded.summary}"


def parameter_report(model: ClipGPT) -> str:
    """One line: trained and frozen parameters."""
    lm = {id(p): p for p in model.lm.parameters()}
    marks = [] if model.config.tune == "full" else model.token_weights()
    rows = sum(len(model.layout.marks) * weight.shape[1] for weight in marks)
    own = sum(p.numel() for p in model.parameters()) - sum(p.numel() for p in lm.values())
    tuned = sum(p.numel() for p in lm.values() if p.requires_grad) - sum(weight.numel() for weight in marks)
    frozen = sum(p.numel() for p in lm.values()) - tuned - rows
    return (
        f"parameters: {(own + tuned + rows) / 1e6:.2f} M trained (projections {own / 1e6:.2f} M, language model "
        f"{(tuned + rows) / 1e6:.2f} M), {frozen / 1e6:.2f} M frozen"
    )
