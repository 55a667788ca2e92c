"""What is disturbed: each command on a small set with small models, and how to tell whether its result is right."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from clipcap.runtime.files import current_path
from tests.faults.forked import Ended, Running

IMAGES, OLDER_IMAGES = 40, 16


@dataclass(frozen=True)
class Work:
    """A command that writes something.

    Args:
        name: of the command.
        words: its command line, given the folder of the inputs and where the result goes.
        again: what a rerun adds to it.
        result: the name of the result in its folder.
        over: whether it may replace an older result; a command line that makes one, from other data.
        varying: files of the result that name its place or hold times.
    """

    name: str
    words: Callable[[Path, Path], list[object]]
    result: str
    again: tuple[str, ...] = ()
    over: Callable[[Path, Path], list[object]] | None = None
    varying: tuple[str, ...] = ()

    def start(self, stage: Path, folder: Path, log: Path, again: bool = False, **more: object) -> Running:
        """Begin the command; its result goes into `folder`."""
        return Running([*self.words(stage, folder / self.result), *(self.again if again else ())], log, **more)

    def run(self, stage: Path, folder: Path, log: Path, again: bool = False, **more: object) -> Ended:
        """The command, to its end."""
        return self.start(stage, folder, log, again, **more).wait()


def parse_words(stage: Path, out: Path, captions: str = "captions.csv") -> list[object]:
    """Photos → features."""
    return ["parse", "custom", "--data_path", stage / "set", "--captions", stage / "set" / captions, "--out", out,
            "--clip_model_type", stage / "clip.pt", "--batch_size", 4, "--device", "cpu", "--workers", 0]  # fmt: skip


def train_words(stage: Path, out: Path) -> list[object]:
    """Features → captioner."""
    return ["train", "--data", stage / "features.pkl", "--val", 0.25, "--lm", stage / "gpt2", "--out_dir", out,
            "--epochs", 2, "--bs", 6, "--lr", 1e-3, "--warmup_steps", 2, "--prefix_length", 4, "--save_steps", 2,
            "--val_captions", 2]  # fmt: skip


def evaluate_words(stage: Path, out: Path, data: str = "features.pkl") -> list[object]:
    """Captioner and features → scores and report."""
    return ["evaluate", "--load_pt", stage / "run", "--data", stage / data, "--out", out, "--device", "cpu",
            "--beam_size", 2, "--max_new_tokens", 8, "--no_java"]  # fmt: skip


def index_words(stage: Path, out: Path, data: str = "features", kind: str = "exact") -> list[object]:
    """Features → index."""
    return ["index", stage / data, "--out", out, "--kind", kind]


def contrastive_words(stage: Path, out: Path) -> list[object]:
    """Photos and captions → a CLIP."""
    return ["contrastive", "custom", "--data_path", stage / "set", "--captions", stage / "set" / "few.csv",
            "--out_dir", out, "--train_size", 0.75, "--epochs", 2, "--bs", 6, "--resolution", 32, "--patch_size", 8,
            "--vision_width", 64, "--vision_layers", 1, "--text_width", 64, "--text_layers", 1, "--embed_dim", 32,
            "--workers", 0, "--save_steps", 1]  # fmt: skip


def clip_gpt_words(stage: Path, out: Path) -> list[object]:
    """Features → CLIP-GPT."""
    return ["train-clip-gpt", "--data", stage / "few.pkl", "--val", 0.25, "--lm", stage / "gpt2", "--out_dir", out,
            "--epochs", 2, "--bs", 12, "--warmup_steps", 2, "--save_steps", 1, "--val_captions", 2]  # fmt: skip


def fit_words(stage: Path, out: Path) -> list[object]:
    """Photos and captions → features, captioner, scores."""
    return ["fit", stage / "set" / "captions.csv", "--out", out, "--clip_model_type", stage / "clip.pt",
            "--lm", stage / "gpt2", "--epochs", 2, "--bs", 6, "--no_java"]  # fmt: skip


def predict_words(stage: Path, out: Path) -> list[object]:
    """Photos → a file of captions."""
    return ["predict", "--img", stage / "set", "--load_pt", stage / "run", "--clip_model_type", stage / "clip.pt",
            "--out", out, "--batch_size", 2, "--max_new_tokens", 8, "--device", "cpu"]  # fmt: skip


WORKS = {
    work.name: work
    for work in (
        Work("parse", parse_words, "f.pkl", over=lambda s, out: parse_words(s, out, "few.csv")),
        Work("parse to a folder", parse_words, "f", over=lambda s, out: parse_words(s, out, "few.csv")),
        Work("train", train_words, "run", ("--resume",)),
        Work("evaluate", evaluate_words, "scores", over=lambda s, out: evaluate_words(s, out, "few.pkl")),
        Work("index", index_words, "index", over=lambda s, out: index_words(s, out, "few.pkl")),
        Work(
            "index, approximate",
            lambda s, out: index_words(s, out, kind="hnsw"),
            "index",
            over=lambda s, out: index_words(s, out, "few.pkl"),
        ),
        Work("contrastive", contrastive_words, "run", ("--resume",)),
        Work("train-clip-gpt", clip_gpt_words, "run", ("--resume",)),
        Work("fit", fit_words, "fitted", varying=("metrics.json", "report.html", "README.md", "_done")),
        Work("predict", predict_words, "captions.jsonl"),
    )
}


def prepare(stage: Path, log: Path) -> Path:
    """A set of photos, small models, and what the commands make of each other's results; returns the folder."""
    _built(lambda: _make_inputs(stage))
    for words in (
        parse_words(stage, stage / "features.pkl"),
        parse_words(stage, stage / "features"),
        parse_words(stage, stage / "few.pkl", "few.csv"),
        train_words(stage, stage / "run"),
    ):
        ended = Running(words, log).wait()
        if ended.status:
            raise RuntimeError(ended.err)
    return stage


def _built(build: Callable[[], None]) -> None:
    """In a process of its own: what has computed is no longer fit to be forked."""
    pid = os.fork()
    if pid == 0:
        try:
            build()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the inputs could not be made")


def _make_inputs(stage: Path) -> None:
    from clipcap.demo.tiny import make_clip, make_gpt2
    from tests.faults.pictures import draw_set

    captions = draw_set(stage / "set", IMAGES, OLDER_IMAGES)
    make_clip(stage / "clip.pt")
    make_gpt2(stage / "gpt2", captions, width=64)


# They name the folder that they lie in, or hold times.
_VARYING = ("errors.csv", "curves.html", "run.yaml", "steps.jsonl")


def varying_of(result: str) -> tuple[str, ...]:
    """The ends of the names of files that differ from run to run."""
    return (*_VARYING, *next((work.varying for work in WORKS.values() if work.result == result), ()))


def digests(folder: Path, result: str) -> dict[str, str]:
    """What a command has left under the name of its result: a digest of each file that must be the same every time.

    Times, and files that name their folder, are left out; anything hidden or unfinished is named, so that it shows.
    """
    varying, found = varying_of(result), {}
    for top in sorted(folder.iterdir()):
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            name = path.relative_to(folder).as_posix()
            if path.is_file() and not path.name.endswith(varying):
                found[name] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def standing_digests(folder: Path, result: str) -> dict[str, str]:
    """As a reader finds the result, also after an interrupted replacement, without what varies from run to run."""
    place = current_path(folder / result)
    if not place.exists():
        return {}
    files = [place] if place.is_file() else [p for p in sorted(place.rglob("*")) if p.is_file()]
    shown = [p for p in files if not any(part.startswith(".") for part in p.relative_to(place).parts)]
    shown = [p for p in shown if not p.name.endswith(varying_of(result))]
    return {p.relative_to(place).as_posix(): hashlib.sha256(p.read_bytes()).hexdigest()[:16] for p in shown}
