"""Options of evaluation and comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from clipcap.captioning.config import DecodeConfig, LoadConfig
from clipcap.errors import ClipcapError
from clipcap.options import Options, at_least, option, part, within


@dataclass(frozen=True)
class EvaluateDecodeConfig(DecodeConfig):
    """How captions are written to be scored: as everywhere, and by beam search in the reference recipe too."""

    reference_searches: ClassVar[bool] = True


@dataclass(frozen=True)
class EvaluateConfig(Options, group="data"):
    """What to score: a checkpoint on a feature file, or existing captions."""

    load: LoadConfig = part(LoadConfig)
    decode: EvaluateDecodeConfig = part(EvaluateDecodeConfig)
    data: str | None = option(None, "feature file with human captions: its images are captioned and scored")
    predictions: str | None = option(
        None, "captions to score instead: COCO results (.json), or what predict --out wrote"
    )
    references: str | None = option(
        None, "their human captions: COCO annotations, {image: [captions]}, or a feature file"
    )
    out: str = option("evaluation", "folder for predictions.json, metrics.json and report.html", group="output")
    train_data: str | None = option(None, "feature file trained on: reports the share of captions copied from it")
    limit: int = option(0, "score only the first images of --data, for a trial run (0: all)")
    batch_size: int = option(16, "images decoded together", group="machine")
    characters: bool | None = option(
        None,
        "every character of a script without blanks is a token (default: where most human captions are in one, such "
        "as Chinese or Thai)",
        group="scores",
    )
    java: bool = option(
        True, "use Java if it is installed (the COCO server's tokenizer, METEOR, SPICE)", group="scores"
    )
    clip_score: bool = option(
        True, "also CLIPScore and self-retrieval, with the encoder of the features or of --score_with", group="scores"
    )
    pac_weights: str | None = option(
        None, "also PAC-S and RefPAC-S, with these weights: a CLIP fine-tuned to judge captions", group="scores"
    )
    objects: str | None = option(
        None,
        "also CHAIR, objects named that no reference names: a text with an object a line, and other words for it "
        "behind commas",
        group="scores",
    )

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        at_least("limit", self.limit, 0)
        if self.limit and not self.data:
            raise ClipcapError("--limit applies to --data: --predictions are all scored")
        if bool(self.data) == bool(self.predictions):
            raise ClipcapError("pass a feature file with --data, or captions with --predictions (one of the two)")
        if self.predictions and not self.references:
            raise ClipcapError("--predictions needs --references: the human captions of the same images")
        if self.pac_weights and not self.data:
            raise ClipcapError("--pac_weights looks at the pictures: pass a feature file with --data")
        if self.data and self.references:
            raise ClipcapError("--references belongs to --predictions: --data holds its own")


@dataclass(frozen=True)
class DataReportConfig(Options, group="data"):
    """What to look at in a feature file before training."""

    out: str = option("data.html", "page to write", group="output")
    val: str | None = option(None, "feature file held out: pictures that are nearly the same in both are shown")
    duplicate_cosine: float = option(0.95, "cosine from which on two pictures count as nearly the same")
    pairs: int = option(2000, "captions compared with their pictures, spread over the file (0: none)")
    objects: str | None = option(
        None,
        "count these objects instead of words: a text with an object a line, and other words for it behind commas",
    )
    clip_model_type: str | None = option(None, "encoder of a file that does not state it", group="model")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")

    def __post_init__(self) -> None:
        within("duplicate_cosine", self.duplicate_cosine, -1, 1)
        at_least("pairs", self.pairs, 0)
        if not self.out.endswith(".html"):
            raise ClipcapError(f"--out {self.out}: end the name in .html")


@dataclass(frozen=True)
class CompareConfig(Options, group="output"):
    """Evaluations of the same images."""

    out: str | None = option(None, "also write a report with the captions of each picture side by side: NAME.html")
    java: bool = option(True, "use Java if it is installed", group="scores")
