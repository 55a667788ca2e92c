"""CLIP-GPT for use: images or embeddings in, captions out, and captions in, embeddings out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.captioning.captioner import Captioner
from clipcap.captioning.config import DecodeConfig
from clipcap.captioning.decode import Caption
from clipcap.clip_gpt.checkpoint import load_clip_gpt, save_clip_gpt
from clipcap.clip_gpt.config import LoadClipGptConfig
from clipcap.clip_gpt.model import ClipGPT
from clipcap.clip_gpt.write import write_captions
from clipcap.errors import ClipcapError
from clipcap.models.encoders.base import Encoder
from clipcap.models.given import Given
from clipcap.models.kernels.bfloat16 import why
from clipcap.runtime.bundled import DEMO
from clipcap.runtime.messages import logger
from clipcap.runtime.text import printable


class ClipGptCaptioner(Captioner):
    """Writes captions, and imagines the CLIP embedding of a caption's picture.

    Examples:
        >>> clip_gpt = ClipGptCaptioner.from_pretrained("checkpoints/clip_gpt")
        >>> clip_gpt(["a.jpg"])
        ['a plate of sushi']
        >>> clip_gpt.imagine(["a plate of sushi"]).shape
        torch.Size([1, 512])
    """

    model: ClipGPT  # pyright: ignore[reportIncompatibleVariableOverride]  # set once, by the constructor below

    def __init__(self, model: ClipGPT, tokenizer: Tokenizer, encoder: Encoder | None = None, device: str = "auto"):
        super().__init__(model, tokenizer, encoder, device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        lm: str | None = None,
        clip_model_type: str | None = None,
        normalize_prefix: bool | None = None,
        num_heads: int | None = None,
        device: str = "auto",
        dtype: str = "float32",
        datastore: str | Path | None = None,
        entities: str | Path | None = None,
        prompt_gate: float | None = None,
        tokenizer: str | None = None,
        decode_only: bool = False,
    ) -> ClipGptCaptioner:
        """Load a checkpoint, a folder holding one, a hub name, or a folder in General-GPT's layout.

        `decode_only` changes nothing: CLIP-GPT has no faster way to load.

        Raises:
            ClipcapError: it cannot be loaded; the message says how to fix it. Or an option of a `Captioner` is given
                that CLIP-GPT lacks: heads of a mapper, int8, and prompts.
        """
        if num_heads is not None:
            raise ClipcapError("num_heads is for the mapper of a captioner, CLIP-GPT has none: leave it out")
        if any(option is not None for option in (datastore, entities, prompt_gate)):
            raise ClipcapError(
                "datastore, entities and prompt_gate are for captioners that read prompts: leave them out"
            )
        if dtype == "int8":
            raise ClipcapError("dtype int8 is for captioners, CLIP-GPT has float32, bfloat16 and auto: leave it out")
        loaded = load_clip_gpt(path, lm, clip_model_type, normalize_prefix)
        captioner = cls(loaded.model, loaded.tokenizer, device=device)
        captioner.encoder_tokenizer = tokenizer
        captioner.summary = loaded.summary
        captioner.multiply_in(dtype)
        return captioner

    def save_pretrained(self, folder: str | Path) -> Path:
        """Write a checkpoint folder."""
        return save_clip_gpt(self.model, self.tokenizer, folder)

    def imagine(self, captions: Sequence[str]) -> Tensor:
        """The CLIP embeddings of the pictures that B captions describe, [B, D] float32."""
        return self.model.imagine(captions)

    def _decode(self, given: Given, config: DecodeConfig, numbers: Sequence[int] | None) -> list[list[Caption]]:
        return write_captions(self.model, self.tokenizer, given, config, numbers)


def load_clip_gpt_captioner(config: LoadClipGptConfig) -> ClipGptCaptioner:
    """Load the CLIP-GPT that the options name, and log what was read."""
    if config.load_pt is None:
        raise ClipcapError("--load_pt is missing: a folder that `clipcap train-clip-gpt` made")
    if config.load_pt == DEMO:
        raise ClipcapError(
            f"--load_pt {DEMO}: of CLIP-GPT none is bundled under the name {DEMO}: train one, "
            f"`clipcap train-clip-gpt --lm {DEMO}` on features of the encoder {DEMO}"
        )
    captioner = ClipGptCaptioner.from_pretrained(
        config.load_pt,
        lm=config.lm,
        clip_model_type=config.clip_model_type,
        normalize_prefix=config.normalize_prefix,
        device=config.device,
        dtype=config.dtype,
        tokenizer=config.tokenizer,
    )
    if config.dtype != "float32":
        logger.info(f"numbers: {why(config.dtype, captioner.dtype)}")
    logger.info(printable(captioner.summary))
    return captioner
