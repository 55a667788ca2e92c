"""Tables of text with a delimiter, as spreadsheets, pandas, R, Kaggle and shells write them."""

from __future__ import annotations

import csv
import itertools
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from clipcap.errors import ClipcapError
from clipcap.images.kinds import is_image_name
from clipcap.runtime.text import in_short, shown
from clipcap.sources.faults import Faults
from clipcap.sources.markup import LATEX_DELIMITER, Markup, block_rows, find_markup, list_rows
from clipcap.sources.names import CAPTION_NAMES, ID_NAMES, IMAGE_NAMES, plain, unwrapped
from clipcap.sources.textfiles import TextPlace, read_lines

DELIMITERS = ",\t;|"
# Looked for where none of these is in the first line; of several signs they split at once, and nothing is quoted.
_RARE_DELIMITERS = ("^", "~", "\x01", "::", "=>", "->", " - ", " \u2013 ", " \u2014 ", ": ", ":", "=")
MAX_ROW_LINES = 1000  # beyond that many lines an open quote is taken for a sign
REPEATED = "header lines between the rows, left out"
_SAMPLE_ROWS = 50
_MARKUP_LINES = 100  # in which a table in LaTeX begins
_FEWEST_ALIKE = 3
_DIGITS = re.compile(r"[0-9]+")
_MOST_TITLES = 10  # lines above the header
_NAMES_OF_IMAGES, _NAMES_OF_CAPTIONS = {*IMAGE_NAMES, *ID_NAMES}, {*CAPTION_NAMES}
_SEPARATOR_LINE = re.compile(r"\"?sep=(.)\"?\s*", re.IGNORECASE)
_RULE = re.compile(r"[\s|+:=-]*-[\s|+:=-]*")  # the line under the head of a table in Markdown or of psql
_QUOTED_BY_BLANKS = re.compile(r"\"[^\"]*\"(?: +(?:\"[^\"]*\"|\d+))+")  # as R's write.table has them
_LINK = re.compile(r"https?://\S+", re.IGNORECASE)
_ESCAPED, _QUOTE_SIGN = {"escapechar": "\\"}, "\x02"
_WAYS_TO_QUOTE: tuple[dict, ...] = ({}, {"skipinitialspace": True})  # and _ESCAPED


@dataclass(frozen=True)
class Layout:
    """How a table is written."""

    delimiter: str  # a blank: an image name, white space, the rest; see also `_RARE_DELIMITERS`
    columns: list[str]
    first: int  # number of the first line with a row, among the lines that `markup` gives
    quote: str = '"'
    wrapped: bool = False  # each whole line is one quoted cell
    headless: bool = False
    markup: Markup | None = None


def is_data(cells: Sequence[str]) -> bool:
    """Whether a first line is a row: one of its cells names an image, or is a link."""
    texts = [unwrapped(cell.strip()).strip("\"'") for cell in cells]
    return any(is_image_name(text) or _LINK.fullmatch(text) for text in texts)


def find_layout(path: TextPlace) -> Layout:
    """Read the layout off the first lines.

    Raises:
        ClipcapError: the file is empty.
    """
    markup = find_markup([line.strip("\r\n") for line in itertools.islice(read_lines(path), _MARKUP_LINES)])
    lines = ((number, line) for number, (_, line) in enumerate(_lines(path, markup), 1) if line.strip())
    number, head = next(lines, (0, ""))
    delimiter = {None: None, list_rows: None, block_rows: "\t"}.get(markup, LATEX_DELIMITER)
    if match := _SEPARATOR_LINE.fullmatch(head):  # for Excel
        delimiter = match[1]
        number, head = next(lines, (0, ""))
    elif head.lower() in ("sep=", '"sep="'):  # sep=<tab>, whose tab is white space
        delimiter = "\t"
        number, head = next(lines, (0, ""))
    while head.startswith("#") and not is_data([head]) and len(_split(head, delimiter or _delimiter(path, head))) < 2:
        number, head = next(lines, (0, ""))  # a remark above the table
    if not number:
        raise ClipcapError(f"{shown(path)}: the file is empty")
    head = head.removeprefix("#").lstrip(" ") if not is_data([head]) else head
    sample = list(itertools.islice(lines, _SAMPLE_ROWS))
    if delimiter is None:
        number, head, sample = _below_titles(number, head, sample)
    wrapped = False
    if delimiter is None:
        inner = _quoted(head, ",", '"', {})
        if inner is not None and head.startswith('"') and len(inner) == 1 and _has_delimiter(inner[0]):
            wrapped, head = True, inner[0]
        delimiter = _delimiter(path, head, [line for _, line in sample])
    quote = _guess_quote([line for _, line in sample], delimiter)
    cells = _split(_first_row(head, [line for _, line in sample], delimiter, quote), delimiter, quote)
    if is_data(cells) or _like_rows(cells, [_split(line, delimiter, quote) for _, line in sample]):
        return replace(
            _headless(delimiter, cells, number, quote, wrapped, [line for _, line in sample]), markup=markup
        )
    columns = [name.strip().strip("\ufeff") for name in cells]
    if columns[0] and _has_row_names([line for _, line in sample], delimiter, quote, len(columns)):
        columns = ["", *columns]
    return Layout(delimiter, _numbered(columns), number + 1, quote, wrapped, markup=markup)


def _first_row(head: str, sample: Sequence[str], delimiter: str, quote: str) -> str:
    """A first line with those that its quoted cell goes on in; the line alone where the quote is a sign."""
    whole = head
    for line in sample if head.count(quote) % 2 and len(delimiter) == 1 else ():
        if _is_beside_name(delimiter, line):
            break
        whole = f"{whole}\n{line}"
        if whole.count(quote) % 2 == 0:
            return whole if _quoted(whole, delimiter, quote, {}) else head
    return head


def _numbered(columns: list[str]) -> list[str]:
    """Columns of captions that have one name, told apart as pandas does: `caption`, `caption.1`."""
    again = [name in columns[:i] and plain(name) in CAPTION_NAMES for i, name in enumerate(columns)]
    return [f"{name}.{columns[:i].count(name)}" if again[i] else name for i, name in enumerate(columns)]


def _lines(path: TextPlace, markup: Markup | None) -> Iterator[tuple[int, str]]:
    """(number, text) of the lines of a table, as its markup has them."""
    lines = ((number, line.strip("\r\n")) for number, line in enumerate(read_lines(path), 1))
    return markup(lines) if markup else lines


def _like_rows(cells: Sequence[str], rows: list[list[str]]) -> bool:
    """Whether a first line is a row as all that follow: a cell is theirs but for its number, as in `ROCO_00001`."""
    patterns = [[_DIGITS.sub("#", cell.strip()) for cell in row] for row in (cells, *rows)]
    width = min(map(len, patterns))
    return len(rows) >= _FEWEST_ALIKE and any(
        "#" in patterns[0][i] and len({row[i] for row in patterns}) == 1 for i in range(width)
    )


def _below_titles(number: int, head: str, sample: list[tuple[int, str]]) -> tuple[int, str, list[tuple[int, str]]]:
    """(number of the header line, header, lines after it), without the titles that a spreadsheet has above."""
    lines = [(number, head), *sample]
    for i, (_, line) in enumerate(lines[:_MOST_TITLES]):
        names = [{plain(name.strip(' "')) for name in line.split(sign)} - {""} for sign in DELIMITERS]
        if any(len(found) > 1 and found & _NAMES_OF_IMAGES and found & _NAMES_OF_CAPTIONS for found in names):
            return *lines[i], lines[i + 1 :]
    return number, head, sample


def _headless(delimiter: str, cells: list[str], number: int, quote: str, wrapped: bool, sample: list[str]) -> Layout:
    """The layout of a table that starts with its first row: columns are called by their number."""
    width = len(cells)
    if width > 2 and (is_data(cells[:1]) or is_data(cells[-1:])):
        whole = [line for line in sample if line.count(quote) % 2 == 0]  # others go on in the next line
        rows = [cells, *(_split(line, delimiter, quote) for line in whole)]
        rows = [row for row in rows if is_data(row[:1]) or is_data(row[-1:])]
        if any(len(row) != width for row in rows) or all(map(_goes_on, rows)):
            width = 2  # delimiters within the captions
    if delimiter == "\t" and is_data(cells[:1]):
        widths = [len(_split(line, delimiter, quote)) for line in sample]
        wider = [found for found in widths if found > width]
        width = max(widths) if len(wider) * 3 > len(widths) else width  # as many captions as an image has
    return Layout(delimiter, [str(i + 1) for i in range(width)], number, quote, wrapped, headless=True)


def _goes_on(row: list[str]) -> bool:
    """Whether the cells beside an image's name are one text with signs between: a blank begins all but the first."""
    texts, others = (row[1:2], row[2:]) if is_data(row[:1]) else (row[-1:], row[1:-1])
    return not texts[0].startswith(" ") and all(cell.startswith(" ") for cell in others)


def read_rows(
    path: TextPlace, layout: Layout, faults: Faults, notes: dict[str, int]
) -> Iterator[tuple[int, list[str]]]:
    """(number of its first line, cells) of each row; `notes` counts what was done to make sense of them."""
    lines = deque()
    source = _lines(path, layout.markup)
    for _ in range(layout.first - 1):
        next(source, None)
    width = len(layout.columns)
    while True:
        number, text = lines.popleft() if lines else next(source, (0, ""))
        if not number:
            return
        if layout.wrapped:
            inner = _quoted(text, ",", '"', {})
            text = inner[0] if inner and len(inner) == 1 else text
        if not text.strip(layout.delimiter + " \t"):
            continue
        cells = _row(text, layout, lines, source, notes)
        if layout.headless and layout.delimiter == "\t" and 1 < len(cells) < width:
            cells = [*cells, *[""] * (width - len(cells))]
        if len(cells) > width and not any(map(str.strip, cells[width:])):
            cells = cells[:width]
        elif len(cells) > width == 2:
            cells = _joined(cells, layout.delimiter, notes)
        if cells[0].strip() == layout.columns[0] and _is_header(cells, layout):
            notes[REPEATED] = notes.get(REPEATED, 0) + 1
        elif "-" not in text or not _RULE.fullmatch(text) or is_data(cells):
            yield number, cells


def _is_header(cells: list[str], layout: Layout) -> bool:
    return not layout.headless and [cell.strip() for cell in cells] == layout.columns


def _row(
    text: str, layout: Layout, lines: deque, source: Iterator[tuple[int, str]], notes: dict[str, int]
) -> list[str]:
    """The cells of the row that begins with this line; further lines of it are taken from `lines` and `source`."""
    delimiter, quote, width = layout.delimiter, layout.quote, len(layout.columns)
    if delimiter == " " or len(delimiter) > 1:
        return _split(text, delimiter, quote)
    if quote not in text:
        cells = text.split(delimiter)
        escaped = _quoted(text, delimiter, quote, _ESCAPED) if "\\" in text and len(cells) > width else None
        return escaped if escaped and len(escaped) == width else cells
    ways = _ways_to_quote(text, quote)
    if f"{delimiter} {quote}" in text:
        ways = ({"skipinitialspace": True}, *ways)
        text = re.sub(f"(?<!{quote}){quote} {re.escape(delimiter)}", f"{quote}{delimiter}", text)
    readings = []
    for how in ways:
        cells = _quoted(text, delimiter, quote, how)
        if cells is not None and len(cells) == width:
            return cells
        readings.append(cells)
    plain = text.split(delimiter)
    if not any(readings) and (cells := _over_lines(text, layout, lines, source)):
        return cells
    if len(plain) == width:  # a quote is a sign like any other
        key = "captions with a quote that closes nothing, read as it is"
        notes[key] = notes.get(key, 0) + 1
        return plain
    return next(filter(None, readings), plain)


def _over_lines(text: str, layout: Layout, lines: deque, source: Iterator[tuple[int, str]]) -> list[str] | None:
    """The cells of a row whose quoted cell holds line ends; None where the quote is a sign, and nothing is taken.

    A quote that a caption happens to begin with would swallow the rows up to the next quote at a line's end: lines
    that are each a row by themselves are taken for rows.
    """
    delimiter, quote, width = layout.delimiter, layout.quote, len(layout.columns)
    if text.count(quote) % 2 == 0 and (text.count(quote) - text.count(f"\\{quote}")) % 2 == 0:
        return None  # no quote is open
    whole, rows_by_themselves = [text], [text.split(delimiter)]
    for i in range(MAX_ROW_LINES):
        if i == len(lines):
            following = next(source, None)
            if following is None:
                return None
            lines.append(following)
        line = lines[i][1]
        whole.append(line)
        rows_by_themselves.append(line.split(delimiter))
        if quote not in line:
            continue
        joined = "\n".join(whole)
        for how in _ways_to_quote(joined, quote):
            cells = _quoted(joined, delimiter, quote, how)
            if cells is not None and len(cells) == width:
                if all(_alike(rows_by_themselves[0], row, width, delimiter) for row in rows_by_themselves):
                    return None
                for _ in range(i + 1):
                    lines.popleft()
                return cells
    return None


def _alike(first: list[str], row: list[str], width: int, delimiter: str) -> bool:
    """Whether a line is a row by itself: of the right width, with an image or a number where the first has one."""
    if len(row) != width:
        return False
    marks = [
        i for i in range(min(width, len(first))) if is_image_name(first[i].strip()) or first[i].strip().isdigit()
    ]
    matching = any(is_image_name(row[i].strip()) or row[i].strip().isdigit() for i in marks)
    return matching or (delimiter == "\t" and not marks)


def _joined(cells: list[str], delimiter: str, notes: dict[str, int]) -> list[str]:
    """Two cells of a row whose caption has the delimiter in it, where the other is an image's name; else as it is."""
    if is_data(cells[:1]):
        cells = [cells[0], delimiter.join(cells[1:])]
    elif is_data(cells[-1:]):
        cells = [delimiter.join(cells[:-1]), cells[-1]]
    else:
        return cells
    key = f"captions with an unquoted '{shown(delimiter)}', read to the end of the line"
    notes[key] = notes.get(key, 0) + 1
    return cells


def _ways_to_quote(text: str, quote: str) -> tuple[dict, ...]:
    """The ways of quoting that a text may be written in."""
    if (escaped := f"\\{quote}") not in text:
        return _WAYS_TO_QUOTE
    doubled = quote * 2 in text.replace(escaped, "")  # a text that ends in a backslash
    return (*_WAYS_TO_QUOTE, _ESCAPED) if doubled else (_ESCAPED, *_WAYS_TO_QUOTE)


def _quoted(text: str, delimiter: str, quote: str, how: dict) -> list[str] | None:
    """The cells of a row in one way of quoting; None where it is not written so."""
    if how is _ESCAPED:  # Python's reader without doubled quotes takes anything
        text = text.replace(f"\\{quote}", _QUOTE_SIGN)
    try:
        rows = list(csv.reader([text], delimiter=delimiter, quotechar=quote, strict=True, **how))
    except csv.Error:
        return None
    if len(rows) != 1:
        return None
    return [cell.replace(_QUOTE_SIGN, quote) for cell in rows[0]] if how is _ESCAPED else rows[0]


def _split(text: str, delimiter: str, quote: str = '"') -> list[str]:
    if delimiter == " " and not text.startswith(quote):
        return text.split(None, 1)
    if len(delimiter) > 1:
        return [_unquoted(cell.strip(), quote) for cell in text.split(delimiter)]
    if quote not in text:
        return text.split(delimiter)
    readings = (_quoted(text, delimiter, quote, how) for how in _ways_to_quote(text, quote))
    return next((cells for cells in readings if cells), text.split(delimiter))


def _unquoted(cell: str, quote: str) -> str:
    inner = cell[1:-1]
    return inner if cell == f"{quote}{inner}{quote}" and quote not in inner else cell


def _has_delimiter(text: str) -> bool:
    return any(sign in text for sign in DELIMITERS)


def _delimiter(path: TextPlace, head: str, sample: Sequence[str] = ()) -> str:
    """The delimiter beside an image's name in a first row, and in most others; else tab for .tsv, else the commonest
    in the head."""
    if _QUOTED_BY_BLANKS.fullmatch(head):
        return " "
    signs = [sign for sign in ("\t", "|", ";", ",", *_RARE_DELIMITERS, " ") if _is_beside_name(sign, head)]
    if signs:
        return max(signs, key=lambda sign: sum(_is_beside_name(sign, line) for line in sample))
    if is_data([head]) and not _has_delimiter(head):
        return " "
    outside = re.sub(r'"[^"]*"', "", head)
    if str(path).lower().endswith((".tsv", ".tab")) and "\t" in outside:
        return "\t"
    there = [sign for sign in DELIMITERS if sign in outside] or [","]
    alike = {sign: sum(len(_split(line, sign)) == len(_split(head, sign)) for line in sample) for sign in there}
    best = max(there, key=lambda sign: (alike[sign], outside.count(sign)))
    return best if best in outside else next((sign for sign in _RARE_DELIMITERS if sign in outside), best)


def _is_beside_name(sign: str, line: str) -> bool:
    """Whether a line begins or ends with an image's name that a delimiter separates from the rest."""
    if sign in DELIMITERS:
        cells = _split(line, sign)
        return len(cells) > 1 and (is_data(cells[:1]) or is_data(cells[-1:]))
    first, *rest = line.split(None if sign == " " else sign, 1)
    alone = not _has_delimiter(first) if sign == " " else len(first.split()) == 1
    return bool(rest) and alone and is_data([first])


def _guess_quote(sample: list[str], delimiter: str) -> str:
    """The sign around texts: ' where every row has a cell in them and none in double quotes."""
    single = re.compile(rf"(?:^|{re.escape(delimiter)}\s*)'[^']*(?:''[^']*)*'\s*(?={re.escape(delimiter)}|$)")
    return "'" if sample and all(single.search(line) and '"' not in line for line in sample) else '"'


def _has_row_names(sample: list[str], delimiter: str, quote: str, width: int) -> bool:
    """Whether rows begin with a number, or an image's name, that the header has no name for, as R writes them."""
    rows = [_split(line, delimiter, quote) for line in sample]
    return bool(rows) and all(
        len(row) == width + 1 and (row[0].strip().isdigit() or is_data(row[:1])) for row in rows
    )


def wrong_width(cells: Sequence[str], layout: Layout) -> str:
    """Why a row does not fit its header."""
    return (
        f"{len(cells)} fields where the header has {len(layout.columns)} (a text with "
        f"{shown(layout.delimiter)} in it belongs in double quotes): {in_short(layout.delimiter.join(cells), 60)}"
    )
