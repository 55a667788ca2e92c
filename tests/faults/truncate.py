"""Files that commands read, each cut at every power of two bytes: said in one line, or read as what is left of it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.faults.forked import Running
from tests.faults.inject import powers
from tests.faults.outcome import RIGHT, SAID, Injection, last_line
from tests.faults.work import digests, evaluate_words, index_words, parse_words, train_words

SHORTER = "read as the shorter file that it is"
# Files that do not say how long they are, so that a cut one is a sound shorter one; and photos, which are left out
# and listed.
OPEN_ENDED = ("captions.csv", "few.csv", "metrics.jsonl", ".png", "README.md")


def _search_words(stage: Path, out: Path) -> list[object]:
    return ["search", "--index", stage / "index", "--image_id", "1.png", "--out", out.with_suffix(".jsonl")]


def _predict_words(stage: Path, out: Path) -> list[object]:
    return ["predict", "--load_pt", stage / "run", "--img", stage / "set" / "0.png", "--beam", "--max_new_tokens", 8,
            "--device", "cpu", "--out", out.with_suffix(".jsonl")]  # fmt: skip


def _compare_words(stage: Path, out: Path) -> list[object]:
    return ["compare", stage / "scores", stage / "scores", "--out", out.with_suffix(".html"), "--no_java"]


# (what is cut, below the stage; the command that reads it)
READERS = {
    "set/captions.csv": parse_words,
    "set/7.png": parse_words,
    "clip.pt": parse_words,
    "features.pkl": evaluate_words,
    "features": lambda stage, out: index_words(stage, out),
    "gpt2": train_words,
    "run/clipcap-best": evaluate_words,
    "run/metrics.jsonl": evaluate_words,
    "index": _search_words,
    "scores": _compare_words,
}


def truncated_inputs(stage: Path, root: Path, most: int | None = None) -> Iterator[Injection]:
    """Cut each file of READERS at every power of two (or `most` of them), and run its reader."""
    log = root / "log"
    for words in (index_words(stage, stage / "index"), evaluate_words(stage, stage / "scores")):
        made = Running(words, log).wait()
        if made.status:
            raise RuntimeError(made.err)
    for name, words in READERS.items():
        whole = root / "whole"
        whole.mkdir(parents=True)
        ended = Running(words(stage, whole / "r"), log).wait()
        if ended.status:
            raise RuntimeError(ended.err)
        right = digests(whole, "r"), ended.out
        shutil.rmtree(whole)
        for path in [stage / name] if (stage / name).is_file() else sorted((stage / name).rglob("*")):
            if path.is_file():
                yield from _cut(path, name, words, stage, root, right, most)


def _cut(path: Path, name: str, words, stage: Path, root: Path, right, most: int | None) -> Iterator[Injection]:
    content, cuts = path.read_bytes(), powers(path.stat().st_size)
    for size in cuts if most is None else cuts[:: max(1, len(cuts) // most)]:
        out = root / "out"
        out.mkdir(parents=True)
        os.truncate(path, size)
        try:
            ended = Running(words(stage, out / "r"), root / "log").wait()
            found = digests(out, "r"), ended.out
        finally:
            path.write_bytes(content)
            shutil.rmtree(out)
        if ended.status == 0:
            shorter = SHORTER if path.name.endswith(OPEN_ENDED) else "finished, and wrong"
            outcome = RIGHT if found[0] == right[0] else shorter
        else:
            outcome = SAID if ended.one_line else f"status {ended.status}, not one clear line"
        outcome = RIGHT if outcome == SHORTER else outcome
        command = words(stage, out / "r")[0]
        line = ended.one_line or (last_line(ended) if ended.status else "")
        detail = f"{path.relative_to(stage)} cut to {size}"
        yield Injection(command, f"truncated input: {name}", outcome, "", True, detail, line)
