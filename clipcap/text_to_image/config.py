"""Options of text to picture: the mapping's training, drawing, slide shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Self

from clipcap.errors import ClipcapError
from clipcap.options import LARGEST_SEED, Options, Recipe, at_least, option, within

Rows = Literal["all", "word"]
Per = Literal["token", "word", "sentence"]
Source = Literal["food", "coco", "flickr8k", "conceptual", "custom"]
_SOURCE = "kind of set, if CAPTIONS is neither a text file nor a feature file"
_GENERATOR = (
    "a BigGAN-deep: a folder of config.json and pytorch_model.bin, a bare .bin, biggan-deep-128, -256 or -512 of the "
    "package's cache, or demo, the bundled one"
)
_TEXT_MODEL = "text model whose last hidden states are mapped: a name on the hub or a folder; demo: the bundled one"


def check_truncation(value: float) -> None:
    """Refuse a truncation outside of (0, 1]."""
    if not 0 < value <= 1:
        raise ClipcapError(f"--truncation must lie above 0 and at most at 1, got {value}")


@dataclass(frozen=True)
class TrainDrawConfig(Options, group="training"):
    """How captions train the mapping from hidden states to class embeddings."""

    generator: str = option("demo", _GENERATOR, group="model")
    text_model: str = option("distilbert-base-uncased", _TEXT_MODEL, group="model")
    out_dir: str = option("", "folder of the mapping", group="output")
    words: str | None = option(None, "words of each class (default: the generator's words.json, else ImageNet's)")
    solver: Literal["lstsq", "adam"] = option("lstsq", "lstsq: the exact solution; adam: steps, as the original")
    target: Literal["word", "sense", "mean"] | None = option(
        None,
        "embedding of a caption's word: of the class that the word was given to, of its first sense that is a class, "
        "or the mean of all classes below it (default: word; reference: sense)",
    )
    mask: bool | None = option(
        None, "hide padding from the text model, and leave it out (default: on; reference: off)"
    )
    rows: Rows = option("all", "all: every token of a caption is mapped to its class; word: those of its word alone")
    max_tokens: int = option(15, "longest caption in tokens, special ones included")
    source: Source = option("custom", _SOURCE, group="data")
    val_share: float = option(0.1, "share of the captions held out, where the set has no val split")
    bs: int = option(256, "captions per call of the text model", aliases=("batch_size",))
    epochs: int = option(10, "passes of --solver adam")
    lr: float = option(5e-3, "rate of --solver adam")
    adam_bs: int = option(1024, "captions per step of --solver adam")
    keep_hidden: bool = option(
        False, "keep the hidden states beside --out_dir, for further runs on the same captions"
    )
    seed: int = option(42, "seed of the held-out captions and of --solver adam")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")
    recipe: Recipe = option("default", "reference: captions split at blanks alone, target sense, no mask")

    def __post_init__(self) -> None:
        if not self.out_dir:
            raise ClipcapError("--out_dir is missing: the folder of the mapping")
        for name in ("bs", "epochs", "adam_bs"):
            at_least(name, getattr(self, name), 1)
        within("max_tokens", self.max_tokens, 3, 512)
        within("seed", self.seed, 0, LARGEST_SEED)
        if not 0 < self.val_share < 1:
            raise ClipcapError(f"--val_share is a share between 0 and 1, got {self.val_share}")
        if not self.lr > 0:
            raise ClipcapError(f"--lr must be above 0, got {self.lr}")

    @property
    def masked(self) -> bool:
        """Whether padding is hidden."""
        return self.recipe == "default" if self.mask is None else self.mask

    @property
    def word_target(self) -> Literal["word", "sense", "mean"]:
        """What a word's target is."""
        return self.target or ("sense" if self.recipe == "reference" else "word")


@dataclass(frozen=True)
class DrawConfig(Options, group="decoding"):
    """What is drawn of a text, and where it goes."""

    config: str | None = option(None, "config.yml of the original: models, mapping, seed, texts")
    load_pt: str | None = option(
        None,
        "mapping: a folder of train-draw, or the original's .pth (default: the bundled one)",
        aliases=("weights_dir",),
    )
    generator: str | None = option(None, _GENERATOR + " (default: the mapping's)")
    text_model: str | None = option(None, _TEXT_MODEL + " (default: the mapping's)")
    words: str | None = option(None, "words of each class (default: the generator's words.json, else ImageNet's)")
    out: str | None = option(
        None, "NAME.gif, NAME.png (a grid) or a folder of pictures; numbered where texts are many"
    )
    per: Per | None = option(
        None, "one picture for each token, word or sentence (default: word; reference: token, shown as words)"
    )
    mask: bool | None = option(None, "hide padding from the text model (default: as the mapping was trained)")
    truncation: float = option(0.4, "smaller: more typical pictures, alike; in (0, 1]")
    seed: int | None = option(None, "seed of the noise (default: 17)")
    same_noise: bool | None = option(
        None, "one noise vector for all pictures of a text (default: on; reference: one for each)"
    )
    exact: bool = option(False, "a word that stands for a class is drawn by the class's own embedding")
    pause: float | None = option(None, "seconds that a picture of a GIF is shown (default: 1)", group="output")
    width: int | None = option(None, "pixels of a shown picture's side (default: 300)", group="output")
    max_tokens: int | None = option(None, "longest text in tokens (default: as the mapping was trained, or 15)")
    interactive: bool | None = option(None, "ask for texts until the input ends", group="data")
    device: str | None = option(None, "auto, cpu, cuda, cuda:1, mps (default: auto)", group="machine")
    recipe: Recipe = option(
        "default", "reference: a picture for each token, noise for each, no mask, as the original"
    )

    def __post_init__(self) -> None:
        check_truncation(self.truncation)
        bounds = {"seed": (0, LARGEST_SEED), "pause": (0.02, 600), "width": (16, 4096), "max_tokens": (3, 512)}
        for name, (low, high) in bounds.items():
            if getattr(self, name) is not None:
                within(name, getattr(self, name), low, high)
        if self.recipe == "reference" and self.per not in (None, "token"):
            raise ClipcapError(f"--recipe reference draws one picture a token, not --per {self.per}")

    def resolved(self, options: Mapping[str, Any]) -> Self:
        """A copy in which what was not chosen is as in `options` (of a config.yml), else the default."""
        usual = {"seed": 17, "pause": 1.0, "width": 300, "interactive": False, "device": "auto", **options}
        return replace(self, **{name: value for name, value in usual.items() if getattr(self, name) is None})


@dataclass(frozen=True)
class SlideshowConfig(Options, group="output"):
    """Stored pictures shown word by word."""

    mask: str = option("", "beginning of the pictures' names (default: all pictures of the folder)")
    text: str = option("", "the sentence: one word a picture")
    out: str = option("", "NAME.gif or NAME.png (a grid)")
    pause: float = option(0.5, "seconds that a picture of a GIF is shown")
    width: int = option(300, "pixels of a shown picture's side")

    def __post_init__(self) -> None:
        if not self.text.split():
            raise ClipcapError("--text is missing: the sentence, one word a picture")
        if not self.out:
            raise ClipcapError("--out is missing: NAME.gif or NAME.png")
        within("pause", self.pause, 0.02, 600)
        within("width", self.width, 16, 4096)


@dataclass(frozen=True)
class SynthesiseConfig(Options, group="decoding"):
    """Pairs of generated pictures and captions, which match by construction."""

    load_pt: str | None = option(
        None, "mapping: a folder of train-draw, or the original's .pth (default: the bundled one)", group="model"
    )
    generator: str | None = option(None, _GENERATOR + " (default: the mapping's)", group="model")
    text_model: str | None = option(None, _TEXT_MODEL + " (default: the mapping's)", group="model")
    words: str | None = option(
        None, "words of each class (default: the generator's words.json, else ImageNet's)", group="model"
    )
    source: Source = option("custom", _SOURCE, group="data")
    count: int = option(1000, "pairs to make")
    captions: Literal["class", "full"] = option(
        "class", "class: cut to what the generator controls (--template); full: as they are"
    )
    template: str = option("a {}", "caption of --captions class, with {} for the class word")
    exact: bool = option(False, "draw by the class's own embedding, not by what the mapping makes of the caption")
    truncation: float = option(0.6, "smaller: more typical pictures, alike; in (0, 1]")
    filter_encoder: str | None = option(None, "encoder that scores how well each picture fits its caption")
    keep: float = option(1.0, "share of the pairs to keep, the best by --filter_encoder")
    out: str = option("", "folder of the set: images/ and captions.csv, as `custom` reads it", group="output")
    seed: int = option(0, "of the choice of captions and the noise")
    workers: int = option(1, "processes that draw", group="machine")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")

    def __post_init__(self) -> None:
        check_truncation(self.truncation)
        within("seed", self.seed, 0, 2**31 - 1)
        for name in ("count", "workers"):
            at_least(name, getattr(self, name), 1)
        if not self.out:
            raise ClipcapError("--out is missing: the folder of the set")
        if "{}" not in self.template:
            raise ClipcapError(f"--template {self.template!r}: put {{}} where the class word goes")
        if not 0 < self.keep <= 1:
            raise ClipcapError(f"--keep is a share above 0 and at most 1, got {self.keep}")
        if self.keep < 1 and not self.filter_encoder:
            raise ClipcapError("--keep needs --filter_encoder: the encoder that scores the pairs")

    def drawing(self) -> DrawConfig:
        """How the pictures are drawn."""
        return DrawConfig(
            load_pt=self.load_pt, generator=self.generator, text_model=self.text_model, words=self.words,
            truncation=self.truncation, exact=True, device=self.device,
        )  # fmt: skip
