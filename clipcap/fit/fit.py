"""`clipcap fit`: look at the data, choose flags, measure the time, then parse, train, evaluate."""

from __future__ import annotations

import json
import shlex
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.evaluation.evaluate import METRICS, REPORT
from clipcap.evaluation.metrics.score import cider_scorer
from clipcap.fit.config import FitConfig
from clipcap.fit.probe import Measured, measure
from clipcap.fit.recipe import Plan, make_plan
from clipcap.fit.record import damaged_files, still_damaged, write_record
from clipcap.fit.sample import Sample, write_sample
from clipcap.models.config import ModelConfig
from clipcap.models.language_model import load_lm
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.interruption import states_what_is_left
from clipcap.runtime.json_text import to_json
from clipcap.runtime.messages import logger
from clipcap.runtime.places import writes_to
from clipcap.runtime.progress import one_bar
from clipcap.runtime.run_file import write_run_file
from clipcap.runtime.text import byte_size, counted, printable
from clipcap.sources.config import SourceConfig
from clipcap.sources.readers import read_source
from clipcap.sources.record import Record

PLAN = "fit.json"
FEWEST_VAL, VAL_SHARE = 5, 0.1
SEVERAL = 3  # captions of a photo, from which on their agreement is a reward worth learning from
STEPS = ("parse", "train", "evaluate")
BY_SCORES = ("--bs", "160", "--lr", "1e-4", "--epochs", "2")  # as measured by benchmarks/quality/reward
NOT_PLANNED = ("dry_run", "out")  # options that a run may change when it continues


@dataclass(frozen=True)
class Data:
    """What the data set offers to learn from."""

    records: dict[str, list[Record]]  # of the splits that are used
    train_size: float | None  # for `parse`, where the set has no split of its own
    val: str  # the split that is held out

    @property
    def train_images(self) -> int:
        """Photos to train on."""
        return len(self.records["train"])

    @property
    def val_images(self) -> int:
        """Photos held out."""
        return len(self.records[self.val])

    @property
    def captions(self) -> int:
        """Of the photos to train on."""
        return sum(len(record.captions) for record in self.records["train"])


@writes_to("config.out")
def fit(data: str, config: FitConfig, command: Callable[[Sequence[str]], int]) -> Path:
    """Train a captioner on photos and captions, and evaluate it on images held out.

    Interrupted, the same command continues.

    Args:
        data: whatever `clipcap parse custom` takes.
        command: runs a `clipcap` command of these words; 0 is success.
    Returns:
        the folder of the checkpoints.
    Raises:
        ClipcapError: bad data, other options than those of the run that is continued, or a step failed.
    """
    out = Path(config.out)
    cider_scorer()  # before hours of work, not after
    found = read_data(data, config.seed)
    chosen = _check_plan(out, data, config)
    plan = make_plan(found.captions, _lm_size(config), config)
    logger.info(
        f"{printable(data)}: {found.train_images + found.val_images:,} photos; {found.train_images:,} with "
        f"{found.captions:,} captions to train on, {found.val_images:,} held out"
    )
    for reason in plan.reasons():
        logger.info(f"  {reason}")
    steps = _Steps(out, data, config, found, plan, command)
    with states_what_is_left(lambda: f"{out} holds what was done: the same command continues"):
        expected = steps.announce()
        if config.dry_run:
            return steps.checkpoints
        _note_plan(out, chosen)
        write_run_file(out, "fit", {"data": data, **config.flat()})
        with one_bar(expected):
            steps.parse()
            steps.train()
            steps.evaluate()
    logger.info(
        f"captioner: {steps.checkpoints}; report: {steps.evaluation / REPORT}\n"
        f"caption photos: clipcap predict --load_pt {shlex.quote(str(steps.checkpoints))} --img PHOTOS\n"
        f"often better, and slower, is what similar photos choose: the same with {steps.by_neighbours()}"
    )
    if found.captions >= SEVERAL * found.train_images and plan.start.tune != "none":  # what was measured
        logger.info(f"photos have several captions: go on by their scores: clipcap {shlex.join(steps.by_scores())}")
    return steps.checkpoints


def _lm_size(config: FitConfig) -> int:
    """Parameters of the language model, which is loaded before any photo is encoded; 0 where a checkpoint has it."""
    if config.weights_dir:
        return 0
    return sum(parameter.numel() for parameter in load_lm(config.lm or ModelConfig.lm).parameters())


def read_data(path: str, seed: int) -> Data:
    """Count the photos and captions of a set, with the split that `fit` makes of it.

    Raises:
        ClipcapError: they cannot be read, or are too few to hold some out.
    """
    records = read_source("custom", SourceConfig(data_path=path)).records
    images = Counter(record.split for record in records)
    if set(images) == {None}:
        total = images[None]
        if total < 2 * FEWEST_VAL:
            raise ClipcapError(f"{printable(path)}: {total} photos with captions are too few: give at least 10")
        held_out = max(FEWEST_VAL, round(VAL_SHARE * total))
        share = round((total - held_out + 0.5) / total, 6)  # between two counts, whatever way it is rounded
        records = read_source("custom", SourceConfig(data_path=path, train_size=share, seed=seed)).records
        return Data(_by_split(records, "train", "val"), share, "val")
    val = next((name for name in ("val", "test") if images[name]), None)
    if val is None or not images["train"]:
        raise ClipcapError(
            f"{printable(path)}: its splits are {', '.join(map(str, images))}: train and val (or test) are needed"
        )
    return Data(_by_split(records, "train", val), None, val)


def _by_split(records: Sequence[Record], *splits: str) -> dict[str, list[Record]]:
    return {split: [record for record in records if record.split == split] for split in splits}


def _check_plan(out: Path, data: str, config: FitConfig) -> dict[str, Any]:
    """What the run is of; one of other data or options is not continued."""
    options = {name: value for name, value in config.flat().items() if name not in NOT_PLANNED}
    plan = {"data": str(Path(data).absolute()), **options}
    path = out / PLAN
    if path.is_file():
        try:
            before = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            before = {}
        different = [name for name in plan if before.get(name) != plan[name]]
        if different:
            name = different[0]
            raise ClipcapError(
                f"--out {out}: holds a run with {name} {before.get(name)}, this command has {plan[name]}: choose "
                f"another --out, or give the same options to continue it"
            )
    elif out.exists() and any(entry for entry in out.iterdir() if not entry.name.startswith(".")):
        raise ClipcapError(f"--out {out}: exists and holds no run of `clipcap fit`: choose another folder")
    return plan


def _note_plan(out: Path, plan: Mapping[str, Any]) -> None:
    """Store what the run is of, now that its steps begin: what failed before may be corrected."""
    path = out / PLAN
    if not path.is_file():
        with writing(path), replaced_file(path) as draft:
            draft.write_text(to_json(plan, indent=1) + "\n", encoding="utf-8")


class _Steps:
    """The steps of a run, each a command that is shown, and skipped where it is done."""

    def __init__(
        self, out: Path, data: str, config: FitConfig, found: Data, plan: Plan,
        command: Callable[[Sequence[str]], int],
    ):  # fmt: skip
        self.out, self.data, self.config, self.found, self.plan = out, data, config, found, plan
        self.command = command
        self.features, self.checkpoints, self.evaluation = out / "data", out / "checkpoints", out / "evaluation"

    def _mark(self, step: str) -> Path:
        """The file that says that a step is done, and what it has written."""
        return self.out / f".{step}_done"

    @cached_property
    def _damaged(self) -> dict[str, dict[Path, str]]:
        """The damaged files of each step that was done; empty where there are none."""
        marks = {step: self._mark(step) for step in STEPS}
        damaged = {step: damaged_files(mark) if mark.exists() else {} for step, mark in marks.items()}
        for step, files in damaged.items():
            if files:
                more = f" and {len(files) - 1} more" * (len(files) > 1)
                logger.warning(
                    f"{next(iter(files))}{more}: cut, changed or gone since the {step} step was done, which is done "
                    f"again with what follows it"
                )
        return damaged

    def finished(self, step: str) -> bool:
        """Whether a step was done before, and its files and those of the steps before it are whole."""
        needed = STEPS[: STEPS.index(step) + 1]
        return self._mark(step).exists() and not any(self._damaged[each] for each in needed)

    def _run(self, step: str, folder: Path, *words: object) -> None:
        if self.finished(step):
            return
        argv = [str(word) for word in words]
        logger.info(f"\n$ clipcap {shlex.join(argv)}")
        for later in STEPS[STEPS.index(step) + 1 :]:
            self._mark(later).unlink(missing_ok=True)
        damaged = self._damaged[step]
        anew = f"; to do it anew, delete {folder}" if damaged else ""
        try:
            failed = self.command(argv)
        except ClipcapError as error:
            raise ClipcapError(f"{error}{anew}") from error
        if failed:
            raise ClipcapError(
                f"the {step} step failed, see above: the same `clipcap fit` continues after it is put right{anew}"
            )
        if left := still_damaged(damaged):
            raise ClipcapError(f"{left[0]}: changed since the {step} step wrote it, and not written again{anew}")
        write_record(self._mark(step), folder)

    def parse(self) -> None:
        """Encode the photos."""
        split = (
            ("--train_size", f"{self.found.train_size}", "--seed", self.config.seed) if self.found.train_size else ()
        )
        self._run(
            "parse", self.features, "parse", "custom", "--data_path", self.data, "--clip_model_type",
            self.config.clip_model_type, "--out", self.features / "photos.pkl", *split,
        )  # fmt: skip

    def _file(self, split: str) -> Path:
        return self.features / f"photos_{split}.pkl"

    def _training(self, files: Mapping[str, Path]) -> list[str]:
        config, words = self.config, ["train", "--data", str(files["train"]), "--val", str(files[self.found.val])]
        words += [*self.plan.flags, "--seed", str(config.seed)]
        for name in ("lm", "weights_dir"):
            if getattr(config, name):
                words += [f"--{name}", getattr(config, name)]
        return words

    def announce(self) -> dict[str, float]:
        """Encode a few photos, try a few steps and captions, and state how long the run takes and what it stores.

        Returns:
            the seconds expected of each part that is not done.
        """
        if self.finished("train"):
            return {}
        probe = self.out / ".probe"
        shutil.rmtree(probe, ignore_errors=True)
        files = {split: self._file(split) for split in self.found.records}
        sample, size = None, sum(path.stat().st_size for path in self.features.rglob("*") if path.is_file())
        try:
            if not self.finished("parse"):
                sample = write_sample(self.found.records, self.config.clip_model_type, probe)
                files, size = sample.files, sample.size
            measured = measure(
                self._training(files), self.plan.length.bs, files["train"], files[self.found.val],
                probe / "run", self.command,
            )  # fmt: skip
        finally:
            shutil.rmtree(probe, ignore_errors=True)
        length = replace(self.plan.length, per_epoch=measured.per_epoch)  # captions of an image stay together
        logger.info(f"  {length.describe()}")
        if warning := replace(self.plan, length=length).too_short():
            logger.warning(warning)
        logger.info(self._minutes(measured, expected := self._expected(measured, sample)))
        logger.info(
            f"disk: {byte_size(size)} of features, about {byte_size(measured.disk)} of checkpoints in {self.out}"
        )
        return expected

    def _expected(self, measured: Measured, sample: Sample | None) -> dict[str, float]:
        """Seconds of each part, by the names of their bars."""
        photos, held_out = self.found.train_images + self.found.val_images, self.found.val_images
        return {
            "encoding": sample.load + photos * sample.photo if sample else 0.0,
            "training": measured.training(self.plan.length.epochs, held_out),
            "captioning": measured.captioning(held_out) + (sample.load if sample else 0.0),
            "scoring": measured.scoring(held_out, self.config.java),
        }

    def _minutes(self, measured: Measured, expected: Mapping[str, float]) -> str:
        """A line on the length of the run."""
        epochs, whole = self.plan.length.epochs, sum(expected.values())
        rest = whole - expected["training"]
        fewest = rest + measured.training(min(epochs, self.plan.patience + 1), self.found.val_images)
        parts = ", ".join(
            f"{duration(seconds)} {what}"
            for what, seconds in (
                (f"to encode the {self.found.train_images + self.found.val_images:,} photos", expected["encoding"]),
                ("to train", expected["training"]),
                (
                    f"to caption and score the {self.found.val_images:,} photos held out",
                    expected["captioning"] + expected["scoring"],
                ),
            )
            if seconds
        )
        sooner = f"; --patience may end it sooner, after {duration(fewest)} at the earliest" * (fewest < whole)
        return (
            f"at most {epochs * measured.per_epoch:,} steps of {measured.step:.2f} s: about {duration(whole)} in all "
            f"on this machine ({parts}){sooner}"
        )

    def train(self) -> None:
        """Train, from where an earlier run stopped."""
        words = self._training({split: self._file(split) for split in self.found.records})
        if self.checkpoints.exists():  # of an epoch without a `last` it makes another
            words.append("--resume")
        self._run("train", self.checkpoints, *words, "--out_dir", self.checkpoints)

    def by_neighbours(self) -> str:
        """The flags that choose among captions by those of the training photos."""
        return f"--rerank consensus --datastore {shlex.quote(str(self._file('train')))}"

    def by_scores(self) -> list[str]:
        """The command that goes on from the captioner by the scores of its own captions."""
        places = {"weights_dir": self.checkpoints, "data": self._file("train"), "val": self._file(self.found.val)}
        words = ["train", "--objective", "reward", "--tune", self.plan.start.tune, *BY_SCORES]
        for name, place in {**places, "out_dir": self.out / "by_scores"}.items():
            words += [f"--{name}", str(place)]
        return words

    def evaluate(self) -> None:
        """Score captions of the images held out."""
        if self.finished("evaluate") and not (self.evaluation / METRICS).exists():
            (self.out / ".evaluate_done").unlink()
        self._run(
            "evaluate", self.evaluation, "evaluate", "--load_pt", self.checkpoints, "--data",
            self._file(self.found.val), "--train_data", self._file("train"),
            "--out", self.evaluation, *(["--no_java"] * (not self.config.java)),
        )  # fmt: skip


def duration(seconds: float) -> str:
    """Seconds in words: `40 seconds`, `12 minutes`, `3.5 hours`."""
    if seconds < 90:
        return counted(round(seconds), "second")
    if seconds < 600:
        return f"{seconds / 60:.1f} minutes"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
