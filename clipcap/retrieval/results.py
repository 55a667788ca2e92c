"""What searches found, shown: a table, JSON Lines, a labelled grid of pictures."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from clipcap.errors import ClipcapError
from clipcap.images.grid import PAPER, picture_grid
from clipcap.images.write import write_picture
from clipcap.retrieval.index import Match
from clipcap.runtime.files import replaced_file, writing
from clipcap.runtime.json_text import to_json
from clipcap.runtime.messages import logger
from clipcap.runtime.text import in_short, printable

LABEL = 400  # characters of a caption below its picture
LINES, PICTURES = ".jsonl", (".png", ".jpg", ".jpeg", ".webp")


def show(queries: Sequence[str], found: Sequence[Sequence[Match]], out: str | None = None) -> None:
    """Print a table of the matches of each query and, with `out`, write all of them.

    Args:
        queries: their names or texts, Q.
        found: Q lists, best first.
        out: `NAME.jsonl`, a line per match, or a picture, a grid per query (`check_out` looked at it).
    Raises:
        ClipcapError: `out` cannot be written.
    """
    for query, matches in zip(queries, found, strict=True):
        if len(queries) > 1:
            print(in_short(query))
        print(table(matches, shutil.get_terminal_size().columns if sys.stdout.isatty() else None))
    if out:
        path = Path(out)
        if path.suffix.lower() == LINES:
            write_lines(queries, found, path)
        else:
            _write_picture(grid(queries, found), path)
        logger.info(f"wrote {printable(out)}")


def check_out(out: str | None) -> None:
    """Refuse a name that neither lines nor a picture can be written to, before the search.

    Raises:
        ClipcapError: of another ending.
    """
    if out and (ending := Path(out).suffix.lower()) not in (LINES, *PICTURES):
        raise ClipcapError(f"--out {out}: ends in {ending or 'nothing'}; end it in {LINES}, or {', '.join(PICTURES)}")


def table(matches: Sequence[Match], width: int | None = None) -> str:
    """Rank, cosine, image id, beginning of the first caption and path of each match, in columns.

    Args:
        width: of the terminal: then captions are cut, paths lose their beginning, and columns without room go.
    """
    shares = [match.probability for match in matches if match.probability is not None]
    lines = [("rank", "score", *["probability"] * bool(shares), "image", "caption", "path")]
    for rank, match in enumerate(matches, 1):
        texts = (printable(match.image_id), in_short(match.caption), printable(match.path or ""))
        share = () if match.probability is None else (f"{match.probability:.4f}",)
        lines.append((str(rank), f"{match.score:.3f}", *share, *texts))
    if width is not None:
        lines = _fitted(lines, width)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )


LEAST = 12  # characters of a column that is worth showing


def _fitted(lines: list[tuple[str, ...]], width: int) -> list[tuple[str, ...]]:
    """The lines of a table, its last three columns (image, caption, path) shortened to a width."""
    head, texts = [line[:-3] for line in lines], list(zip(*(line[-3:] for line in lines), strict=True))
    room = width - sum(max(map(len, column)) + 2 for column in zip(*head, strict=True))
    image, caption, path = texts
    columns = [image, *[caption] * any(caption[1:]), *[path] * (path[1:] != image[1:] and any(path[1:]))]
    shown: list[list[str]] = []
    for number, column in enumerate(columns):
        share = (room - 2 * (len(columns) - number - 1)) // (len(columns) - number)
        longest = min(max(map(len, column)), max(share, LEAST))
        if room >= LEAST or not shown:
            shown.append([_cut(text, longest, from_end=column is path) for text in column])
            room -= longest + 2
    return [(*first, *rest) for first, rest in zip(head, zip(*shown, strict=True), strict=True)]


def _cut(text: str, longest: int, from_end: bool) -> str:
    if len(text) <= longest:
        return text
    return f"…{text[1 - longest :]}" if from_end else f"{text[: longest - 1]}…"


def write_lines(queries: Sequence[str], found: Sequence[Sequence[Match]], path: Path) -> None:
    """JSON Lines: query, rank, score, image_id, caption and path of each match."""
    lines = []
    for query, matches in zip(queries, found, strict=True):
        for rank, match in enumerate(matches, 1):
            head = {"query": query, "rank": rank, "score": match.score}
            if match.probability is not None:
                head["probability"] = match.probability
            lines.append({**head, "image_id": match.image_id, "caption": match.caption, "path": match.path})
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as draft, open(draft, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(to_json(line, ensure_ascii=False) + "\n" for line in lines)


def grid(queries: Sequence[str], found: Sequence[Sequence[Match]]) -> Image.Image:
    """The pictures of the matches with rank, caption (or image id) and cosine: a grid, or a row or two per query."""
    columns = None if len(queries) == 1 else 6
    sheets = [
        picture_grid(
            [match.path for match in matches],
            [f"{rank}. {_label(match)} ({match.score:.2f})" for rank, match in enumerate(matches, 1)],
            title=f"“{in_short(query, LABEL)}”",
            columns=columns and min(columns, max(1, len(matches))),
        )
        for query, matches in zip(queries, found, strict=True)
    ]
    whole = Image.new("RGB", (max(s.width for s in sheets), sum(s.height for s in sheets)), PAPER)
    top = 0
    for sheet in sheets:
        whole.paste(sheet, (0, top))
        top += sheet.height
    return whole


def _label(match: Match) -> str:
    return in_short(match.caption or match.image_id, LABEL)


def _write_picture(picture: Image.Image, path: Path) -> None:
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replaced_file(path) as draft:
            write_picture(picture, draft, Image.registered_extensions()[path.suffix.lower()])
