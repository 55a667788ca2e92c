"""The Penn Treebank tokenizer of the COCO caption evaluation, without Java.

The COCO server lower-cases captions and cuts them up with `PTBTokenizer` of Stanford CoreNLP 3.4.1, then drops
punctuation. Here the same tokens come from a table of patterns, written after that program's observable behaviour:
wherever a token may start, the pattern that reaches furthest wins. Known differences: telephone numbers in
brackets, abbreviations before a hyphen (`St.-Germain`), addresses in running text, most HTML entities, and vowel
signs of some Indic scripts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from functools import lru_cache

# What the COCO evaluation drops. Brackets stay: it lists `-LRB-`, but the tokens are in lower case by then.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

# Abbreviations keep their full stop: these in any case, the last ones when they begin with a capital, and those of
# the next list before a number.
_ABBREVIATIONS = (
    r"(?i:ph\.d|"
    r"adm|adv|al|ala|alex|apr|assn|assoc|asst|atty|aug|ave|bldg|blvd|bros|calif|capt|cf|"
    r"cie|cmdr|co|col|colo|conn|corp|cos|cpl|ct|dak|dec|dept|det|dr|drs|elec|ens|esq|"
    r"est|etc|ext|feb|fla|fri|ft|ga|gen|gov|hon|inc|ind|intl|jan|jos|jr|jul|jun|kan|"
    r"kans|ky|lt|ltd|maj|mar|md|mfg|mich|minn|mme|mo|mon|mont|mr|mrs|ms|mt|mtg|natl|"
    r"nev|nov|oct|penn|pfc|ph|plc|pres|prof|profs|pte|pvt|rd|rep|reps|rev|rt|sen|sens|"
    r"sep|sept|seq|sfc|sgt|spc|sq|sr|st|ste|supt|sys|tel|thu|thurs|tue|tues|univ|va|vs|"
    r"vt|wed|wis|wm"
    r")|Ark|ARK|Az|AZ|Del|DEL|Ill|ILL|La|LA|Mass|MASS|Miss|MISS|Ore|ORE|Pa|PA|Tex|TEX|Wash|WASH"
)
_NUMBERED = r"(?i:art|ca|figs?|nos?|op|pp|prop)"

_SPLIT = {word: (word[:3], word[3:]) for word in ("cannot", "gimme", "gonna", "gotta", "lemme", "wanna")}
_WRITTEN = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "¢": "cents", "£": "#", "€": "$", "¤": "$"}
_WRITTEN |= {"&amp;": "&", "&lt;": "<", "&gt;": ">", "&quot;": "'", "&apos;": "'", "&nbsp;": "'"}
_WRITTEN |= {"’": "'", "‘": "`", "‛": "`", "‹": "`", "›": "'", "‐": "-", "‑": "-", '"': "'"}
_WRITTEN |= {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
_ROUND = str.maketrans({"(": "-lrb-", ")": "-rrb-"})

# Symbols beyond ASCII that are tokens of their own; others are dropped, and part the words beside them.
_SYMBOLS = re.compile(
    "[¡-©«-´¶-¹»-¿×÷\u037e\u0387\u05be\u05c0\u05c3\u05f3\u05f4\u060c\u061b\u061f\u066a\u06d4\u0964\u0965"
    "\u0e3f\u0e4f\u2016-\u2027\u2030-\u2042\u2044\u2070-\u208e€\u2100-\u214f\u2153-\u215e\u2190-\u2bff"
    "\u3001\u3002\u3012\u30fb\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65\uffe0-\uffe6]"
)


class _Shapes(dict):
    """What the patterns see of a character: itself, `ä` for a letter beyond ASCII, `©` for a symbol, or a blank."""

    def __missing__(self, code: int) -> str:
        char = chr(code)
        if code < 0x7F or char in "’\xa0":
            shape = char
        elif char in "‘‛‹":
            shape = "`"
        elif char in "“”«»–—―…":
            shape = '"'  # dropped in the end, as quotation marks are
        elif char in "‐‑":
            shape = "-"
        elif code > 0xFFFF:
            shape = " "
        elif _SYMBOLS.match(char):
            shape = "©" if char != "⁄" else char
        else:
            kind = unicodedata.category(char)
            shape = "ä" if kind[0] == "L" or kind == "Nd" or (kind[0] == "M" and code < 0x1000) else " "
        self[code] = shape
        return shape


_SHAPES = _Shapes()

_LETTER, _ALNUM, _Q = "[A-Za-zä]", "[A-Za-z0-9ä]", "['’]"
_WORD = rf"(?:(?:[A-HJ-XZ]|[dlno]){_Q}(?={_LETTER}{{2}}))?{_ALNUM}+(?:_{_ALNUM}+)*"  # O'Brien, d'oeuvre, t_t
_HYPHENED = rf"{_WORD}(?:-{_WORD})*"
_DOTTED = rf"{_LETTER}{_ALNUM}*(?:\.{_LETTER}{_ALNUM}*)+"  # plate.The
_SLASHED = "[A-Za-z0-9]+(?:-[A-Za-z]+)*"
_INITIALS = "[A-Z]+(?:&[A-Z]+)+"  # R&B
_ADDRESS = r"[^\s\"<>|()]*[^\s\"<>|().,;:!?'-]"
_EMAIL = r"[A-Za-z][\w.-]*@\w+(?:[.-]\w+)*"
_TAG = r"<[/!?]?[A-Za-z]\w*(?:[ \xa0][A-Za-z/][^<>()\[\];]*)?[/?]?>"
_SUFFIX = rf"{_Q}(?i:s|m|d|ll|ve|re)(?!{_LETTER})"

# A group, where there is one, is the token, and what follows the group only has to stand there.
_PATTERNS = [
    re.compile(pattern)
    for pattern in (
        _HYPHENED,
        rf"(?:(?:[A-Za-z]\.)+[A-Za-z]?|{_DOTTED})(?:-{_WORD})+",  # U.S.-made
        rf"(?:{_WORD}|(?:[A-Za-z]\.)+)(?:-{_WORD})*-(?:[A-Za-z]\.){{2,}}",  # non-U.S.
        rf"{_LETTER}{_ALNUM}*(?:[.!?]{_LETTER}{_ALNUM}*)+",
        r"[A-Za-z](?:\.[A-Za-z])*\.",  # U.S., vitamin A.
        rf"(?:{_ABBREVIATIONS})\.",
        rf"({_NUMBERED}\.)[0-9]",
        rf"((?:{_HYPHENED}|{_DOTTED}|{_INITIALS})\.)[,;:]",
        r"[-+]?(?:[0-9]+(?:[.,:][0-9]+)*|(?:[.,:][0-9]+)+)",
        rf"[0-9]+(?:[.,][0-9]+)+(?:-{_LETTER}{_ALNUM}*)+",  # 1.5-litre
        r"[0-9]{1,4}(?:[-\xa0][0-9]{1,4})?[/⁄][0-9]{1,4}",
        rf"{_SLASHED}(?:/{_SLASHED}){{1,2}}",
        rf"{_INITIALS}|[A-Z]{{1,2}}\$",
        rf"({_ALNUM}+){_SUFFIX}",
        r"([A-Za-z]*[A-MO-Za-mo-z])[nN]['’`][tT]",
        rf"[nN]['’`][tT](?!{_LETTER})",
        _SUFFIX,
        rf"([yY]{_Q}){_LETTER}|[dDjJ]{_Q}",
        rf"[A-Za-z]+[aeiouyAEIOUY]{_Q}[aeiouAEIOU][A-Za-z]*",  # ma'am
        rf"(?i:(?:ol|dunkin|somethin){_Q}|c'mon|c{_Q}est|e'er|s'mores|li'l|nat'l|cap{_Q}n)",
        rf"{_Q}(?i:em|til|cause)|{_Q}[nN]{_Q}|{_Q}[nN](?!\S)|{_Q}[0-9][0-9]s|{_Q}[0-9][0-9](?!\S)|('[tT])(?i:is|was)",
        rf"@[A-Za-z_]\w*|#{_LETTER}+|(?i:[cf]#|c\+\+)",
        rf"{_EMAIL}|<{_EMAIL}>",
        rf"(?:https?://|www\.){_ADDRESS}|(?:[A-Za-z][\w-]+\.)+(?:com|edu|net|org)/{_ADDRESS}",
        rf"[<>]?[:;=][-o*']?[()DdPpO|@\\\[\]](?!{_ALNUM})|\(?[-^=~<>']_[-^=~<>']\)?",
        rf"{_TAG}|<!--[^<>]*>",
        r"&(?i:amp|lt|gt|quot|apos|nbsp);|&#[0-9]+;",
        r"[?!]+|\*+|_+|#+|@+|--+|\.\.\.+|<<|>>|''",
    )
]
_PLAIN = re.compile("[A-Za-z]+")
# One token may hold a blank: a mixed number, a tag. It is written with a no-break space, as CoreNLP does.
_WITH_BLANK = re.compile(rf"(?<![\w.,:/-])[0-9]{{1,4}} [0-9]{{1,4}}[/⁄][0-9]{{1,4}}(?![0-9])|{_TAG}|<!--[^<>]*>")
_BEFORE_NUMBER = re.compile(rf"\b({_NUMBERED}\.) (?=[0-9])")


def ptb_tokenize(captions: Sequence[str]) -> list[list[str]]:
    """The lower-case tokens of each caption, as the COCO evaluation sees them.

    Args:
        captions: in any case and with any white space.
    Returns:
        one list a caption, without punctuation; empty where nothing is left.
    """
    found = []
    for caption in captions:
        line = " ".join(caption.replace("\xad", "").split())
        line = _BEFORE_NUMBER.sub(r"\1", _WITH_BLANK.sub(lambda match: match[0].replace(" ", "\xa0"), line))
        found.append([token for chunk in line.split(" ") for token in _tokens(chunk)])
    return found


@lru_cache(maxsize=1 << 16)
def _tokens(chunk: str) -> tuple[str, ...]:
    """Tokens of a text without blanks."""
    if _PLAIN.fullmatch(chunk) and chunk.lower() not in _SPLIT:
        return (chunk.lower(),)
    shapes, position, found = chunk.translate(_SHAPES), 0, []
    while position < len(chunk):
        if shapes[position] == " ":
            position += 1
            continue
        matches = [match for pattern in _PATTERNS if (match := pattern.match(shapes, position))]
        longest = max(matches, key=lambda match: match.end(), default=None)
        end = (longest.end(longest.lastindex or 0)) if longest else position + 1
        found += _written(chunk[position:end], shapes[position:end])
        position = end
    return tuple(token for token in found if token not in PUNCTUATION)


def _written(token: str, shape: str) -> tuple[str, ...]:
    """A token as CoreNLP writes it: lower case, ASCII apostrophes in contractions, brackets by name."""
    token = token.lower()
    if token in _SPLIT:
        return _SPLIT[token]
    if re.fullmatch(rf"{_SUFFIX}|n['’`]t", token):
        token = token.replace("’", "'")
    if not shape.strip('".') or (not shape.strip("-") and len(token) < 5):  # a longer dash is a ruled line
        return ()
    return (_WRITTEN.get(token, token).translate(_ROUND),)
