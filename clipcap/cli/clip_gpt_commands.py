"""The commands of CLIP-GPT: `train-clip-gpt`, `caption-clip-gpt`, `imagine`."""

from __future__ import annotations

import argparse
import os
from functools import partial

from clipcap.cli.heavy_imports import heavy_imports
from clipcap.clip_gpt.config import CaptionClipGptConfig, ImagineConfig, TrainClipGptConfig
from clipcap.errors import ClipcapError
from clipcap.options import add_flags, from_flags


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the subcommands with their flags."""
    text = "Feature file → CLIP-GPT, which captions images and imagines pictures."
    train = commands.add_parser("train-clip-gpt", help="feature file → CLIP-GPT", description=text)
    add_flags(train, TrainClipGptConfig)
    train.set_defaults(run=run_train)

    text = "Photos or features → captions by CLIP-GPT."
    caption = commands.add_parser("caption-clip-gpt", help="captions by CLIP-GPT", description=text)
    caption.add_argument("--img", nargs="+", action="extend", default=[], help="photos, globs or folders (recursive)")
    add_flags(caption, CaptionClipGptConfig, without={"recipe"})  # it is the original ClipCap's
    caption.set_defaults(run=run_caption)

    text = "Words → the CLIP embedding that CLIP-GPT imagines → the pictures nearest to it."
    imagine = commands.add_parser("imagine", help="words → the pictures CLIP-GPT imagines", description=text)
    imagine.add_argument("caption", nargs="+", help="a caption of the picture")
    add_flags(imagine, ImagineConfig)
    imagine.set_defaults(run=run_imagine)


def run_train(args: argparse.Namespace) -> int:
    """`clipcap train-clip-gpt`."""
    config = from_flags(TrainClipGptConfig, args)
    with heavy_imports():
        from clipcap.clip_gpt.train import train_clip_gpt

    best = train_clip_gpt(config)
    if os.environ.get("RANK", "0") == "0":  # one line, however many processes
        print(f"checkpoint: {best}")
    return 0


def run_caption(args: argparse.Namespace) -> int:
    """`clipcap caption-clip-gpt`."""
    config = from_flags(CaptionClipGptConfig, args)
    with heavy_imports():
        from clipcap.captioning.predict import predict
        from clipcap.clip_gpt.captioner import load_clip_gpt_captioner

    return 1 if predict(config, args.img, partial(load_clip_gpt_captioner, config)) else 0


def run_imagine(args: argparse.Namespace) -> int:
    """`clipcap imagine`."""
    config = from_flags(ImagineConfig, args)
    caption = " ".join(args.caption).strip()
    if not caption:
        raise ClipcapError("the caption is empty: say what is to be seen")
    with heavy_imports():
        from clipcap.clip_gpt.imagine import imagine

    imagine(caption, config)
    return 0
