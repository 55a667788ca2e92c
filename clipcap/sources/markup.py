"""Tables in LaTeX and lists in Markdown or plain text: their lines as the rows of a table with a delimiter."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Sequence

from clipcap.images.kinds import is_image_name
from clipcap.sources.names import unwrapped

LATEX_DELIMITER = "&\t"  # no cell holds a tab
Lines = Iterable[tuple[int, str]]  # (number, text)
Markup = Callable[[Lines], Iterator[tuple[int, str]]]

_BEGIN = re.compile(
    r"\\begin\{(?:long|x?l?)?(?:tabular[xy]?|table|tabu|tblr|array)\*?\}(?:\[[^\]]*\])?(?:\{(?:[^{}]|\{[^{}]*\})*\})*"
)
_END = re.compile(r"\\end\{(?:long|x?l?)?(?:tabular[xy]?|table|tabu|tblr|array)\*?\}")
_REMARK = re.compile(r"(?<!\\)%.*")
_ROW_END = re.compile(r"\\\\\*?(?:\[[^\]]*\])?|\\tabularnewline\b")
_RULE = re.compile(
    r"\\(?:hline|(?:top|mid|bottom)rule|end(?:first|last)?(?:head|foot)|c(?:mid)?(?:line|rule)(?:\(\w+\))?\{[^}]*\})"
)
_ACCENT = re.compile(r"\\(['`^\"~=.uvHcdbrk])(?:\{\\?([A-Za-z])\}|(?<=['`^\"~=.])\\?([A-Za-z]))")
_ACCENTS = dict(
    zip(
        "'`^\"~=.uvHcdbrk",
        "\u0301\u0300\u0302\u0308\u0303\u0304\u0307\u0306\u030c\u030b\u0327\u0323\u0331\u030a\u0328",
    )
)
_COMMAND = re.compile(r"\\[A-Za-z]+\*?(?:\[[^\]]*\])*(?:\{[^{}]*\})*\{([^{}]*)\}")
_NAMED_SIGNS = {"\\textbackslash": "\\", "\\textasciitilde": "~", "\\textasciicircum": "^", "\\ldots": "...",
                "\\dots": "...", "``": '"', "''": '"'}  # fmt: skip
_NAMED_SIGN = re.compile(
    r"(\\(?:textbackslash|textasciitilde|textasciicircum|l?dots)|``|'')(?:(?<=[a-z])(?:\{\}| ?))?"
)
_ESCAPED_SIGN = re.compile(r"\\([&%$#_{}])")

_BULLET = re.compile(r"\s*(?:[-*+\u2022\u2023\u25e6\u2013\u2014\u00b7]|([(\[]?\d+[.):\]]+))\s+(?:\[[ xX]\]\s+)?")
_LINK = re.compile(r"!?\[([^\]]*)\]\(<?([^()<>\s]+)>?[^)]*\)")
_EMPHASIS = re.compile(r"([*_`\"']{1,3})(?=\S)(.+?)(:?)\1")
_AFTER_NAME = re.compile(r":\s|\s[-\u2013\u2014:]\s|=>|->")
_FIRST_WORD = re.compile(r"(\S+) (?![|,;])")
_NO_ENTRY = re.compile(r"\s*(?:#+\s.*|[-=*_\s]*)")  # a heading, a line under it, a blank one
_HEADING = re.compile(r"^(?:#+|[-*+\u2022]|[(\[]?\d+[.):\]])\s+")
_IMAGE_LABEL = re.compile(r"^(?:image|img|photo|picture|file(?: ?name)?)\s*\d*\s*[:=]\s*", re.IGNORECASE)
_CAPTION_LABEL = re.compile(
    r"^\s*(?:[-*+\u2022]\s+)?(?:\*\*)?(?:captions?|descriptions?|texts?|alt)\s*\d*\s*[:=](?:\*\*)?\s*", re.IGNORECASE
)
_USUAL = 0.8  # share of a list's lines that are entries


def find_markup(head: Sequence[str]) -> Markup | None:
    """What makes rows of a text's lines, by its first lines; None for a text without markup."""
    filled = [line for line in head if line.strip()]
    if any(_BEGIN.match(line.strip()) for line in filled):
        return latex_rows
    if filled and all("&" in line and _ROW_END.search(_RULE.sub("", line)) for line in filled):
        return bare_latex_rows
    entries = [line for line in filled if not _NO_ENTRY.fullmatch(line)]
    while entries and not _is_entry(entries[0]) and not _holds_name(entries[0]):
        entries = entries[1:]  # a title
    entries = [line for line in entries if not line[:1].isspace() or _is_entry(line)]
    if entries and sum(map(_is_entry, entries)) >= _USUAL * len(entries):
        return list_rows
    return block_rows if _are_blocks(head, filled) else None


def latex_rows(lines: Lines, inside: bool = False) -> Iterator[tuple[int, str]]:
    """(number of its last line, cells with `LATEX_DELIMITER` between) of each row of a LaTeX text's tables."""
    text, everywhere = "", inside
    for number, line in lines:
        line = _REMARK.sub("", line)
        if begin := _BEGIN.search(line):
            inside, text, line = True, "", line[begin.end() :]
        end = _END.search(line)
        if inside:
            *rows, text = _ROW_END.split(f"{text} {line[: end.start()] if end else line}")
            for row in [*rows, text] if end else rows:
                cells = [_latex_text(cell) for cell in re.split(r"(?<!\\)&", row)]
                if len(cells) > 1 or any(map(is_image_name, cells)):
                    yield number, LATEX_DELIMITER.join(cells)
        if end:
            inside, text = everywhere, ""


def bare_latex_rows(lines: Lines) -> Iterator[tuple[int, str]]:
    """`latex_rows` of the inside of a table."""
    return latex_rows(lines, True)


def _latex_text(cell: str) -> str:
    """A cell as it is printed."""
    text = _ACCENT.sub(lambda m: unicodedata.normalize("NFC", (m[2] or m[3]) + _ACCENTS[m[1]]), _RULE.sub(" ", cell))
    text = _NAMED_SIGN.sub(lambda m: _NAMED_SIGNS[m[1]], text)
    text = _ESCAPED_SIGN.sub(lambda m: chr(0xE000 + ord(m[1])), text)  # out of the way of the signs of markup
    while text != (text := _COMMAND.sub(r"\1", text)):
        pass
    text = re.sub(r"\\[A-Za-z]+\s*|[{}$]", "", text).replace("~", " ")
    return " ".join(re.sub("[\ue000-\ue0ff]", lambda m: chr(ord(m[0]) - 0xE000), text).split())


def list_rows(lines: Lines) -> Iterator[tuple[int, str]]:
    """(number of its first line, text) of each entry of a list, without its mark, and all other text below it."""
    entry: tuple[int, str] | None = None
    for number, line in lines:
        if _is_entry(line):
            if entry:
                yield entry
            entry = number, _bare_entry(line)[0]
        elif entry and not _NO_ENTRY.fullmatch(line):
            if line[:1].isspace():  # the entry goes on
                entry = entry[0], f"{entry[1]} {line.strip()}"
            else:
                yield entry
                entry = number, line
    if entry:
        yield entry


def block_rows(lines: Lines) -> Iterator[tuple[int, str]]:
    """(number, name and caption with a tab between) of each line below a photo's name that has a line to itself."""
    name, described, number = None, False, 0
    for number, line in lines:
        if found := _lone_name(line):
            if name and not described:
                yield number, f"{name}\t"
            name, described = found, False
        elif name and not _NO_ENTRY.fullmatch(line) and not line.strip().isdigit():
            described = True
            yield number, f"{name}\t{' '.join(_CAPTION_LABEL.sub('', line).split())}"
    if name and not described:
        yield number, f"{name}\t"


def _are_blocks(head: Sequence[str], filled: Sequence[str]) -> bool:
    """Whether names of photos have lines to themselves, most with lines below that name none.

    Where captions are above the names, it would be the next photo's that is below: text before the first name has to
    be a title, set off by a blank line, of a text that does not end in a name.
    """
    names = {i for i, line in enumerate(filled) if _lone_name(line)}
    texts = [line for i, line in enumerate(filled) if i not in names]
    if not names or not texts or any(map(_holds_name, texts)):
        return False
    first = next(i for i, line in enumerate(head) if _lone_name(line))
    before = head[first - 1].strip() if first else ""
    titled = min(names) == 0 or (not before and len(filled) - 1 not in names) or before.startswith("#")
    titled = titled or before.isdigit()
    return titled and 3 * sum(i + 1 in names for i in names) <= len(names)


def _holds_name(line: str) -> bool:
    """Whether a line holds the name of a photo, alone or among others."""
    return any(map(is_image_name, re.split(r"[\s,;|]+", line)))


def _lone_name(line: str) -> str | None:
    """The photo's name that a line consists of, without marks of lists and headings, or a word for it before."""
    text = _HEADING.sub("", line.strip())
    bare = _IMAGE_LABEL.sub("", text.strip("*_` ").rstrip(":"))
    found = unwrapped(bare.strip("*_` "))
    labelled = len(bare) < len(line.strip().rstrip(":"))
    return found if is_image_name(found) and (labelled or not re.search(r"[\s,;|]", found)) else None


def bare_lines(lines: list[str]) -> list[str]:
    """The captions in the lines of a text, without the marks and quotes that all of them have."""
    marks = [_BULLET.match(line) for line in lines]
    numbers = [re.sub(r"\D", "", match[1] or "") for match in marks if match]
    counted = len(lines) > 1 and numbers == [str(i) for i in range(1, len(lines) + 1)]
    if len(numbers) == len(lines) and (counted or not any(numbers)):
        lines = [line[match.end() :] for line, match in zip(lines, marks) if match]
    quoted = all(line.strip().count('"') == 2 and re.fullmatch(r'\s*"[^"]+"\s*', line) for line in lines)
    return [line.strip().strip('"') for line in lines] if quoted else lines


def _is_entry(line: str) -> bool:
    """Whether a line is an entry of a list: a mark, then the name of a photo, or a link to one.

    With a delimiter of tables behind the name, the mark may be a part of the name: such a line is a row as it is.
    """
    bullet = _BULLET.match(line)
    if not bullet and not line.lstrip().startswith("!["):
        return False
    text, name = _bare_entry(line)
    first = name or _AFTER_NAME.split(text, maxsplit=1)[0].strip()
    word = _FIRST_WORD.match(text)
    if is_image_name(first) or (word is not None and is_image_name(word[1])):
        return True
    return bullet is not None and bullet[1] is None and first != text and re.fullmatch(r"\S*\d", first) is not None


def _bare_entry(line: str) -> tuple[str, str | None]:
    """(an entry without its mark, and without what surrounds the name at its beginning; that name, if it had any)."""
    text = line[match.end() :] if (match := _BULLET.match(line)) else line.strip()
    if link := _LINK.match(text):
        rest = text[link.end() :]
        return link[2] + (rest if rest.strip() else f"\t{link[1]}"), link[2]
    if (name := _EMPHASIS.match(text)) and name[1] not in name[2]:
        return name[2] + name[3] + text[name.end() :], name[2]
    return text, None
