"""What runs in Java: the tokenizer of the COCO evaluation, METEOR and SPICE, from the jars of pycocoevalcap.

Each is one call for all captions: everything is written, Java ends, everything is read, so that neither side can wait
for the other. If a program cannot run, `Unavailable` states the reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.evaluation.metrics.ptb_tokenizer import PUNCTUATION

# Encoding and decimal points must not depend on the machine's locale.
_EVERYWHERE = ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
_CORENLP = "stanford-corenlp-3.4.1.jar"
_SPICE_FILES = ("spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar")
_METEOR_FIELDS = 23
_TIMEOUT_S = 3600


class Unavailable(ClipcapError):
    """A Java program that cannot run here; its text is the reason."""


def stanford_tokenize(captions: Sequence[str]) -> list[list[str]]:
    """Lower-case tokens of each caption from `PTBTokenizer` of Stanford CoreNLP 3.4.1, without punctuation.

    White space of any kind inside a caption counts as one blank. (A line break would move all later captions.)

    Raises:
        Unavailable: no Java, no jar, or Java gave another number of lines.
    """
    jar = _files("tokenizer", _CORENLP)[0]
    # The last line is ours: at the very end of its input the tokenizer does not know a contraction.
    lines = [" ".join(caption.split()) for caption in captions] + ["."]
    arguments = ["-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    out = _run(arguments, "\n".join(lines) + "\n", jar.parent).removesuffix("\n").split("\n")
    if len(out) != len(lines):
        raise Unavailable(f"Java's tokenizer gave {len(out)} lines for {len(lines)}")
    return [[token for token in line.split(" ") if token and token not in PUNCTUATION] for line in out[:-1]]


def meteor_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What METEOR 1.5 counts in each image, against the reference that fits best.

    Args:
        candidates: one tokenised caption an image, tokens parted by blanks.
        references: likewise, the human captions of each image.
    Returns:
        float64 [images, 23]: lengths and function words of both sides, matches of four kinds, chunks, words matched
        (see `clipcap.evaluation.metrics.score.meteor_of_counts`).
    Raises:
        Unavailable: no Java, no jar, no paraphrases, or METEOR failed.
    """
    jar = _files("meteor", "meteor-1.5.jar", "data/paraphrase-en.gz")[0]
    lines = []
    for candidate, several in zip(candidates, references, strict=True):
        lines.append(" ||| ".join(["SCORE", *(text.replace("|||", "") for text in (*several, candidate))]))
    out = _run(
        ["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"], "\n".join(lines) + "\n", jar.parent
    )
    try:
        counts = np.array([line.split() for line in out.splitlines()], dtype=np.float64)
    except ValueError:
        counts = np.empty(0)
    if counts.shape != (len(lines), _METEOR_FIELDS):
        raise Unavailable(f"METEOR answered {out.strip()[:80]!r}")
    whole = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
    counts[whole, 20] = 0  # METEOR has no penalty for a caption that equals its reference
    return counts


def spice(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """SPICE's F-score of each image, float64 [images].

    Raises:
        Unavailable: no Java, no jar, no CoreNLP 3.6.0 models (pycocoevalcap does not bring them), or SPICE failed.
    """
    try:
        jar = _files("spice", *_SPICE_FILES)[0]
    except Unavailable as error:
        raise Unavailable(f"{error} (python -m pycocoevalcap.spice.get_stanford_models fetches it)") from error
    pairs = enumerate(zip(candidates, references, strict=True))
    images = [{"image_id": i, "test": candidate, "refs": list(several)} for i, (candidate, several) in pairs]
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "in.json", Path(folder) / "out.json"
        given.write_text(json.dumps(images), encoding="utf-8")
        _run(["-Xmx8G", "-jar", str(jar), str(given), "-out", str(found), "-subset", "-silent"], "", jar.parent)
        try:
            scores = {image["image_id"]: image["scores"]["All"]["f"] for image in json.loads(found.read_bytes())}
            return np.array([float(scores[i]) for i in range(len(images))])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"SPICE wrote no scores: {type(error).__name__}: {error}") from error


def _files(part: str, *names: str) -> list[Path]:
    """Files of a part of pycocoevalcap, found without importing it."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise Unavailable("no pycocoevalcap: pip install 'clipcap-toolkit[eval]'")
    folder = Path(package.submodule_search_locations[0]) / part
    for name in names:
        if not (folder / name).is_file():
            raise Unavailable(f"no {name} in {folder}")
    return [folder / name for name in names]


def _run(arguments: Sequence[str], text: str, folder: Path) -> str:
    """What a Java program prints for a text, read and written as UTF-8."""
    java = shutil.which("java")
    if java is None:
        raise Unavailable("no java on PATH")
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            [java, *_EVERYWHERE, *arguments],
            input=text.encode("utf-8", "replace"),
            capture_output=True,
            cwd=folder,
            env=environment,
            timeout=_TIMEOUT_S,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unavailable(f"{java}: {error}") from error
    if done.returncode:
        lines = done.stderr.decode("utf-8", "replace").strip().splitlines() or ["nothing"]
        raise Unavailable(f"{java} ended with {done.returncode} and wrote {lines[-1]!r}")
    return done.stdout.decode("utf-8", "replace").replace("\r\n", "\n")
