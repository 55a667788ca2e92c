"""Options of prompts in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import Options, at_least, option, within


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
    entities: str | None = option(None, "file of words, one a line, of which an image's best become its prompt")

    def __post_init__(self) -> None:
        at_least("prompt_captions", self.prompt_captions, 1)
        within("prompt_dropout", self.prompt_dropout, 0, 1)
        needs = {"captions": "datastore", "entities": "entities"}
        for kind, name in needs.items():
            if self.prompts == kind and getattr(self, name) is None:
                raise ClipcapError(f"--prompts {kind} needs --{name}: see `clipcap train --help`")
            if self.prompts != kind and getattr(self, name) is not None:
                raise ClipcapError(f"--{name} belongs to --prompts {kind}: add that, or leave it out")
        if self.retrieve_with and self.prompts != "captions":
            raise ClipcapError("--retrieve_with belongs to --prompts captions: add that, or leave it out")
