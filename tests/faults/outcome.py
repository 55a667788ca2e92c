"""What comes of a disturbed run: judged beside the undisturbed one, run again, counted."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.forked import Ended, Running, count_changes
from tests.faults.work import Work, digests, standing_digests

RIGHT, SAID, KILLED = "finished right", "said in one line", "killed"


@dataclass(frozen=True)
class Injection:
    """One disturbed run.

    Args:
        outcome: RIGHT, SAID, KILLED, or what went wrong.
        rerun: RIGHT, or what went wrong when the command was run again; empty where it was not.
        kept: whether a reader found the older result or the new one, whole, after the fault.
        detail: where and when.
        line: what was said.
    """

    work: str
    kind: str
    outcome: str
    rerun: str
    kept: bool
    detail: str
    line: str = ""

    @property
    def good(self) -> bool:
        """Nothing lost, nothing wrong, nothing unclear."""
        return self.outcome in (RIGHT, SAID, KILLED) and self.rerun in (RIGHT, SAID, "") and self.kept


class Bench:
    """A work with its undisturbed result, ready to be disturbed.

    Args:
        stage: folder of the inputs.
        root: folder for everything else, a new one.
    """

    def __init__(self, work: Work, stage: Path, root: Path):
        self.work, self.stage, self.root = work, stage, root
        self.log, self.count = root / "log", 0
        clean = root / "undisturbed"
        clean.mkdir(parents=True)
        ended = work.run(stage, clean, self.log, first=count_changes(clean, root / "changes"))
        if ended.status:
            raise RuntimeError(f"{work.name}: {ended.err}")
        self.seconds, self.changes = ended.seconds, (root / "changes").stat().st_size
        self.right, self.whole = digests(clean, work.result), standing_digests(clean, work.result)
        self.size = sum(path.stat().st_size for path in clean.rglob("*") if path.is_file())
        self.older: Path | None = None
        if work.over:
            self.older = root / "older"
            self.older.mkdir()
            made = Running(work.over(stage, self.older / work.result), self.log).wait()
            if made.status:
                raise RuntimeError(f"{work.name}: {made.err}")

    def folder(self, over: bool = False) -> Path:
        """A new folder to work in, with an older result in it where asked for and possible."""
        self.count += 1
        folder = self.root / f"{self.count}"
        if over and self.older:
            shutil.copytree(self.older, folder)
        else:
            folder.mkdir()
        return folder

    def judged(self, ended: Ended, folder: Path, beside: Path | None = None) -> str:
        """The outcome of a run; `beside`, a file of the result, is not looked at."""
        if ended.killed:
            return KILLED
        if ended.status == 0:
            found, name = digests(folder, self.work.result), str(beside)
            wrong = [one for one in found.keys() | self.right.keys() if found.get(one) != self.right.get(one)]
            return RIGHT if wrong in ([], [name]) else "finished, and wrong"
        if ended.one_line:
            return SAID
        return "hung" if ended.status == 124 else f"status {ended.status}, not one clear line"

    def kept(self, folder: Path, over: bool) -> bool:
        """Whether each file of the result is that of the older one or of the new one, as a reader finds it."""
        if not (over and self.older):
            return True
        found = standing_digests(folder, self.work.result)
        old = standing_digests(self.older, self.work.result)
        if self.work.result == "scores":  # files replaced one by one
            return all(found.get(name) in (old[name], self.whole[name]) for name in old)
        return found in (old, self.whole)

    def again(self, folder: Path) -> str:
        """Run the command again, to its end."""
        ended = self.work.run(self.stage, folder, self.log, again=True)
        outcome = self.judged(ended, folder)
        return outcome if outcome == RIGHT else f"{outcome}: {last_line(ended)}"

    def done(self, kind: str, ended: Ended, folder: Path, over: bool, detail: str) -> Injection:
        """Judge a disturbed run, run it again, and clean up."""
        outcome, kept = self.judged(ended, folder), self.kept(folder, over)
        rerun = self.again(folder)
        line = ended.one_line or (last_line(ended) if ended.status else "")
        if rerun == RIGHT and kept:
            remove(folder)
        return Injection(self.work.name, kind, outcome, rerun, kept, f"{folder.name}, {detail}", line)


def last_line(ended: Ended) -> str:
    """The last thing a run said, for the record."""
    return next((line for line in reversed(ended.err.splitlines()) if line.strip()), f"status {ended.status}")


def remove(folder: Path) -> None:
    """Delete what was there."""
    shutil.rmtree(folder, ignore_errors=True)


def table(found: Sequence[Injection]) -> str:
    """Outcomes per command and fault, as Markdown, and every injection that was not good."""
    lines = [
        "| command | fault | injections | finished right | said in one line | killed | rerun right | lost or wrong |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for key in dict.fromkeys((i.work, i.kind) for i in found):
        these = [i for i in found if (i.work, i.kind) == key]
        counts = [sum(i.outcome == outcome for i in these) for outcome in (RIGHT, SAID, KILLED)]
        rerun = sum(i.rerun == RIGHT for i in these)
        lines.append(
            "| " + " | ".join(map(str, (*key, len(these), *counts, rerun, sum(not i.good for i in these)))) + " |"
        )
    bad = [f"- {i.work}, {i.kind}, {i.detail}: {i.outcome}; rerun: {i.rerun}; kept: {i.kept}; {i.line}"
           for i in found if not i.good]  # fmt: skip
    return "\n".join([*lines, "", f"{len(found):,} injections, {len(bad)} lost, wrong or unclear", *bad])
