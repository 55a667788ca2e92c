"""What runs in Java: the tokenizer of the COCO evaluation, METEOR and SPICE, from the jars of pycocoevalcap.

Each is one call for all captions, started with a file and read when it has ended, so that neither side can wait for
the other, and METEOR and SPICE run beside the metrics in Python. If a program cannot run, `Unavailable` states the
reason.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import IO, Self

import numpy as np

from clipcap.errors import ClipcapError
from clipcap.scoring.ptb_tokenizer import PUNCTUATION

# Encoding and decimal points must not depend on the machine's locale.
_EVERYWHERE = ["-Dfile.encoding=UTF-8", "-Dstdout.encoding=UTF-8", "-Duser.language=en", "-Duser.country=US"]
_CORENLP = "stanford-corenlp-3.4.1.jar"
_SPICE_FILES = ("spice-1.0.jar", "lib/stanford-corenlp-3.6.0.jar", "lib/stanford-corenlp-3.6.0-models.jar")
_METEOR_FIELDS = 23
_TIMEOUT_S = 3600


class Unavailable(ClipcapError):
    """A Java program that cannot run here; its text is the reason."""


class Program:
    """A Java program that runs beside this one; at the end of a `with` block it is stopped if it still runs.

    Args:
        arguments: of `java`.
        given: its standard input.
        folder: where it runs.
        read: what it has printed → its result.
    Raises:
        Unavailable: no Java, or it cannot be started.
    """

    def __init__(self, arguments: Sequence[str], given: str, folder: Path, read: Callable[[str], np.ndarray]):
        self._java = shutil.which("java")
        if self._java is None:
            raise Unavailable("no java on PATH")
        self._read = read
        self._until = time.monotonic() + _TIMEOUT_S
        self._files = ExitStack()
        written, self._out, self._errors = (self._files.enter_context(tempfile.TemporaryFile()) for _ in range(3))  # noqa: SIM115
        written.write(given.encode("utf-8", "replace"))
        written.seek(0)
        try:
            self._process = subprocess.Popen(
                [self._java, *_EVERYWHERE, *arguments],
                stdin=written,
                stdout=self._out,
                stderr=self._errors,
                cwd=folder,
                env={**os.environ, "LC_ALL": "C.UTF-8"},
            )
        except OSError as error:
            self._files.close()
            raise Unavailable(f"{self._java}: {error}") from error

    def result(self) -> np.ndarray:
        """Wait until it ends.

        Raises:
            Unavailable: it failed, or answered something else.
        """
        return self._read(self.printed())

    def printed(self) -> str:
        """What it printed, as text; waits until it ends, and raises as `result`."""
        try:
            status = self._process.wait(timeout=max(0.0, self._until - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            self.stop()
            raise Unavailable(f"{self._java}: {error}") from error
        if status:
            lines = self._text(self._errors).strip().splitlines() or ["nothing"]
            raise Unavailable(f"{self._java} ended with {status} and wrote {lines[-1]!r}")
        return self._text(self._out).replace("\r\n", "\n")

    def _text(self, file: IO[bytes]) -> str:
        file.seek(0)
        return file.read().decode("utf-8", "replace")

    def stop(self) -> None:
        """Kill it if it still runs."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None):
        self.stop()
        self._files.close()


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
    with Program(arguments, "\n".join(lines) + "\n", jar.parent, np.array) as program:
        out = program.printed().removesuffix("\n").split("\n")
    if len(out) != len(lines):
        raise Unavailable(f"Java's tokenizer gave {len(out)} lines for {len(lines)}")
    return [[token for token in line.split(" ") if token and token not in PUNCTUATION] for line in out[:-1]]


def meteor_counts(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What `start_meteor` gives, awaited."""
    with start_meteor(candidates, references) as program:
        return program.result()


def start_meteor(candidates: Sequence[str], references: Sequence[Sequence[str]]) -> Program:
    """Start METEOR 1.5, which counts matches in each image, against the reference that fits best.

    Args:
        candidates: one tokenised caption an image, tokens parted by blanks.
        references: likewise, the human captions of each image.
    Returns:
        whose result is float64 [images, 23]: lengths and function words of both sides, matches of four kinds, chunks,
        words matched (see `clipcap.evaluation.metrics.score.meteor_of_counts`).
    Raises:
        Unavailable: no Java, no jar, no paraphrases, or METEOR failed.
    """
    jar = _files("meteor", "meteor-1.5.jar", "data/paraphrase-en.gz")[0]
    lines = []
    for candidate, several in zip(candidates, references, strict=True):
        lines.append(" ||| ".join(["SCORE", *(text.replace("|||", "") for text in (*several, candidate))]))

    def read(printed: str) -> np.ndarray:
        try:
            counts = np.array([line.split() for line in printed.splitlines()], dtype=np.float64)
        except ValueError:
            counts = np.empty(0)
        if counts.shape != (len(lines), _METEOR_FIELDS):
            raise Unavailable(f"METEOR answered {printed.strip()[:80]!r}")
        whole = (counts[:, 20] == 1) & (counts[:, 21] == counts[:, 0]) & (counts[:, 22] == counts[:, 1])
        counts[whole, 20] = 0  # METEOR has no penalty for a caption that equals its reference
        return counts

    arguments = ["-Xmx2G", "-jar", str(jar), "-", "-", "-stdio", "-l", "en", "-norm"]
    return Program(arguments, "\n".join(lines) + "\n", jar.parent, read)


def start_spice(candidates: Sequence[str], references: Sequence[Sequence[str]], folder: Path) -> Program:
    """Start SPICE, whose result is the F-score of each image, float64 [images].

    Args:
        candidates: as for `start_meteor`.
        references: as for `start_meteor`.
        folder: an empty one, for its files, which outlives it.
    Raises:
        Unavailable: no Java, no jar, no CoreNLP 3.6.0 models (pycocoevalcap does not bring them), or SPICE failed.
    """
    try:
        jar = _files("spice", *_SPICE_FILES)[0]
    except Unavailable as error:
        raise Unavailable(f"{error} (python -m pycocoevalcap.spice.get_stanford_models fetches it)") from error
    pairs = enumerate(zip(candidates, references, strict=True))
    images = [{"image_id": i, "test": candidate, "refs": list(several)} for i, (candidate, several) in pairs]
    given, found = folder / "in.json", folder / "out.json"
    given.write_text(json.dumps(images), encoding="utf-8")

    def read(printed: str) -> np.ndarray:
        try:
            scores = {image["image_id"]: image["scores"]["All"]["f"] for image in json.loads(found.read_bytes())}
            return np.array([float(scores[i]) for i in range(len(images))])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Unavailable(f"SPICE wrote no scores: {type(error).__name__}: {error}") from error

    arguments = ["-Xmx8G", "-jar", str(jar), str(given), "-out", str(found), "-subset", "-silent"]
    return Program(arguments, "", jar.parent, read)


def _files(part: str, *names: str) -> list[Path]:
    """Files of a part of pycocoevalcap, found without importing it."""
    package = importlib.util.find_spec("pycocoevalcap")
    if package is None or not package.submodule_search_locations:
        raise Unavailable("no pycocoevalcap: pip install 'clipcap-toolkit[eval]'")
    folder = Path(package.submodule_search_locations[0]) / part
    for name in names:
        if not (folder / name).is_file():
            raise Unavailable(f"no {name} in pycocoevalcap/{part}")
    return [folder / name for name in names]
