"""A polite downloader for Conceptual Captions, for those who cannot use img2dataset."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue

from tqdm import tqdm

from clipcap.errors import ClipcapError
from clipcap.images.folders import list_folder
from clipcap.images.read import ImageError, check_image
from clipcap.runtime.files import replaced_file
from clipcap.runtime.places import writes_to
from clipcap.runtime.progress import no_bar
from clipcap.runtime.text import reason, shown
from clipcap.sources.conceptual import FailureLog, image_name, known_failures, read_links
from clipcap.sources.http_client import GoneError, UnavailableError, WebClient


@dataclass(frozen=True)
class Summary:
    """How a download ended, in images."""

    fetched: int  # new in the folder
    present: int  # there before
    gone: int  # for good: remembered, and left alone by the next run
    known_gone: int  # remembered from an earlier run, left alone by this one
    failed: int  # for now: the next run tries again

    def __str__(self) -> str:
        return (
            f"{self.fetched:,} fetched, {self.present:,} already there, {self.gone + self.known_gone:,} gone for "
            f"good ({self.known_gone:,} known before), {self.failed:,} failed for now (run again to retry)"
        )


@dataclass(frozen=True)
class _Job:
    """A URL with all the rows that want its image: it is fetched once."""

    url: str
    numbers: list[int]


@writes_to("folder")
def fetch_missing(
    tsv: Path, folder: Path, *, threads: int = 16, timeout_s: float = 10, retries: int = 2, backoff_s: float = 1.0
) -> Summary:
    """Download the images of a Conceptual Captions TSV that are not in `folder` yet, as `00000017.jpg`.

    May be stopped and run again at any time: an image has its name only when it is whole and readable, and
    images that are gone for good (listed in `download_errors.csv` there) are not asked for again.

    Args:
        threads: downloads at a time; no host is sent more than a few of them.
        timeout_s: longest silence of a server.
        retries: further attempts after a failure that may pass, with growing pauses from `backoff_s` on.
    Raises:
        ClipcapError: the TSV is malformed, or the folder cannot be written to.
    """
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        jobs, outcomes = _plan(Path(tsv), Path(folder))
        outcomes += _run_all(jobs, Path(folder), WebClient(timeout_s, retries, backoff_s), threads)
    except OSError as error:
        raise ClipcapError(f"{shown(folder)}: cannot be written to ({reason(error)})") from error
    return Summary(*(outcomes[kind] for kind in ("fetched", "present", "gone", "known_gone", "failed")))


def _plan(tsv: Path, folder: Path) -> tuple[list[_Job], Counter[str]]:
    """(URLs still to fetch, images already accounted for)."""
    numbers: dict[str, list[int]] = {}
    for number, (_, url) in enumerate(read_links(tsv)):
        if url:
            numbers.setdefault(url, []).append(number)
    there, gone = set(list_folder(folder)[1]), known_failures(folder)
    jobs, outcomes = [], Counter()
    for url, wanted in numbers.items():
        missing = [number for number in wanted if image_name(number) not in there]
        present = [number for number in wanted if image_name(number) in there]
        outcomes["present"] += len(present)
        if any(gone.get(number) == url for number in missing):
            outcomes["known_gone"] += len(missing)
        elif present:
            _copy(folder, present[0], missing)
            outcomes["fetched"] += len(missing)
        elif missing:
            jobs.append(_Job(url, missing))
    return jobs, outcomes


def _run_all(jobs: list[_Job], folder: Path, client: WebClient, threads: int) -> Counter[str]:
    queue: SimpleQueue[_Job] = SimpleQueue()
    for job in jobs:
        queue.put(job)
    with (
        FailureLog(folder) as log,
        tqdm(total=len(jobs), desc="downloading", unit="image", disable=no_bar()) as bar,
        ThreadPoolExecutor(threads) as pool,
    ):
        workers = [pool.submit(_work, queue, client, folder, log, bar) for _ in range(threads)]
        try:
            return sum((worker.result() for worker in workers), Counter())
        finally:  # after an error or Ctrl-C the other threads end with the image they are at
            client.stop()


def _work(queue: SimpleQueue[_Job], client: WebClient, folder: Path, log: FailureLog, bar: tqdm) -> Counter[str]:
    """Take jobs until there are none left; counts images by outcome."""
    outcomes: Counter[str] = Counter()
    while not client.stopped:
        try:
            job = queue.get_nowait()
        except Empty:
            break
        outcomes[_run(job, client, folder, log)] += len(job.numbers)
        bar.update()
    return outcomes


def _run(job: _Job, client: WebClient, folder: Path, log: FailureLog) -> str:
    """Fetch, check and store one image; returns the outcome."""
    first, *others = job.numbers
    try:
        data = client.fetch(job.url)
        check_image(data)
        _write(folder / image_name(first), data)
        _copy(folder, first, others)
        return "fetched"
    except UnavailableError:
        return "failed"
    except (GoneError, ImageError) as error:
        reason = error.reason if isinstance(error, ImageError) else str(error)
        for number in job.numbers:
            log.add(number, job.url, reason)
        return "gone"


def _write(path: Path, data: bytes) -> None:
    with replaced_file(path, one_of_many=True) as draft:
        draft.write_bytes(data)


def _copy(folder: Path, number: int, others: list[int]) -> None:
    for other in others:
        _write(folder / image_name(other), (folder / image_name(number)).read_bytes())
