"""Options of classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import Options, at_least, option


@dataclass(frozen=True)
class ClassifyConfig(Options, group="model"):
    """Options of classification: photos, labels, outputs."""

    clip_model_type: str = option(
        "ViT-B/32", "encoder: an OpenAI name, a file, open_clip:… or hf:…; demo: the bundled one"
    )
    tokenizer: str | None = option(None, "tokenizer of an hf: encoder whose folder has none")
    labels: str | None = option(
        None, "a,b,c or a file with one label a line; label|opposite judges each label by itself", group="query"
    )
    data: str | None = option(
        None,
        "photos with their true label: a table with a label column, or a folder with one folder a label",
        group="data",
    )
    image_column: str | None = option(
        None, "column of the image paths in --data and --fit (default: guessed)", group="data"
    )
    label_column: str | None = option(
        None, "column of the labels in --data and --fit (default: guessed)", group="data"
    )
    fit: str | None = option(
        None, "fit a linear probe on these photos with labels, in place of prompts; as --data", group="query"
    )
    flag: str | None = option(
        None,
        "labels a,b that flag a photo when they reach their threshold; the exit status is then 3",
        group="query",
    )
    move: str | None = option(None, "move flagged photos to this folder", group="output")
    list: str | None = option(None, "write the paths of flagged photos to this file", group="output")
    top: int = option(5, "labels to show of each photo", group="output")
    out: str | None = option(
        None,
        "write every photo's labels: NAME.jsonl, NAME.csv, or a sheet of photos and bars, NAME.png",
        group="output",
    )
    report: str | None = option(
        None, "write accuracy, classes and confusion: NAME.json (with --data)", group="scores"
    )
    batch_size: int = option(32, "images per encoder call", group="machine")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")
    frame: Literal["first", "middle"] = option("first", "which frame of an animation to take", group="data")

    def __post_init__(self) -> None:
        at_least("top", self.top, 1)
        at_least("batch_size", self.batch_size, 1)
        if self.out and not self.out.lower().endswith((".jsonl", ".csv", ".png")):
            raise ClipcapError(f"--out {self.out}: end the name in .jsonl, .csv or .png")
        if self.report and not self.report.endswith(".json"):
            raise ClipcapError(f"--report {self.report}: end the name in .json")
        if (self.move or self.list) and not self.flag:
            raise ClipcapError("--move and --list are for flagged photos: name the labels that flag with --flag")
