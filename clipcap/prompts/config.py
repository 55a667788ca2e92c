"""Options of prompts in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import Options, at_least, option, within

RENAMING = 0.3


@dataclass(frozen=True)
class PromptConfig(Options, group="data"):
    """What text a captioner learns to read before it writes."""

    prompts: Literal["none", "captions", "entities"] = option(
        "none", "text before a caption: captions of similar images (--datastore), or words of a list (--entities)"
    )
    datastore: str | None = option(
        None, "where captions are retrieved: features with captions, an index of them, or a folder of texts"
    )
    prompt_captions: int = option(4, "retrieved captions of a prompt")
    prompt_dropout: float = option(0.15, "share of training examples whose prompt is left out")
    retrieve_with: str | None = option(
        None, "encoder that made the datastore, where it is not that of the features: it looks at the photos again"
    )
    entities: str | None = option(
        None,
        "file of words, one a line: an image's best become its prompt; with --prompts captions those that --renaming "
        "exchanges",
    )
    renaming: float | None = option(
        None,
        "share of training examples in which a word of --entities becomes another one, in caption and prompt alike, "
        f"so that names are taken from the prompt (default: {RENAMING} with --entities)",
    )

    def __post_init__(self) -> None:
        at_least("prompt_captions", self.prompt_captions, 1)
        within("prompt_dropout", self.prompt_dropout, 0, 1)
        if self.renaming is not None:
            within("renaming", self.renaming, 0, 1)
            if self.entities is None:
                raise ClipcapError("--renaming exchanges words of --entities: add that list, or leave it out")
        needs = {"captions": "datastore", "entities": "entities"}
        for kind, name in needs.items():
            if self.prompts == kind and getattr(self, name) is None:
                raise ClipcapError(f"--prompts {kind} needs --{name}: see `clipcap train --help`")
        if self.datastore is not None and self.prompts != "captions":
            raise ClipcapError("--datastore belongs to --prompts captions: add that, or leave it out")
        if self.entities is not None and self.prompts == "none":
            raise ClipcapError("--entities belongs to --prompts entities or captions: add one, or leave it out")
        if self.retrieve_with and self.prompts != "captions":
            raise ClipcapError("--retrieve_with belongs to --prompts captions: add that, or leave it out")

    @property
    def renamed(self) -> float:
        """The share of training examples in which a word becomes another one."""
        return (RENAMING if self.entities else 0) if self.renaming is None else self.renaming
