"""The content of one cell: captions in any notation, an image's name, or the image itself."""

from __future__ import annotations

import base64
import binascii
import csv
import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

from clipcap.errors import ClipcapError
from clipcap.images.kinds import SIGNATURE_BYTES, image_suffix
from clipcap.runtime.text import shown
from clipcap.sources.faults import RowError
from clipcap.sources.json_tables import python_object
from clipcap.sources.names import CAPTION_NAMES, TAGS, caption_family, plain, unwrapped
from clipcap.sources.textfiles import parse_json

WORDS = "captions that are lists of single words, joined"
TURNS = "further answers of conversations, left out (the first one is the caption)"

_ENTITY = re.compile(r"\[/EN#\d+(?:/[\w-]+)+ ([^\]]*)\]")  # Flickr30k Entities: [/EN#3/people A man]
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""", re.DOTALL)
_NUMPY_LIST = re.compile(rf"\[\s*(?:(?:{_QUOTED.pattern})\s+)+(?:{_QUOTED.pattern})\s*\]", re.DOTALL)
_IMAGE_MARK = re.compile(r"<img>.*?</img>|<image>|</?img>|<\|[\w ]*image[\w ]*\|>", re.IGNORECASE | re.DOTALL)
_IMG_PATH = re.compile(r"<img>(.+?)</img>", re.IGNORECASE | re.DOTALL)
# Keys of an object that is an image, as they are compared; the first one with something in it counts.
_IMAGE_KEYS = (
    "bytes path filename image imageurl url uri fileuri src base64 source filedata inlinedata image64 "
    "imagebase64 data"
).split()
_IMAGE_PARTS = ("image", "image_url", "input_image")  # kinds of parts of a message
_IMAGE_MARKED = re.compile(r"<?(?:image|img|picture)[\s_]*\d*>?", re.IGNORECASE)
_ANSWERERS = ("gpt", "assistant", "model", "bot", "chatgpt", "bing", "bard", "caption")
_CONTENT_KEYS = ("value", "content", "parts", "text")  # what a turn holds, in the formats of several trainers
_SIGNS = string.punctuation + string.whitespace + "\0\x1c\x1d\x1e\x1f\x85\xa0"
_NUMBERED = re.compile(r"\d+|(?:caption|comment|sentence|text)[\s_]*\d+", re.IGNORECASE)
# What programs write for a caption that is not there: pandas, R, MySQL, and the errors of spreadsheets.
_NOTHING = (
    "nan", "null", "none", "nil", "na", "n/a", "<na>", "\\n", "#n/a", "#na", "#ref!", "#value!", "#name?", "#error!"
)  # fmt: skip
# Keys of an object of captions that are no names of columns, and that come before those of tags.
_LENGTHS = ("short", "brief", "medium", "main", "original", "long", "detailed", "dense")
_AROUND_ANSWERS = ("body", "choices", "candidates", "message", "result", "results")  # in what servers send back
_BOXES = re.compile(r"\s*-?\d+(?:\.\d+)?(?:[\s,;]+-?\d*\.?\d+){4,}[\s,;]*")  # class, box, outline
SEVERAL_IMAGES = "several images in one row"
NUMBERS = "numbers, as detectors are trained on"
_LANGUAGE = re.compile(r"[a-z]{2}(?:[-_][A-Za-z]{2,4})?")
_DEEPEST = 20  # lists within lists
_WORDS_OF_A_CAPTION = 3  # two texts of a word each are two captions
_HEXADECIMAL = re.compile(r"[0-9a-fA-F]{64}")
_OBJECT = re.compile(r"<[\w.]*(?:PIL|Image|object)\b.*(?:size=|at 0x).*>", re.DOTALL)
_BASE64 = re.compile(r"[A-Za-z0-9+/_-]{64}")


def captions_in(value: Any, counts: Counter[str] | None = None) -> list[str]:
    """The captions in one cell; `counts` takes what was done to them.

    Understood are a text; a list of texts, of words, of objects that hold a caption; a conversation; and all of that
    written as JSON, as Python, as NumPy or PostgreSQL print it.

    Raises:
        RowError: another kind of value.
    """
    counts = Counter() if counts is None else counts
    if value is None or value != value:
        return [""]
    if isinstance(value, bytes):
        try:
            value = value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise RowError(
                "a caption is a text or a list of texts, here it is bytes", "a caption of bytes"
            ) from error
    if isinstance(value, str):
        if value.startswith('="') and value.endswith('"'):  # as a text that Excel is not to change
            value = value[2:-1]
        if value.strip().lower() in _NOTHING or not value.strip(_SIGNS):
            return [""]
        inner = _notation(value.strip())
        return [_ENTITY.sub(r"\1", value)] if inner is None else captions_in(inner, counts)
    if isinstance(value, dict):
        return captions_in(_caption_in_object(value), counts)
    if isinstance(value, (list, tuple)):
        return _captions_in_list(value, counts)
    return [str(value)]


def are_boxes(captions: Sequence[str]) -> bool:
    """Whether captions are the numbers that detectors are trained on."""
    return bool(captions) and all(map(_BOXES.fullmatch, captions))


def _captions_in_list(values: Sequence, counts: Counter[str], depth: int = 0) -> list[str]:
    if not values:
        return [""]
    if depth > _DEEPEST:
        raise RowError(f"a caption is a text or a list of texts, here lists are more than {_DEEPEST} deep")
    if all(isinstance(part, dict) for part in values):
        if (answer := _answer(values, counts)) is not None:
            return captions_in(answer, counts)
        return [text for part in values for text in captions_in(_caption_in_object(part), counts)]
    if all(isinstance(part, (list, tuple)) for part in values):
        return [text for part in values for text in _captions_in_list(part, counts, depth + 1)]
    for part in values:
        if isinstance(part, (dict, list, tuple, bytes)):
            raise RowError(f"a caption is a text or a list of texts, here it is a {type(part).__name__}")
    texts = ["" if part is None or part != part else str(part) for part in values]
    if len(texts) >= _WORDS_OF_A_CAPTION and all(map(_is_word, texts)):
        counts[WORDS] += 1
        blank = "" if any(map(_is_wide, texts)) else " "
        return [blank.join(texts)]
    return [_ENTITY.sub(r"\1", text) for text in texts]


def _is_word(text: str) -> bool:
    """Whether a text is a single word; of a script without blanks, two signs at most."""
    return not any(map(str.isspace, text)) and (len(text) <= 2 or not _is_wide(text))


def _is_wide(text: str) -> bool:
    """Whether a text holds a sign of a script that sets no blanks between words."""
    return any("\u0e00" <= c <= "\u0eff" or "\u2e80" <= c <= "\u9fff" or "\uf900" <= c <= "\ufaff" for c in text)


def _notation(text: str) -> Any:
    """The list or object that a text is the notation of; None where it is a text."""
    ends = (text[:1], text[-1:])
    if ends not in (("[", "]"), ("{", "}"), ("(", ")")) or len(text) < 4:
        return None
    if _NUMPY_LIST.fullmatch(text):  # Python would join the texts, as there are no commas
        return [python_object(quoted) or "" for quoted in _QUOTED.findall(text)]
    found = None
    if ends[0] != "(":
        try:
            found = parse_json(text, "")
        except ClipcapError:
            found = None
    found = python_object(text) if found is None else found
    if (found is None or isinstance(found, set)) and ends[0] == "{" and text[1:2] == '"':  # a PostgreSQL array
        found = _postgres_array(text)
    if isinstance(found, dict):
        return found if _has_caption(found) else None
    usable = (
        isinstance(found, (list, tuple)) and found and all(isinstance(p, (str, dict, list, tuple)) for p in found)
    )
    return found if usable else None


def _postgres_array(text: str) -> list[str] | None:
    """The parts of `{"one","two"}`; None where it is a text in braces."""
    try:
        return next(csv.reader([text[1:-1]], escapechar="\\"), None)
    except csv.Error:  # a line end outside of quotes
        return None


def _has_caption(value: dict) -> bool:
    keys = [str(key) for key in value]
    return any(plain(key) in CAPTION_NAMES for key in keys) or all(map(_NUMBERED.fullmatch, keys))


def _caption_in_object(value: dict) -> Any:
    """What an object holds as its caption.

    Raises:
        RowError: it holds none.
    """
    by_name = {plain(str(key)): inner for key, inner in value.items()}
    first, last = [name for name in CAPTION_NAMES if name not in TAGS], TAGS
    for name in (*first, *_LENGTHS, *last):
        if isinstance(by_name.get(name), (str, list, tuple, dict)) and by_name[name]:
            return by_name[name]
    family = caption_family(str(key) for key in value)
    if family:
        return [value[key] for key in family]
    if value and all(_NUMBERED.fullmatch(str(key)) for key in value):
        return list(value.values())
    if any(name in by_name for name in CAPTION_NAMES):
        return None
    if (inner := next((by_name[name] for name in _AROUND_ANSWERS if by_name.get(name)), None)) is not None:
        return inner
    if len(value) == 1 and _LANGUAGE.fullmatch(str(next(iter(value)))):
        return next(iter(value.values()))
    keys = ", ".join(f"'{shown(str(key)[:40])}'" for key in list(value)[:8])
    raise RowError(
        f"a caption is a text or a list of texts, here it is a dict with the keys {keys}", "a caption that is a dict"
    )


def _answer(turns: Sequence[dict], counts: Counter[str]) -> Any:
    """The first answer of a conversation; None if the value is not one."""
    answers = []
    for turn in turns:
        who = turn.get("from", turn.get("role"))
        key = next((key for key in _CONTENT_KEYS if key in turn), None)
        if isinstance(who, str) and key:
            if who.lower() in _ANSWERERS:
                answers.append(turn[key])
        elif isinstance(turn.get("assistant"), str):  # {"human": ..., "assistant": ...}
            answers.append(turn["assistant"])
        else:
            return None
    if not answers:
        return "" if turns else None
    if len(answers) > 1:
        counts[TURNS] += len(answers) - 1
    answer = answers[0]
    if isinstance(answer, list):  # parts of a message
        answer = " ".join(
            part["text"] for part in answer if isinstance(part, dict) and isinstance(part.get("text"), str)
        )
    return _IMAGE_MARK.sub(" ", answer) if isinstance(answer, str) else answer


def image_in(value: Any) -> str | bytes | None:
    """The name of an image in a cell, or its bytes; None where there is nothing.

    Raises:
        RowError: there are several images, or something else.
    """
    if value is None or value != value:
        return None
    if isinstance(value, (bytes, bytearray)):
        return bytes(value) or None
    if isinstance(value, str):
        text = unwrapped(value.strip())
        if text.startswith(("[", "{")) and (inner := _image_notation(text)) is not None:
            return image_in(inner)
        return _from_base64(text) or _from_python(text) or _from_hexadecimal(text) or text or None
    if isinstance(value, dict):
        return _image_in_object(value)
    if isinstance(value, (list, tuple)):
        if len(value) > 1:
            raise RowError(f"{len(value)} images in one row, expected one", SEVERAL_IMAGES)
        return image_in(value[0]) if value else None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))  # pandas makes floats of numbers where one is lacking
    return str(value)


def _image_in_object(value: dict) -> str | bytes | None:
    by_name = {plain(str(key)): inner for key, inner in value.items()}
    for key in _IMAGE_KEYS:
        inner = by_name.get(key)
        if inner not in (None, "", b""):
            found = image_in(inner)
            if key == "bytes" and isinstance(found, str):
                raise RowError(
                    "the image column holds a dict whose bytes are not an image", "bytes that are not an image"
                )
            return found
    if any(key in value for key in ("bytes", "path")):
        return None
    marked = [inner for key, inner in value.items() if _IMAGE_MARKED.fullmatch(str(key))]
    if marked and len(marked) == len(value):  # {"<image_00>": "1.jpg"}
        return image_in(marked)
    keys = ", ".join(f"'{shown(str(key)[:40])}'" for key in list(value)[:8])
    raise RowError(f"the image column holds a dict with the keys {keys}, not a file name", "an image that is a dict")


def _image_notation(text: str) -> Any:
    try:
        return parse_json(text, "")
    except ClipcapError:
        return python_object(text)


def _from_base64(text: str) -> bytes | None:
    """The image that a text is the base64 of, as a data address too."""
    head, comma, rest = text.partition(",")
    data = head.startswith("data:") and bool(comma)
    if not data and not (len(text) >= 64 and _BASE64.match(text)):
        return None
    body = rest if data else text
    try:
        start = base64.b64decode(
            body[:88].ljust(-(-len(body[:88]) // 4) * 4, "="), b"-_" if "-" in body or "_" in body else None
        )
        if not data and image_suffix(start[:SIGNATURE_BYTES]) is None:
            return None
        return base64.b64decode(body + "=" * (-len(body) % 4), b"-_" if "-" in body or "_" in body else None)
    except (binascii.Error, ValueError) as error:
        if data:
            raise RowError("a data address that is not base64", "an image that is not base64") from error
        return None


def _from_python(text: str) -> bytes | None:
    """The image that a text is Python's notation of, as pandas writes bytes into a CSV.

    Raises:
        RowError: it is cut short, or says that there was an object and no more.
    """
    if _OBJECT.fullmatch(text):
        why = "is the name of an object in place of a picture: save the pictures, and write their file names"
        raise RowError(f"'{shown(text[:60])}' {why}", "a name of an object in place of a picture")
    if text[:2] not in ("b'", 'b"'):
        return None
    found = python_object(text)
    if not isinstance(found, bytes):
        raise RowError("bytes that are cut short, or no image", "bytes that are not an image")
    return found


def _from_hexadecimal(text: str) -> bytes | None:
    """The image that a text is the hexadecimal digits of, as databases print it."""
    digits = text.removeprefix("\\x").removeprefix("0x")
    if len(digits) < 64 or not _HEXADECIMAL.fullmatch(digits[:64]):
        return None
    try:
        return bytes.fromhex(digits) if image_suffix(bytes.fromhex(digits[:64])) else None
    except ValueError as error:
        raise RowError("hexadecimal digits that are cut short", "bytes that are not an image") from error


def image_in_conversation(value: Any) -> str | bytes | None:
    """The image that a message of a conversation holds, as TRL's, axolotl's and Qwen's do; None where none does."""
    for turn in value if isinstance(value, (list, tuple)) else ():
        if not isinstance(turn, dict):
            return None
        content = next((turn[key] for key in _CONTENT_KEYS if key in turn), None)
        if isinstance(content, str) and (match := _IMG_PATH.search(content)):
            return match[1].strip()
        for part in content if isinstance(content, (list, tuple)) else ():
            if not isinstance(part, dict):
                continue
            found = {key: inner for key, inner in part.items() if key != "type" and inner}
            if found and (part.get("type") in _IMAGE_PARTS or any(plain(key) in _IMAGE_KEYS for key in found)):
                return _image_in_object(found)
    return None
