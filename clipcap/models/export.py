"""A checkpoint as a `.pt` of the original, and the command that captions the same with it."""

from __future__ import annotations

import shlex
from pathlib import Path

from clipcap.errors import ClipcapError
from clipcap.models.caption_model import ClipCaptionModel
from clipcap.models.checkpoint import Loaded, load_checkpoint
from clipcap.models.encoders.names import guess_encoder
from clipcap.models.original import GPT2_HEAD_WIDTH, HEADS, STOP_TOKEN, export_reference
from clipcap.runtime.hub import is_local
from clipcap.runtime.places import writes_to

GPT2 = {"n_embd": 768, "n_layer": 12, "n_head": 12, "vocab_size": 50257}  # the one that the original builds


@writes_to("out")
def export(checkpoint: str, out: str | Path, lm: str | None = None, encoder: str | None = None) -> str:
    """Write a checkpoint as a `.pt` of the original.

    Args:
        checkpoint: as `load_checkpoint` takes it.
        out: the `.pt` file.
        lm: its language model, where that is elsewhere now.
        encoder: its encoder, where that is elsewhere now.
    Returns:
        lines for the user: the command that captions with it, since a `.pt` holds weights alone; and what the
        original's own tools make of it.
    Raises:
        ClipcapError: it cannot be read or written, or its language model is not a GPT-2.
    """
    out = Path(out)
    if out.is_dir():
        raise ClipcapError(f"--out {out}: is a folder: name the .pt file to write")
    if out.suffix.lower() != ".pt":
        raise ClipcapError(f"--out {out}: what is written is a .pt: end the name in .pt")
    loaded = load_checkpoint(checkpoint, lm, encoder=encoder)
    if loaded.model.token_layout:
        raise ClipcapError(f"{checkpoint}: reads tokens of images, which the original's .pt does not know")
    if loaded.model.config.before or loaded.model.config.after:
        raise ClipcapError(
            f"{checkpoint}: was trained with text around the image's positions (--template, or a begin token), which "
            f"a .pt of the original cannot hold"
        )
    if loaded.model.config.prompts != "none":
        raise ClipcapError(
            f"{checkpoint}: reads prompts (--prompts {loaded.model.config.prompts}), which a .pt of the original "
            f"cannot hold"
        )
    export_reference(loaded.model, out)
    lines = [f"wrote {out}", f"the same captions as the checkpoint's: {shlex.join(predict_words(loaded, out))}"]
    reasons = differences(loaded.model)
    if reasons:
        lines.append(f"the original's own tools write other captions with it: {', '.join(reasons)}")
    return "\n".join(lines)


def predict_words(loaded: Loaded, pt: Path) -> list[str]:
    """The command that captions PHOTO with an exported `.pt` as the checkpoint does, with all that a `.pt` lacks."""
    config = loaded.model.config
    words = ["clipcap", "predict", "--img", "PHOTO", "--load_pt", str(pt)]
    lm, stop = _lm(loaded), loaded.model.config.stop_token
    if lm != "gpt2":
        words += ["--lm", lm]
    if config.encoder not in (None, guess_encoder(config.clip_dim)):
        words += ["--clip_model_type", config.encoder]
    if config.normalize_prefix:
        words += ["--normalize_prefix"]
    if config.mapping_type == "transformer" and config.num_heads != HEADS:
        words += ["--num_heads", str(config.num_heads)]
    if stop != STOP_TOKEN:
        words += ["--stop_token", stop or loaded.tokenizer.eos_token]
    return words


def differences(model: ClipCaptionModel) -> list[str]:
    """Why the original's own tools write other captions with the exported `.pt`; none where they do not."""
    config, reasons = model.config, []
    if config.stop_token != STOP_TOKEN:
        reasons.append(f"they end captions at {STOP_TOKEN!r} and nowhere else")
    if config.normalize_prefix:
        reasons.append("they do not normalise embeddings at prediction")
    if config.mapping_type == "transformer" and config.num_heads != HEADS:
        reasons.append(f"their mapper has {HEADS} attention heads")
    if any(getattr(model.lm.config, name) != value for name, value in GPT2.items()):
        reasons.append("they know the language model gpt2 alone")
    return reasons


def _lm(loaded: Loaded) -> str:
    """Where tokenizer and head count are found again; the checkpoint's own tokenizer where the folder is gone."""
    name, config = loaded.model.config.lm, loaded.model.lm.config
    gone = Path(name).is_absolute() and not is_local(name)
    return loaded.tokenizer_name if gone and config.n_embd == config.n_head * GPT2_HEAD_WIDTH else name
