"""The `clipcap` command: each subcommand is a thin door to one module.

Heavy modules are imported inside the commands, so that `--help` and mistakes in the flags answer at once.
"""

from __future__ import annotations

import argparse
import errno
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from clipcap.config import FlagParser, LoadOptions, ParseConfig, PredictConfig, TrainConfig, add_flags, from_flags
from clipcap.errors import ClipcapError

SOURCES = {
    "food": "the Kaggle food set: Captions.csv and <Index>.jpg",
    "coco": "COCO captions: official, Karpathy's, or the original's train_caption.json",
    "flickr8k": "Flickr8k: captions.txt or Flickr8k.token.txt with its split lists",
    "conceptual": "Conceptual Captions: the TSV and a folder of downloaded images",
    "custom": "your own: CSV, TSV, JSON, JSON Lines, Parquet, x.jpg + x.txt, webdataset tars",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one line on stderr and status 1, an interrupt in status 130."""
    args = build_parser().parse_args(argv)
    try:
        return args.run(args)
    except ClipcapError as error:
        print(f"clipcap: error: {' '.join(str(error).split())}", file=sys.stderr)
    except KeyboardInterrupt:
        print("clipcap: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno == errno.EPIPE:
            return 0  # the reader of a pipe (head) has had enough
        where = f" {error.filename}:" if error.filename else ""
        print(f"clipcap: error:{where} {error.strerror or error}", file=sys.stderr)
    return 1


def build_parser() -> FlagParser:
    """All subcommands with their flags."""
    parser = FlagParser(prog="clipcap", description="Caption images: parse, train, predict (ClipCap).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    parse = commands.add_parser(
        "parse", help="images and captions → feature file", description="Encode each image once."
    )
    sources = parse.add_subparsers(required=True, metavar="SOURCE", dest="source")
    for name, text in SOURCES.items():
        source = sources.add_parser(name, help=text, description=f"Feature file of {text}.")
        add_flags(source, ParseConfig)
        source.set_defaults(run=run_parse)
        if name == "conceptual":
            source.add_argument("--download", action="store_true", help="first fetch the images that are missing")

    train = _command(commands, "train", run_train, "feature file → captioner")
    add_flags(train, TrainConfig)

    predict = _command(commands, "predict", run_predict, "photos or features → captions")
    predict.add_argument("--img", nargs="+", default=[], help="photos, globs or folders (recursive)")
    add_flags(predict, PredictConfig)

    explain = _command(commands, "explain", run_explain, "nearest words of each prefix position")
    explain.add_argument("--img", required=True, help="a photo")
    explain.add_argument("--top", type=int, default=5, help="words per position (default: 5)")
    add_flags(explain, LoadOptions)

    export = _command(commands, "export", run_export, "checkpoint → .pt of the original ClipCap")
    export.add_argument("checkpoint", help="native folder")
    export.add_argument("--out", required=True, help=".pt file to write")
    export.add_argument("--lm", default=None, help="language model, where the checkpoint's is elsewhere")

    _command(commands, "doctor", run_doctor, "versions, devices, memory, caches")
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> FlagParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def run_parse(args: argparse.Namespace) -> int:
    """`clipcap parse SOURCE`."""
    config = from_flags(ParseConfig, args)
    if not config.data_path:
        raise ClipcapError("--data_path is missing: the folder (or file) of the image-caption set")
    if getattr(args, "download", False):
        from clipcap.sources.conceptual import find_sets
        from clipcap.sources.download import fetch_missing

        for tsv, folder in find_sets(config).values():
            print(fetch_missing(tsv, folder))
    from clipcap.parsing import parse

    parse(args.source, config)
    return 0


def run_train(args: argparse.Namespace) -> int:
    """`clipcap train`."""
    config = from_flags(TrainConfig, args)
    from clipcap.training import train

    print(f"checkpoint: {train(config)}")
    return 0


def run_predict(args: argparse.Namespace) -> int:
    """`clipcap predict`."""
    config = from_flags(PredictConfig, args)
    from clipcap.prediction import predict

    return 1 if predict(config, args.img) else 0


def run_explain(args: argparse.Namespace) -> int:
    """`clipcap explain`."""
    config = from_flags(PredictConfig, args)
    from clipcap.prediction import load_captioner

    for position, found in enumerate(load_captioner(config).explain(args.img, args.top)):
        print(f"{position:3d}  " + "  ".join(f"{word!r} {cosine:.2f}" for word, cosine in found))
    return 0


def run_export(args: argparse.Namespace) -> int:
    """`clipcap export`."""
    from clipcap.checkpoint import load_checkpoint
    from clipcap.reference import export_reference

    export_reference(load_checkpoint(args.checkpoint, args.lm).model, Path(args.out))
    print(f"wrote {args.out}")
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """`clipcap doctor`."""
    from clipcap.doctor import report

    print(report())
    return 0
