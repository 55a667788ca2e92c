"""Options of captioning: which captioner to load, how it decodes, where the captions go."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal, Self

from clipcap.errors import ClipcapError
from clipcap.options import LARGEST_SEED, Options, Recipe, at_least, option, part, within

BEAMS = 5
CANDIDATES = 20  # captions that --rerank consensus chooses among
LONGEST = 67  # tokens of a caption, as in the original
_LEAST = {"beam_size": 1, "num_captions": 1, "max_new_tokens": 1, "temp": 0, "top_k": 0, "min_new_tokens": 0}


@dataclass(frozen=True)
class DecodeConfig(Options, group="decoding"):
    """How captions are written (ClipCap, section 3.4)."""

    reference_searches: ClassVar[bool] = False  # whether --recipe reference is beam search where nothing is chosen

    beam: bool | None = option(
        None, "beam search (default: on, unless an option of sampling is given: --greedy, --temp, --top_p, ...)"
    )
    beam_size: int | None = option(
        None,
        f"beams of beam search (default: {BEAMS}, {CANDIDATES} with --rerank consensus, or --num_captions where that "
        "is more)",
    )
    greedy: bool = option(False, "always the most likely token (same as --temp 0)")
    temp: float | None = option(
        None,
        "temperature of sampling: below 1 safer, above 1 wilder, 0 greedy (default: 1; with --beam: of its scores, "
        "where 0 counts as 1, as in the original)",
        aliases=("temperature",),
    )
    top_p: float | None = option(
        None, "sampling only: from the smallest set of tokens with this probability (default: 0.8; 1: all)"
    )
    top_k: int | None = option(None, "sampling only: from this many likeliest tokens (default: 0: all)")
    num_captions: int = option(1, "captions per image, best first")
    max_new_tokens: int | None = option(
        None,
        f"longest caption in tokens (default: {LONGEST}, or what the language model has room for)",
        aliases=("entry_length",),
    )
    min_new_tokens: int = option(0, "shortest caption in tokens")
    repetition_penalty: float = option(1.0, "above 1: tokens already written become less likely")
    stop_token: str | None = option(
        None, "token that ends a caption, besides end-of-text (default: the checkpoint's; '.' for a .pt)"
    )
    prompt: str = option("", "words every caption starts with")
    rerank: Literal["none", "clip", "consensus"] = option(
        "none",
        "order captions; clip: by how well they fit the image; consensus: by the captions of similar images of "
        "--datastore",
    )
    score_with: str | None = option(
        None,
        "second encoder, whose text tower judges captions by the photos themselves (default: the captioner's own)",
    )
    seed: int | None = option(None, "sampling only: repeat the same samples")
    recipe: Recipe = option("default", "reference: raw text, stop at '.', sampling is greedy, as the original")

    def __post_init__(self) -> None:
        if self.beam and self.greedy:
            raise ClipcapError("--beam and --greedy are two ways to decode: choose one")
        for name, least in _LEAST.items():
            if getattr(self, name) is not None:
                at_least(name, getattr(self, name), least)
        if self.top_p is not None:
            within("top_p", self.top_p, 0, 1)
        if self.repetition_penalty <= 0:
            raise ClipcapError(f"--repetition_penalty must be above 0, got {self.repetition_penalty}")
        if self.searches and self.beam_size is not None and self.num_captions > self.beam_size:
            raise ClipcapError(
                f"--num_captions {self.num_captions} is more than --beam_size {self.beam_size}: "
                f"raise --beam_size to {self.num_captions}"
            )
        if self.rerank == "consensus" and 1 in (self.top_k, self.beam_size if self.searches else None):
            raise ClipcapError("--rerank consensus chooses among several captions: raise --beam_size, or --top_k")
        if self.seed is not None:
            within("seed", self.seed, 0, LARGEST_SEED)
        if self.min_new_tokens > self.longest:
            raise ClipcapError(f"--min_new_tokens {self.min_new_tokens} is above --max_new_tokens {self.longest}")

    @property
    def longest(self) -> int:
        """The longest caption in tokens, where the language model has room for it."""
        return LONGEST if self.max_new_tokens is None else self.max_new_tokens

    def fit_to(self, room: int) -> Self:
        """A copy whose longest caption is given, at most `room` tokens where it was not before."""
        return replace(self, max_new_tokens=min(LONGEST, max(1, room))) if self.max_new_tokens is None else self

    @property
    def samples(self) -> bool:
        """Whether an option of sampling is given."""
        return self.greedy or any(value is not None for value in (self.temp, self.top_p, self.top_k, self.seed))

    @property
    def searches(self) -> bool:
        """Whether captions are written by beam search: as `beam` states, else by what else is given."""
        if self.beam is not None:
            return self.beam
        return not self.samples and (self.reference_searches or self.recipe != "reference")

    @property
    def candidates(self) -> int:
        """Captions of an image that the best is chosen among, where --beam_size does not say."""
        return CANDIDATES if self.rerank == "consensus" else BEAMS

    def resolved(self) -> Self:
        """A copy with a value for each option whose default depends on others."""
        return replace(
            self,
            beam=self.searches,
            beam_size=max(self.candidates, self.num_captions) if self.beam_size is None else self.beam_size,
            temp=1.0 if self.temp is None else self.temp,
            top_p=0.8 if self.top_p is None else self.top_p,
            top_k=self.top_k or 0,
        )


@dataclass(frozen=True)
class LoadOptions(Options, group="model"):
    """Which checkpoint to load, and what its file may lack."""

    load_pt: str | None = option(None, "checkpoint: a folder of `clipcap train`, a .pt of the original, a hub name")
    lm: str | None = option(
        None, "language model of a .pt (default: gpt2), or the new place of the one that a folder names"
    )
    clip_model_type: str | None = option(None, "encoder, where the checkpoint's has moved or is not known")
    tokenizer: str | None = option(None, "tokenizer of an hf: encoder whose folder has none")
    normalize_prefix: bool | None = option(None, "a .pt was trained on normalised embeddings (a folder states it)")
    device: str = option("auto", "auto, cpu, cuda, cuda:1, mps", group="machine")


@dataclass(frozen=True)
class LoadConfig(LoadOptions):
    """Which captioner to load, and how."""

    num_heads: int | None = option(
        None, "attention heads of a .pt's transformer mapper (default: 8, the original's; a folder states it)"
    )
    memory: str | None = option(
        None, "folder of texts: each photo becomes a mixture of them first (for captioners of --objective text)"
    )
    datastore: str | None = option(
        None,
        "features with captions, an index of them, or texts: for --rerank consensus, and where captioners of "
        "--prompts captions retrieve what they read, in place of that of the training",
    )
    prompt_gate: float | None = option(
        None, "images whose nearest has a lower cosine have no prompt (default: of the training; -1: all have one)"
    )
    entities: str | None = option(
        None, "file of words, one a line, that captions may name (for captioners of --prompts entities)"
    )
    dtype: Literal["auto", "float32", "bfloat16", "int8"] = option(
        "float32",
        "numbers to multiply in: bfloat16, up to twice as fast where the processor or GPU has it; auto: where a CPU "
        "is faster in it; int8 of the language model alone, on a CPU; some captions differ",
        group="machine",
    )

    def __post_init__(self) -> None:
        if self.num_heads is not None:
            at_least("num_heads", self.num_heads, 1)
        if self.prompt_gate is not None:
            within("prompt_gate", self.prompt_gate, -1, 1)


@dataclass(frozen=True)
class OutputConfig(Options, group="output"):
    """What to caption beside photos, and where the captions go."""

    features: str | None = option(None, "caption the embeddings of a feature file instead of photos", group="data")
    limit: int = option(0, "caption the first images alone, for a try (0: all)", group="data")
    batch_size: int = option(16, "images decoded together", group="machine")
    out: str | None = option(
        None, "write FILE.jsonl or FILE.csv, a line per image, instead of printing; an interrupted run is continued"
    )
    out_format: Literal["clipcap", "imagefolder", "kohya"] = option(
        "clipcap", "lines of --out FILE.jsonl: with scores; file_name and text; or image_path and caption"
    )
    sidecar: bool = option(False, "write a .txt beside each photo, with a line for each of --num_captions")
    out_tree: str | None = option(None, "as --sidecar, but into this folder, which mirrors the tree of the photos")
    caption_extension: str = option(".txt", "suffix of the files of --sidecar and --out_tree, such as .caption")
    existing: Literal["skip", "replace", "append", "prepend"] = option(
        "skip", "photos that have a text file: left out, or their text is replaced or joined with the caption"
    )
    overwrite: bool = option(False, "as --existing replace")
    caption_prefix: str = option(
        "", "text set before each caption once it is written (--prompt is read by the model, and changes the caption)"
    )
    caption_suffix: str = option("", "text set after each caption once it is written")

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        at_least("limit", self.limit, 0)
        self._check_texts()
        if self.out_format != "clipcap" and not (self.out or "").endswith(".jsonl"):
            raise ClipcapError(f"--out_format {self.out_format} is of a file: add --out metadata.jsonl")
        if self.out and not self.out.endswith((".jsonl", ".csv")):
            raise ClipcapError(f"--out {self.out}: end the name in .jsonl or .csv")
        if self.sidecar and self.features:
            raise ClipcapError("--sidecar writes beside photos, --features has none: use --out")
        if self.out_tree and self.features:
            raise ClipcapError("--out_tree mirrors the tree of photos, --features has none: use --out")

    def _check_texts(self) -> None:
        """Check the options of text files."""
        suffix = self.caption_extension
        if not suffix.strip(".") or "/" in suffix or "\\" in suffix or "\0" in suffix:
            raise ClipcapError(f"--caption_extension {suffix!r}: must be a suffix such as .txt or .caption")
        if self.caption_extension[0] != ".":
            object.__setattr__(self, "caption_extension", f".{suffix}")
        if self.overwrite:
            if self.existing not in ("skip", "replace"):
                raise ClipcapError(f"--overwrite means --existing replace, but {self.existing} was given: drop one")
            object.__setattr__(self, "existing", "replace")
        places = [f"--{name}" for name in ("sidecar", "out_tree", "out") if getattr(self, name)]
        if len(places) > 1:
            raise ClipcapError(f"{places[0]} and {places[1]} are two places for the captions: choose one")


@dataclass(frozen=True)
class CaptionConfig(Options):
    """Which model captions, how it decodes, and where the captions go."""

    load: LoadOptions = part(LoadOptions)
    decode: DecodeConfig = part(DecodeConfig)
    output: OutputConfig = part(OutputConfig)


@dataclass(frozen=True)
class PredictConfig(CaptionConfig):
    """A captioner, and what it captions."""

    load: LoadConfig = part(LoadConfig)


def decoding(config: DecodeConfig | None, options: Mapping[str, Any]) -> DecodeConfig:
    """How a caller wants captions decoded: by `config`, with `options` in place of its own."""
    if config is None:
        config = DecodeConfig.of(**options)
        return config if config.beam is not None else replace(config, beam=not config.samples)
    return config.with_options(**options)
