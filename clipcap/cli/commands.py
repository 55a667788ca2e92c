"""The table of commands: to add one, add a row here, and a config for its options.

A row names the function that does the work. The function gets the command's config as `config`, and each further
argument of the command by its name.
"""

from __future__ import annotations

import argparse
import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from clipcap.options import Options


@dataclass(frozen=True)
class Argument:
    """An argument of a command besides its config's options, for `ArgumentParser.add_argument`."""

    names: tuple[str, ...]
    group: str
    settings: Mapping[str, Any]

    @property
    def several(self) -> bool:
        """Whether it takes more than one word."""
        return self.settings.get("nargs") in ("+", "*") and self.settings.get("action") is not Joined

    @property
    def takes_text(self) -> bool:
        """Whether its value is text, as it is typed."""
        return "type" not in self.settings and not str(self.settings.get("action", "")).startswith("store_")

    @property
    def required(self) -> bool:
        """Whether the command does not go without it."""
        positional = not self.names[0].startswith("-")
        return bool(self.settings.get("required", positional and self.settings.get("nargs") != "*"))

    @property
    def optional_settings(self) -> dict[str, Any]:
        """The settings with which it may be left out, and is then not in the namespace."""
        changed = {**self.settings, "default": argparse.SUPPRESS}
        changed.pop("required", None)
        if not self.names[0].startswith("-"):
            changed["nargs"] = {None: "?", "+": "*"}.get(self.settings.get("nargs"), self.settings.get("nargs"))
        return changed


def argument(*names: str, group: str = "data", **settings: Any) -> Argument:
    """An argument, listed under `group` in the command's help."""
    return Argument(names, group, settings)


@dataclass(frozen=True)
class Command:
    """A command, or a group of commands below one name.

    Attributes:
        name: what the user types.
        help: one line for the list of commands; with a full stop, also the first line of the command's own help.
        run: "module:function".
        config: "package:class" of its config, in `clipcap/package/config.py`; its options become the command's flags.
        arguments: of the command besides its options.
        group: heading under which `clipcap --help` lists it.
        constants: further arguments of the function.
        without: options of `config` that the command does not take.
        required: options that must be given, and their meaning.
        prints: a line for the function's result, printed by the first process alone.
        failed: whether the command ends with status 1, or with which other, from the function's result.
        below: the commands below this name, and what `metavar` calls them.
    """

    name: str
    help: str
    run: str = ""
    config: str = ""
    arguments: tuple[Argument, ...] = ()
    group: str = ""
    description: str = ""
    constants: Mapping[str, Any] = field(default_factory=dict)
    without: frozenset[str] = frozenset()
    required: Mapping[str, str] = field(default_factory=dict)
    prints: str = ""
    failed: Callable[[Any], bool | int] = lambda result: False
    below: tuple[Command, ...] = ()
    metavar: str = ""

    def config_class(self) -> type[Options] | None:
        """The class that `config` names; its module is imported by the first call."""
        package, _, name = self.config.partition(":")
        return getattr(import_module(f"clipcap.{package}.config"), name) if name else None


class Joined(argparse.Action):
    """Several words of the command line as one text."""

    def __call__(self, parser: Any, namespace: argparse.Namespace, values: Any, option_string: str | None = None):
        """Store the words with a blank between them."""
        setattr(namespace, self.dest, " ".join(values).strip())


SOURCES = {
    "food": "the Kaggle food set: Captions.csv and <Index>.jpg",
    "coco": "COCO captions: official, Karpathy's, or the original's train_caption.json",
    "flickr8k": "Flickr8k: captions.txt or Flickr8k.token.txt with its split lists",
    "conceptual": "Conceptual Captions: the TSV and a folder of downloaded images",
    "custom": "your own: CSV, TSV, JSON, JSON Lines, Parquet, x.jpg + x.txt, webdataset tars",
    "photos": "photos without captions, to search",
}
DATA_PATH = {"data_path": "the folder (or file) of the image-caption set"}
FEATURE_FILE = "feature file: NAME.pkl or a folder"

IMG = argument("--img", nargs="+", action="extend", default=[],
               help="photos, globs, folders (recursive), http addresses, or - for the standard input")  # fmt: skip
PATH = argument("path", metavar="PATH", help=FEATURE_FILE)
PATHS = argument("paths", metavar="PATH", nargs="+", help=FEATURE_FILE)
OUT = argument("--out", required=True, group="output", help="feature file to write: NAME.pkl, or a folder")
ENCODER = argument(
    "--clip_model_type", dest="encoder", default=None, group="model", help="encoder of files that do not state it"
)
DOWNLOAD = argument("--download", action="store_true", help="first download missing images")


def _parse(source: str, text: str) -> Command:
    """`clipcap parse SOURCE`."""
    common: dict[str, Any] = {
        "config": "features:ParseConfig",
        "description": f"Feature file of {text}.",
        "required": DATA_PATH,
    }
    if source == "conceptual":
        return Command(source, text, "clipcap.cli.conceptual:parse_conceptual", arguments=(DOWNLOAD,), **common)
    return Command(source, text, "clipcap.features.parse:parse", constants={"source_name": source}, **common)


def _contrastive(source: str, text: str) -> Command:
    """`clipcap contrastive SOURCE`."""
    return Command(
        source, text, "clipcap.contrastive.train:train_contrastive", "contrastive:ContrastiveConfig",
        description=f"Train or fine-tune a dual encoder on {text}.", constants={"source_name": source},
        required=DATA_PATH, prints="encoder: {}",
    )  # fmt: skip


TEXTS = Command(
    "texts", "texts alone: lines, a table, the captions of a set or of a feature file",
    "clipcap.features.parse_texts:parse_texts", "features:ParseTextsConfig",
    description="Folder of text embeddings, to train on with --objective text.",
    required={"data_path": "a file of texts, a feature file, or with --source a set"},
)  # fmt: skip

LOCKED_IMAGE = Command(
    "features", "stored features of an image network that stays as it is, and their captions",
    "clipcap.contrastive.locked_image:train_locked_image", "contrastive:LockedImageConfig",
    description="Train a text tower for stored features of an image network, which stays as it is.",
    prints="encoder: {}",
)  # fmt: skip

FEATURE_TOOLS = (
    Command(
        "info", "what a feature file is and holds", "clipcap.features.tools:info", prints="{}",
        arguments=(
            PATH,
            argument("--words", default=None, group="output",
                     help="draw a cloud of the captions' words: NAME.png or NAME.svg"),
        ),
    ),
    Command(
        "verify", "read the whole file and report damage", "clipcap.features.tools:verify", arguments=(PATH,),
        failed=operator.not_,
    ),
    Command(
        "merge", "several files of one encoder → one", "clipcap.features.tools:merge",
        arguments=(
            PATHS, OUT, ENCODER,
            argument("--prefix_ids", action="store_true", help="set a file's name before its image ids"),
        ),
    ),
    Command(
        "split", "NAME_train and NAME_val, split by image", "clipcap.features.tools:split",
        arguments=(
            PATH, OUT,
            argument("--train_size", type=float, default=0.9, help="share of the images (default: 0.9)"),
            argument("--seed", type=int, default=42, help="seed of the split (default: 42)"),
        ),
    ),
    Command(
        "project", "features of an image network → those of the text tower trained for it",
        "clipcap.features.project:project",
        arguments=(
            PATH, OUT,
            argument("--clip_model_type", dest="encoder", metavar="NAME", required=True, group="model",
                     help="a checkpoint of `clipcap contrastive features`"),
        ),
    ),
    Command(
        "gap", "how far images and captions lie apart, and the noise for texts",
        "clipcap.features.gap:describe_gap", arguments=(PATH, ENCODER), prints="{}",
    ),
    Command(
        "report", "photos and captions as a page: what to look at before training",
        "clipcap.evaluation.data_report:features_report", "evaluation:DataReportConfig", (PATH,),
        prints="report: {}",
        description="Counts, words, near-duplicates, leaks and captions that do not fit their pictures, as a page.",
    ),
    Command(
        "import", "embeddings made elsewhere, of any medium → feature file",
        "clipcap.features.import_arrays:import_arrays",
        arguments=(
            argument("path", metavar="ARRAY", help="x.npy, .npz, .safetensors or .pt: [N, D] or [N, T, W]"), OUT,
            argument("--encoder", required=True, group="model", help="name of what made the embeddings"),
            argument("--captions", default=None, help="table of ids and captions (CSV, TSV, JSON, Parquet)"),
            argument("--ids", default=None, help="text with the id of each row in a line"),
            argument("--key", default=None, help="which array of a file with several"),
        ),
    ),
    Command(
        "convert", "a pickle ↔ a folder, or other numbers", "clipcap.features.tools:convert",
        arguments=(
            PATH, OUT, ENCODER,
            argument("--dtype", choices=("float16", "float32"), default=None, group="output",
                     help="numbers to store"),
        ),
    ),
)  # fmt: skip

COMMANDS = (
    Command(
        "parse", "images and captions → feature file", group="make features", metavar="SOURCE",
        description="Encode each image once.", below=(*(_parse(*source) for source in SOURCES.items()), TEXTS),
    ),
    Command(
        "features", "inspect, import, merge, split, convert feature files", group="make features",
        metavar="ACTION", below=FEATURE_TOOLS,
    ),
    Command(
        "fit", "photos and captions → an evaluated captioner", "clipcap.cli.fit:fit", "fit:FitConfig",
        (argument("data", metavar="PHOTOS_AND_CAPTIONS", help="what `clipcap parse custom` takes"),),
        group="train",
        description="Photos and captions → parse, train, evaluate, with flags chosen for the data. The same "
        "command continues an interrupted one.",
    ),
    Command(
        "train", "feature file → captioner", "clipcap.training.train:train", "training:TrainConfig",
        group="train", prints="checkpoint: {}",
    ),
    Command(
        "train-clip-gpt", "feature file → CLIP-GPT", "clipcap.clip_gpt.train:train_clip_gpt",
        "clip_gpt:TrainClipGptConfig",
        group="train", prints="checkpoint: {}",
        description="Feature file → CLIP-GPT, which captions images and imagines pictures.",
    ),
    Command(
        "contrastive", "images and captions → a CLIP of your own", group="train", metavar="SOURCE",
        below=(*(_contrastive(*source) for source in SOURCES.items() if source[0] != "photos"), LOCKED_IMAGE),
    ),
    Command(
        "predict", "photos or features → captions", "clipcap.captioning.predict:predict",
        "captioning:PredictConfig", (IMG,),
        group="caption", failed=bool,
    ),
    Command(
        "caption-clip-gpt", "captions by CLIP-GPT", "clipcap.clip_gpt.predict:predict_clip_gpt",
        "clip_gpt:CaptionClipGptConfig",
        (IMG,), group="caption", failed=bool, description="Photos or features → captions by CLIP-GPT.",
        without=frozenset({"recipe"}),  # it is the original ClipCap's
    ),
    Command(
        "app", "a web page that captions photos", "clipcap.app.server:serve", "app:AppConfig", group="caption",
        description="A web page that captions photos, for this machine only, unless --host opens it to others.",
    ),
    Command(
        "explain", "nearest words of each prefix position", "clipcap.captioning.explain:explain",
        "captioning:LoadConfig",
        (
            argument("--img", required=True, help="a photo"),
            argument("--top", type=int, default=5, group="output", help="words per position (default: 5)"),
        ),
        group="caption", prints="{}",
    ),
    Command(
        "index", "photos or features → an index to search", "clipcap.retrieval.build:build_index",
        "retrieval:IndexConfig",
        (argument("sources", nargs="+", metavar="PHOTOS", help="folders of photos, or features of one encoder"),),
        group="search", description="Photos or features → an index of them, which answers faster. The same command "
        "again encodes new and changed photos, and removes deleted ones.",
    ),
    Command(
        "search", "words or photos → the pictures nearest to them", "clipcap.retrieval.search:find",
        "retrieval:SearchConfig",
        (
            argument("words", nargs="*", metavar="WORDS", default=[], group="query",
                     help="what to look for; several texts in quotes are several searches"),
            argument("--without", metavar="WORDS", nargs="+", action="extend", default=[], group="query",
                     help="what the pictures must not show, texts in quotes"),
            argument("--img", dest="photos", metavar="IMG", nargs="+", action="extend", default=[], group="query",
                     help="photos to look for, globs or folders"),
        ),
        group="search", description="Words, photos, images of the index or embeddings → the nearest pictures.",
    ),
    Command(
        "imagine", "words → the pictures CLIP-GPT imagines", "clipcap.clip_gpt.imagine:imagine",
        "clip_gpt:ImagineConfig",
        (argument("caption", nargs="+", action=Joined, group="query", help="a caption of the picture"),),
        group="search",
        description="Words → the CLIP embedding that CLIP-GPT imagines → the pictures nearest to it.",
    ),
    Command(
        "train-draw", "captions → a mapping that draws words", "clipcap.text_to_image.train:train_draw",
        "text_to_image:TrainDrawConfig",
        (argument("captions", metavar="CAPTIONS", help="a .txt of captions, a feature file, or a set (--source)"),),
        group="draw", prints="mapping: {}",
        description="Captions with one class word each → a mapping from hidden states of a text model to class "
        "embeddings of a BigGAN-deep.",
    ),
    Command(
        "draw", "texts → a picture for each word", "clipcap.text_to_image.draw:draw", "text_to_image:DrawConfig",
        (argument("texts", nargs="*", metavar="TEXT", help="a text; none: those of --config, else asked for"),),
        group="draw", description="Texts → one picture a word, of a BigGAN-deep: as a GIF, a grid or a folder.",
    ),
    Command(
        "synthesise", "captions → generated pictures that match them", "clipcap.text_to_image.synthesise:synthesise",
        "text_to_image:SynthesiseConfig",
        (argument("captions", metavar="CAPTIONS", help="a .txt of captions, a feature file, or a set (--source)"),),
        group="draw", prints="set: {}",
        description="Captions → a set of generated pictures with captions, for --extra of contrastive and train.",
    ),
    Command(
        "slideshow", "stored pictures → a GIF with their sentence", "clipcap.text_to_image.slideshow:slideshow",
        "text_to_image:SlideshowConfig",
        (argument("folder", metavar="FOLDER", help="folder of the pictures, as x_0.png, x_1.png"),),
        group="draw", prints="{}",
        description="Pictures of a folder, one a word of a sentence → a GIF or a grid.",
    ),
    Command(
        "classify", "photos → labels, by prompts or a probe", "clipcap.classification.classify:run_classify",
        "classification:ClassifyConfig",
        (
            argument("--img", dest="photos", metavar="IMG", nargs="+", action="extend", default=[],
                     help="photos, globs or folders (recursive)"),
            argument("--template", dest="templates", metavar="TEMPLATE", action="append", default=[], group="query",
                     help="prompt with {} for the label; may be given several times "
                          "(default: 'a photo of a {}.')"),
            argument("--threshold", dest="thresholds", metavar="LABEL=P", action="append", default=[], group="query",
                     help="probability at which a label of --flag flags a photo (default: 0.5)"),
        ),
        group="evaluate", failed=operator.attrgetter("status"),
        description="Photos → labels: by prompts alone (zero-shot), by pairs of prompts with thresholds, or by a "
        "linear probe fitted to photos with labels.",
    ),
    Command(
        "evaluate", "captions scored against human captions, with a report", "clipcap.evaluation.evaluate:evaluate",
        "evaluation:EvaluateConfig", group="evaluate",
    ),
    Command(
        "compare", "which evaluation is better, and how sure that is", "clipcap.evaluation.compare:compare",
        "evaluation:CompareConfig",
        (argument("folders", nargs="+", metavar="EVALUATION", help="folders of `clipcap evaluate`, two or more"),),
        group="evaluate", prints="{}",
    ),
    Command(
        "demo", "every step on drawn pictures, without network or GPU", "clipcap.cli.demo:demo", group="other",
        arguments=(argument("--out", default="demo_out", group="output",
                            help="folder for all results (default: demo_out)"),),
    ),
    Command(
        "export", "checkpoint → ONNX, a web page, or a .pt", "clipcap.deploy.export:export", "deploy:ExportConfig",
        (argument("checkpoint", group="model", help="a folder made by train, or a hub name"),),
        group="other", prints="{}",
        description="A checkpoint → NAME.pt of the original ClipCap, a folder of ONNX graphs with a runner, or one "
        "HTML file that captions photos in any browser, offline.",
    ),
    Command(
        "push", "checkpoint → the Hugging Face hub", "clipcap.captioning.push:push",
        arguments=(
            argument("checkpoint", group="model", help="a folder made by train, or a .pt"),
            argument("name", metavar="USER/NAME", group="output", help="repository on the hub"),
            argument("--public", action="store_true", group="output", help="everybody may see it"),
        ),
        group="other", prints="{}",
        description="A checkpoint with its card → the Hugging Face hub, private unless --public is given. "
        "Log in first: hf auth login.",
    ),
    Command(
        "convert", "a hybrid CLIP of flax → a folder for hf:", "clipcap.models.encoders.flax_hybrid:convert",
        arguments=(
            argument("folder", metavar="FOLDER", group="model",
                     help="folder of config.json and flax_model.msgpack, or a hub name"),
            argument("--out", required=True, group="output", help="folder to write"),
            argument("--tokenizer", default=None, group="model", help="tokenizer to store with it"),
        ),
        group="other", prints="encoder: hf:{}",
        description="A hybrid CLIP of flax → a folder that hf: and AutoModel of transformers read.",
    ),
    Command("doctor", "versions, devices, memory, caches", "clipcap.cli.doctor:report", group="other", prints="{}"),
    Command(
        "completion", "a script that completes commands and flags in the shell",
        "clipcap.cli.completion:completion", group="other", prints="{}",
        description='Prints the script; bash: eval "$(clipcap completion bash)".',
        arguments=(argument("shell", choices=("bash", "zsh", "fish"), group="output", help="your shell"),),
    ),
)  # fmt: skip
