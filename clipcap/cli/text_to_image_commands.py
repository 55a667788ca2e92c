"""The commands of text to picture: `train-draw`, `draw`, `slideshow`."""

from __future__ import annotations

import argparse

from clipcap.cli.heavy_imports import heavy_imports
from clipcap.options import add_flags, from_flags
from clipcap.text_to_image.config import DrawConfig, SlideshowConfig, TrainDrawConfig


def add_commands(commands: argparse._SubParsersAction) -> None:
    """Add the subcommands with their flags."""
    text = "Captions with one class word each → a mapping from hidden states of a text model to class embeddings."
    train = commands.add_parser("train-draw", help="captions → a mapping that draws words", description=text)
    train.add_argument("captions", metavar="CAPTIONS", help="a .txt of captions, a feature file, or a set (--source)")
    add_flags(train, TrainDrawConfig)
    train.set_defaults(run=run_train_draw)

    text = "Texts → one picture a word, of a BigGAN-deep: as a GIF, a grid or a folder."
    draw = commands.add_parser("draw", help="texts → a picture for each word", description=text)
    draw.add_argument("texts", nargs="*", metavar="TEXT", help="a text; none: those of --config, else asked for")
    add_flags(draw, DrawConfig)
    draw.set_defaults(run=run_draw)

    text = "Pictures of a folder, one a word of a sentence → a GIF or a grid."
    slideshow = commands.add_parser("slideshow", help="stored pictures → a GIF with their sentence", description=text)
    slideshow.add_argument("folder", metavar="FOLDER", help="folder of the pictures, as x_0.png, x_1.png, …")
    add_flags(slideshow, SlideshowConfig)
    slideshow.set_defaults(run=run_slideshow)


def run_train_draw(args: argparse.Namespace) -> int:
    """`clipcap train-draw`."""
    config = from_flags(TrainDrawConfig, args)
    with heavy_imports():
        from clipcap.text_to_image.train import train_draw

    print(f"mapping: {train_draw(args.captions, config)}")
    return 0


def run_draw(args: argparse.Namespace) -> int:
    """`clipcap draw`."""
    defaults, texts, sizes = {}, [], {}
    if getattr(args, "config", None):
        from clipcap.text_to_image.author_config import read_author_config

        defaults, texts, sizes = read_author_config(args.config)
    config = from_flags(DrawConfig, args, **defaults)
    with heavy_imports():
        from clipcap.text_to_image.draw import draw

    draw(args.texts or ([] if config.interactive else texts), config, sizes)
    return 0


def run_slideshow(args: argparse.Namespace) -> int:
    """`clipcap slideshow`."""
    config = from_flags(SlideshowConfig, args)
    with heavy_imports():
        from clipcap.text_to_image.slideshow import slideshow

    print(slideshow(args.folder, config))
    return 0
