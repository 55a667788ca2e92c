"""`clipcap caption-clip-gpt`: photos or features → captions by CLIP-GPT."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from clipcap.captioning.predict import predict
from clipcap.clip_gpt.captioner import load_clip_gpt_captioner
from clipcap.clip_gpt.config import CaptionClipGptConfig


def predict_clip_gpt(config: CaptionClipGptConfig, img: Sequence[str]) -> int:
    """As `clipcap.captioning.predict.predict`, by a CLIP-GPT."""
    return predict(config, img, partial(load_clip_gpt_captioner, config.load), "caption-clip-gpt")
