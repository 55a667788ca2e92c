"""A process that scores captions by CIDEr-D: JSON lines in, JSON lines out. It loads neither torch nor a model.

The first line holds the references and whether the end counts; every further one images, captions and which ended.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.scoring.cider_reward import CiderReward

PACKAGE = Path(__file__).parents[2]  # where clipcap lies


class ScoreWorker:
    """Starts the process, and hands it captions from a thread: one request at a time.

    Args:
        references: the captions of each image.
        end: the end of a caption counts as a word.
    """

    def __init__(self, references: Sequence[Sequence[str]], end: bool):
        path = os.pathsep.join(filter(None, [str(PACKAGE), os.environ.get("PYTHONPATH")]))
        self._process = subprocess.Popen(
            [sys.executable, "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="ascii",
            env={**os.environ, "PYTHONPATH": path},
            start_new_session=True,  # Ctrl-C of a terminal is for the main process, whose end closes the pipe
        )
        self._thread = ThreadPoolExecutor(1)
        self._first = self._thread.submit(self._send, {"references": list(map(list, references)), "end": end})

    def start(self, images: Sequence[int], captions: Sequence[str], ended: Sequence[bool]) -> Future[list[float]]:
        """Scores of captions of images by number, once the process has found them."""
        return self._thread.submit(self._ask, [list(images), list(captions), list(ended)])

    def _send(self, value: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(value) + "\n")
        self._process.stdin.flush()

    def _ask(self, request: list) -> list[float]:
        try:
            self._send(request)
            assert self._process.stdout is not None
            return json.loads(self._process.stdout.readline())
        except (OSError, ValueError) as error:
            raise ClipcapError(
                f"the process that scores captions has ended (status {self._process.poll()}): run again with "
                f"--resume, or score in this process by --no_score_worker"
            ) from error

    def close(self) -> None:
        """End the process."""
        self._thread.shutdown(cancel_futures=True)
        self._process.communicate()


def main() -> None:
    """Answer until the pipe is closed."""
    begin = json.loads(sys.stdin.readline() or "null")
    if begin is None:
        return
    reward = CiderReward(begin["references"], begin["end"])
    for line in sys.stdin:
        print(json.dumps(reward.score(*json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
