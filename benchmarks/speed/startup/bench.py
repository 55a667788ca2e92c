"""Start-up: the command's help, and one photo captioned, beside the bare imports that they cannot do without.

python -m benchmarks.speed.startup.bench [--turns 5] [--cpu_time] [--profile] [--before FOLDER]
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median

from benchmarks.measure import REPO, Clock, Comparison, children_time, machine, peak_gib, table

PHOTO = str(REPO / "docs" / "captions.jpg")
HELP, ONE_PHOTO = ("predict.py", "--help"), ("predict.py", "--img", PHOTO)
NOTHING, TORCH = "pass", "import torch"
LANGUAGE_MODEL = "import torch; from transformers import GPT2LMHeadModel"


def python(*words: str) -> subprocess.CompletedProcess[str]:
    """A new Python that does this and ends, without network."""
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    return subprocess.run([sys.executable, *words], cwd=REPO, env=env, check=True, capture_output=True, text=True)


def done(*words: str) -> int:
    """Run it; one thing done."""
    python(*words)
    return 1


def compare(
    title: str, target: str, bare: str | Sequence[str], words: Sequence[str], turns: int, clock: Clock
) -> Comparison:
    """A command beside some bare imports, or the words of another command, in turn; the notes have the seconds."""
    result = Comparison(title, target)
    plain, ours = partial(done, *(("-c", bare) if isinstance(bare, str) else bare)), partial(done, *words)
    plain(), ours()  # bytecode is written, files are in the cache
    for _ in range(turns):
        result.turn(plain, ours, clock)
    named = bare if isinstance(bare, str) else "before"
    result.notes.append(f"`{named}` {median(result.plain):.2f} s, ours {median(result.ours):.2f} s")
    return result


def comparisons(turns: int, clock: Clock) -> list[Comparison]:
    """All of them."""
    kinds = (
        ("`predict.py --help`", "< 1 s", NOTHING, HELP),
        ("`clipcap --help`", "< 1 s", NOTHING, ("-m", "clipcap", "--help")),
        ("`predict.py` on one photo, bundled model", "near 1", TORCH, ONE_PHOTO),
        ("the same, beside the language model's import", "near 1", LANGUAGE_MODEL, ONE_PHOTO),
    )
    return [compare(*kind, turns, clock) for kind in kinds]


def beside(folder: Path, turns: int, clock: Clock) -> list[Comparison]:
    """The commands of another checkout, in `folder`, beside those of this one."""
    older, photo = str(folder / "predict.py"), ("--img", PHOTO)
    kinds = (
        ("one photo", photo),
        ("one photo, beam search", ("--beam", *photo)),
        ("one photo, `--dtype int8`", ("--dtype", "int8", *photo)),
        ("one photo, `--dtype bfloat16`", ("--dtype", "bfloat16", *photo)),
        ("`--help`", ("--help",)),
    )
    return [compare(title, "> 1", (older, *words), ("predict.py", *words), turns, clock) for title, words in kinds]


def profile() -> str:
    """Where the start of captioning one photo goes: seconds of import by package, without those it brings."""
    said = python("-X", "importtime", *ONE_PHOTO).stderr
    times: Counter[str] = Counter()
    for own, name in re.findall(r"import time:\s+(\d+) \|\s+\d+ \|\s+([\w.]+)", said):
        times[name.split(".")[0]] += int(own) / 1e6
    lines = [f"| {name} | {seconds:.2f} |" for name, seconds in times.most_common(12)]
    return "\n".join(["| package | its own import, s |", "| --- | --- |", *lines, f"| all | {times.total():.2f} |"])


def short() -> list[Comparison]:
    """One turn, for `python -m benchmarks`."""
    return comparisons(1, time.perf_counter)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--cpu_time", action="store_true", help="CPU seconds, for a busy machine")
    parser.add_argument("--profile", action="store_true", help="also seconds of import by package")
    parser.add_argument("--before", type=Path, default=None, help="another checkout, to compare with")
    args = parser.parse_args()
    clock = children_time if args.cpu_time else time.perf_counter
    print(machine(), flush=True)
    print(table(comparisons(args.turns, clock)))
    if args.before:
        print(table(beside(args.before.resolve(), args.turns, clock)), flush=True)
    print(f"peak memory of one photo: {peak_gib('clipcap', 'predict', '--img', PHOTO):.2f} GiB", flush=True)
    if args.profile:
        print(profile())
    print(machine())


if __name__ == "__main__":
    main()
