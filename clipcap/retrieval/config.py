"""Options of indexes and of search."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from clipcap.errors import ClipcapError
from clipcap.options import Options, at_least, option, within

Tower = Literal["image", "text"]
_TOWER = "embeddings of images, or of captions (of a folder of clip-retrieval; others encode their captions)"


@dataclass(frozen=True)
class IndexConfig(Options, group="index"):
    """An index of features: where it goes, and how it is searched."""

    out: str = option("", "folder of the index")
    append: bool = option(False, "add the features to an existing index")
    kind: Literal["auto", "exact", "ivf", "hnsw"] = option(
        "auto",
        "exact: compare every row; ivf, hnsw: faiss, approximate; auto: exact up to --exact_up_to rows, then ivf",
    )
    exact_up_to: int = option(1_000_000, "rows that --kind auto searches exactly")
    recall: float = option(0.95, "share of the true 10 nearest that an approximate search is set to find")
    tower: Tower = option("image", _TOWER)
    clip_model_type: str | None = option(
        None, "encoder of photos (default: that of the index, else ViT-B/32), or of features that do not state it"
    )
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")
    duplicates: bool = option(False, "print the images that are nearly the same, in groups", group="output")
    duplicate_cosine: float = option(0.95, "cosine from which on two images count as nearly the same", group="output")

    def __post_init__(self) -> None:
        within("duplicate_cosine", self.duplicate_cosine, -1, 1)
        if not self.out:
            raise ClipcapError("--out is missing: the folder of the index")
        at_least("exact_up_to", self.exact_up_to, 0)
        within("recall", self.recall, 0, 1)


@dataclass(frozen=True)
class SearchConfig(Options, group="query"):
    """A search for pictures."""

    index: str = option("", "where to search: features, an index made by `clipcap index`, or one of clip-retrieval")
    k: int = option(9, "matches to show", group="output")
    out: str | None = option(None, "write the matches: NAME.jsonl, or a labelled grid, NAME.png", group="output")
    image_id: str | None = option(None, "search with the embedding of this image of the index")
    caption_id: int | None = option(None, "search with the text of this caption of the index, counted from 0")
    embedding: str | None = option(None, "search with the embeddings of NAME.npy: [D], or [queries, D]")
    exact: bool = option(False, "compare every row, also where the index is approximate")
    softmax: bool = option(
        False,
        "add the share of each image: softmax of the encoder's scale times the cosine, over the images of --img, or "
        "over the matches shown of an index",
    )
    tokenizer: str | None = option(None, "tokenizer of an hf: encoder whose folder has none", group="model")
    frame: Literal["first", "middle"] = option("first", "which frame of an animation to take")
    tower: Tower = option("image", _TOWER)
    clip_model_type: str | None = option(None, "encoder of the features, where it has moved or they do not state it")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")

    def __post_init__(self) -> None:
        at_least("k", self.k, 1)
        if not self.index and not self.softmax:
            raise ClipcapError("--index is missing: features of the pictures, or an index made by `clipcap index`")
