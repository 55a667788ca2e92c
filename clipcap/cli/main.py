"""The `clipcap` command: each subcommand is a thin door to one module.

Heavy modules are imported inside the commands, so that `--help` and mistakes in the flags answer at once.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from clipcap.captioning.config import CaptionerOptions, PredictConfig
from clipcap.cli import app_commands, clip_gpt_commands, retrieval_commands, text_to_image_commands
from clipcap.cli.heavy_imports import heavy_imports
from clipcap.contrastive.config import ContrastiveConfig
from clipcap.errors import ClipcapError
from clipcap.evaluation.config import CompareConfig, EvaluateConfig
from clipcap.features.config import ParseConfig
from clipcap.options import FlagParser, add_flags, from_flags
from clipcap.runtime import processes
from clipcap.runtime.text import printable
from clipcap.training.config import TrainConfig

SOURCES = {
    "food": "the Kaggle food set: Captions.csv and <Index>.jpg",
    "coco": "COCO captions: official, Karpathy's, or the original's train_caption.json",
    "flickr8k": "Flickr8k: captions.txt or Flickr8k.token.txt with its split lists",
    "conceptual": "Conceptual Captions: the TSV and a folder of downloaded images",
    "custom": "your own: CSV, TSV, JSON, JSON Lines, Parquet, x.jpg + x.txt, webdataset tars",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; bad input ends in one line on stderr and status 1 (2: flags), an interrupt in status 130."""
    for stream in (sys.stdout, sys.stderr):  # file names and captions may hold what the terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        args = build_parser().parse_args(argv)
        status = args.run(args)
        sys.stdout.flush()
        return status
    except ClipcapError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        print("clipcap: interrupted; what was finished is kept", file=sys.stderr)
        return 130
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of a pipe (head) has had enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own last flush
            return 0
        where = f" {error.filename}:" if error.filename else ""
        return _failed(f"{where} {error.strerror or error}")
    except RuntimeError as error:
        if type(error).__name__ == "OutOfMemoryError":  # torch's, which is not imported here
            return _failed("the GPU's memory is full: lower --batch_size, or use --device cpu")
        if processes.lost(error):
            return _failed(processes.LOST)
        raise
    finally:
        processes.leave()


def _failed(message: str) -> int:
    print(f"clipcap: error: {printable(' '.join(message.split()))}", file=sys.stderr)
    return 1


def build_parser() -> FlagParser:
    """All subcommands with their flags."""
    parser = FlagParser(prog="clipcap", description="Caption images: parse, train, predict (ClipCap).")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

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
    predict.add_argument("--img", nargs="+", action="extend", default=[], help="photos, globs or folders (recursive)")
    add_flags(predict, PredictConfig)

    explain = _command(commands, "explain", run_explain, "nearest words of each prefix position")
    explain.add_argument("--img", required=True, help="a photo")
    explain.add_argument("--top", type=int, default=5, help="words per position (default: 5)")
    add_flags(explain, CaptionerOptions)

    export = _command(commands, "export", run_export, "checkpoint → .pt of the original ClipCap")
    export.add_argument("checkpoint", help="a folder made by train, or a hub name")
    export.add_argument("--out", required=True, help=".pt file to write")
    export.add_argument("--lm", default=None, help="language model, where the checkpoint's is elsewhere")

    demo = _command(commands, "demo", run_demo, "the whole road on drawn pictures, without network or GPU")
    demo.add_argument("--out", default="demo_out", help="folder for everything (default: demo_out)")

    _add_features(_command(commands, "features", run_features, "look into feature files, or make new ones of them"))

    contrastive = _command(commands, "contrastive", run_contrastive, "images and captions → a CLIP of your own")
    kinds = contrastive.add_subparsers(required=True, metavar="SOURCE", dest="source")
    for name, text in SOURCES.items():
        kind = kinds.add_parser(name, help=text, description=f"Train or fine-tune a dual encoder on {text}.")
        add_flags(kind, ContrastiveConfig)

    retrieval_commands.add_commands(commands)

    evaluate = _command(commands, "evaluate", run_evaluate, "captions scored against those of people, with a report")
    add_flags(evaluate, EvaluateConfig)
    compare = _command(commands, "compare", run_compare, "evaluations: which is better, and how sure is that")
    compare.add_argument(
        "folders", nargs="+", metavar="EVALUATION", help="folders of `clipcap evaluate`, two or more"
    )
    add_flags(compare, CompareConfig)

    clip_gpt_commands.add_commands(commands)
    text_to_image_commands.add_commands(commands)
    app_commands.add_commands(commands)
    _command(commands, "doctor", run_doctor, "versions, devices, memory, caches")
    return parser


def _command(
    commands: argparse._SubParsersAction, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> FlagParser:
    command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
    command.set_defaults(run=run)
    return command


def _add_features(command: FlagParser) -> None:
    """The subcommands of `clipcap features`."""
    parsers = command.add_subparsers(required=True, metavar="ACTION", dest="action")
    texts = {
        "info": "what a feature file is and holds",
        "verify": "read all of it and say what is wrong",
        "merge": "several files of one encoder → one",
        "split": "NAME_train and NAME_val, split by image",
        "convert": "a pickle ↔ a folder, or other numbers",
    }
    actions = {name: _command(parsers, name, run_features, text) for name, text in texts.items()}
    for name, action in actions.items():
        many = {"nargs": "+"} if name == "merge" else {}
        action.add_argument("path", metavar="PATH", help="feature file: NAME.pkl or a folder", **many)
    for name in ("merge", "split", "convert"):
        actions[name].add_argument("--out", required=True, help="feature file to write: NAME.pkl, or a folder")
    for name in ("merge", "convert"):
        actions[name].add_argument("--clip_model_type", default=None, help="encoder of files that do not say it")
    actions["merge"].add_argument("--prefix_ids", action="store_true", help="set a file's name before its image ids")
    actions["split"].add_argument("--train_size", type=float, default=0.9, help="share of the images (default: 0.9)")
    actions["split"].add_argument("--seed", type=int, default=42, help="seed of the split (default: 42)")
    actions["convert"].add_argument("--dtype", choices=("float16", "float32"), default=None, help="numbers to store")


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
    with heavy_imports():
        from clipcap.features.parse import parse

    parse(args.source, config)
    return 0


def run_train(args: argparse.Namespace) -> int:
    """`clipcap train`."""
    config = from_flags(TrainConfig, args)
    with heavy_imports():
        from clipcap.training.train import train

    best = train(config)
    if os.environ.get("RANK", "0") == "0":  # one line, however many processes
        print(f"checkpoint: {best}")
    return 0


def run_predict(args: argparse.Namespace) -> int:
    """`clipcap predict`."""
    config = from_flags(PredictConfig, args)
    with heavy_imports():
        from clipcap.captioning.captioner import load_captioner
        from clipcap.captioning.predict import predict

    return 1 if predict(config, args.img, partial(load_captioner, config)) else 0


def run_explain(args: argparse.Namespace) -> int:
    """`clipcap explain`."""
    config = from_flags(CaptionerOptions, args)
    if args.top < 1:
        raise ClipcapError(f"--top must be at least 1, got {args.top}")
    with heavy_imports():
        from clipcap.captioning.captioner import load_captioner

    captioner = load_captioner(config)
    top = min(args.top, captioner.model.lm.get_input_embeddings().num_embeddings)
    for position, found in enumerate(captioner.explain(args.img, top)):
        print(f"{position:3d}  " + "  ".join(f"{word!r} {cosine:.2f}" for word, cosine in found))
    return 0


def run_export(args: argparse.Namespace) -> int:
    """`clipcap export`."""
    with heavy_imports():
        from clipcap.models.export import export

    print(export(args.checkpoint, Path(args.out), args.lm))
    return 0


def run_features(args: argparse.Namespace) -> int:
    """`clipcap features ACTION`."""
    with heavy_imports():
        from clipcap.features import tools as tools

    if args.action == "info":
        print(tools.info(args.path))
    elif args.action == "verify":
        return 0 if tools.verify(args.path) else 1
    elif args.action == "merge":
        tools.merge(args.path, args.out, args.prefix_ids, args.clip_model_type)
    elif args.action == "split":
        tools.split(args.path, args.train_size, args.seed, args.out)
    else:
        tools.convert(args.path, args.out, args.dtype, args.clip_model_type)
    return 0


def run_contrastive(args: argparse.Namespace) -> int:
    """`clipcap contrastive SOURCE`."""
    config = from_flags(ContrastiveConfig, args)
    if not config.data_path:
        raise ClipcapError("--data_path is missing: the folder (or file) of the image-caption set")
    with heavy_imports():
        from clipcap.contrastive.train import train_contrastive

    print(f"encoder: {train_contrastive(args.source, config)}")
    return 0


def run_doctor(args: argparse.Namespace) -> int:
    """`clipcap doctor`."""
    with heavy_imports():
        from clipcap.cli.doctor import report

    print(report())
    return 0


def run_evaluate(args: argparse.Namespace) -> int:
    """`clipcap evaluate`."""
    config = from_flags(EvaluateConfig, args)
    with heavy_imports():
        from clipcap.evaluation.evaluate import evaluate

    evaluate(config)
    return 0


def run_compare(args: argparse.Namespace) -> int:
    """`clipcap compare`."""
    config = from_flags(CompareConfig, args)
    with heavy_imports():
        from clipcap.evaluation.compare import compare

    print(compare(args.folders, config))
    return 0


def run_demo(args: argparse.Namespace) -> int:
    """`clipcap demo`."""
    with heavy_imports():
        from clipcap.demo.run import run_demo as run

    def command(words: Sequence[str]) -> int:
        step = build_parser().parse_args(words)
        return step.run(step)

    run(Path(args.out), command)
    return 0
