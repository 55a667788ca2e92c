"""The captioner that a command's options name."""

from __future__ import annotations

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import LoadConfig
from clipcap.captioning.memory import TextMemory
from clipcap.errors import ClipcapError
from clipcap.models.kernels.bfloat16 import why
from clipcap.runtime.bundled import DEMO
from clipcap.runtime.messages import logger
from clipcap.runtime.text import printable


def load_captioner(config: LoadConfig, decode_only: bool = False) -> Captioner:
    """Load the captioner that the options name, and log what was read; `decode_only` as in `from_pretrained`."""
    if config.load_pt is None:
        logger.info(
            "no --load_pt: the bundled demo model knows drawn plates of food alone; for real photos pass --load_pt "
            "with a folder that `clipcap train` wrote, or a .pt of the original ClipCap"
        )
    captioner = Captioner.from_pretrained(
        config.load_pt or DEMO,
        lm=config.lm,
        clip_model_type=config.clip_model_type,
        normalize_prefix=config.normalize_prefix,
        num_heads=config.num_heads,
        device=config.device,
        dtype=config.dtype,
        datastore=config.datastore,
        entities=config.entities,
        prompt_gate=config.prompt_gate,
        tokenizer=config.tokenizer,
        decode_only=decode_only,
    )
    if config.memory is not None and captioner.model.token_layout:
        raise ClipcapError(
            f"--memory {config.memory}: this captioner reads tokens of images, which no text has: leave it out"
        )
    if config.memory is not None:
        captioner.memory = TextMemory.open(config.memory, captioner.model.config, captioner.encoder.logit_scale)
    if config.dtype in ("auto", "bfloat16"):
        logger.info(f"numbers: {why(config.dtype, captioner.dtype)}")
    if config.load_pt is not None:
        logger.info(printable(captioner.summary))
    return captioner
