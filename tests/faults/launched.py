"""Runs that a real torchrun has started, of which one process is killed."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from benchmarks.measure import REPO
from tests.faults.forked import PATIENCE_S, Ended
from tests.faults.outcome import RIGHT, SAID, Bench, Injection, last_line, remove
from tests.faults.work import digests

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m", "clipcap")
SOON_S = 60.0  # to the end of a run of which a process was killed: torchrun gives the others 30


class Launched:
    """The command over two processes of torchrun, in `folder`."""

    def __init__(self, bench: Bench, folder: Path, again: bool = False):
        words = [*bench.work.words(bench.stage, folder / bench.work.result), *(bench.work.again if again else ())]
        self.folder, self.log, self.started = folder, bench.log / "torchrun", time.monotonic()
        self.log.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        with (self.log / "out").open("wb") as out, (self.log / "err").open("wb") as err:
            self.process = subprocess.Popen(
                [*TORCHRUN, *map(str, words)],
                cwd=REPO,
                env=environment,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )
        self.ranks: dict[int, int] = {}

    def up(self, working: bool = False) -> bool:
        """Wait until both processes run, or until they have written something too; False where it ended before."""
        while self.process.poll() is None and time.monotonic() < self.started + PATIENCE_S:
            self.ranks = self.ranks if len(self.ranks) == 2 else _ranks(self.process.pid)
            if len(self.ranks) == 2 and (not working or any(self.folder.iterdir())):
                return True
            time.sleep(0.005)
        return False

    def ended(self, patience_s: float = PATIENCE_S) -> Ended:
        """Wait for the end; one who does not come to it is killed, its processes too, and counts as status 124."""
        try:
            status = self.process.wait(patience_s)
        except subprocess.TimeoutExpired:
            status = 124
            for pid in (self.process.pid, *self.ranks.values()):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            self.process.wait()
        out, err = ((self.log / name).read_text(errors="replace") for name in ("out", "err"))
        return Ended(status, time.monotonic() - self.started, out, err)

    def left(self) -> bool:
        """Whether one of its processes outlives it."""
        return any(Path(f"/proc/{pid}").exists() for pid in self.ranks.values())


def _ranks(launcher: int) -> dict[int, int]:
    """The process of each rank that this launcher has started."""
    found = {}
    with suppress(OSError):  # one of them has just ended
        for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
            variables = dict(v.partition("=")[::2] for v in Path(f"/proc/{pid}/environ").read_text().split("\0"))
            if "RANK" in variables:
                found[int(variables["RANK"])] = int(pid)
    return found


def one_of_torchruns_killed(bench: Bench, count: int, seed: int = 0) -> Iterator[Injection]:
    """SIGKILL to one process of a run of torchrun, at a random instant: of the whole run, and of its work in turn.

    Torchrun has to end soon, with a status other than 0 and its report of the process and the signal, and to leave no
    process behind. The rerun is by torchrun again.
    """
    chance = random.Random(f"torchrun {seed} {bench.work.name}")
    clean = Launched(bench, bench.folder())
    begun = []
    for working in (False, True):
        clean.up(working)
        begun.append(time.monotonic())
    undisturbed = clean.ended()
    if undisturbed.status:
        raise RuntimeError(f"{bench.work.name}: does not run under torchrun: {undisturbed.err}")
    spans, right = [time.monotonic() - start for start in begun], digests(clean.folder, bench.work.result)
    for number in range(count):
        folder, victim, working = bench.folder(), number % 2, number // 2 % 2 == 0
        run, after_s = Launched(bench, folder), chance.uniform(0.0, 0.9) * spans[working]
        run.up(working)
        time.sleep(after_s)
        with suppress(ProcessLookupError, KeyError):  # it has ended, or has not come to it
            os.kill(run.ranks[victim], signal.SIGKILL)
        killed = time.monotonic()
        ended = run.ended(SOON_S)
        soon_s = time.monotonic() - killed
        outcome, line = _judged(ended, victim, digests(folder, bench.work.result) == right, run.left())
        rerun = Launched(bench, folder, again=True).ended()
        same = rerun.status == 0 and digests(folder, bench.work.result) == right
        again = RIGHT if same else f"wrong: status {rerun.status}, {last_line(rerun)}"
        since = "the first file" if working else "its start"
        detail = f"{folder.name}, process {victim} of 2, {after_s:.2f} s after {since}; ended in {soon_s:.1f} s"
        yield Injection(bench.work.name, "one of torchrun's two killed", outcome, again, True, detail, line)
        if same:
            remove(folder)


def _judged(ended: Ended, victim: int, right: bool, left: bool) -> tuple[str, str]:
    """(outcome, what was said)."""
    if left:
        return "a process is left behind", last_line(ended)
    if ended.status == 0:
        return (RIGHT if right else "finished, and wrong"), ""
    if ended.status == 124:
        return "hung", last_line(ended)
    # The one traceback is torchrun's own; beside it the other process may have said a line.
    report = f"rank      : {victim} (" in ended.err and "Signal 9 (SIGKILL)" in ended.err
    clear = report and ended.err.count("Traceback") == 1 and ended.err.count("clipcap: error") <= 1
    said = next((line for line in ended.err.splitlines() if "Signal 9 (SIGKILL)" in line), last_line(ended))
    return (SAID if clear else f"status {ended.status}, unclear"), said.strip()
