"""Make the table of common words for the 1000 ImageNet classes again, from WordNet 3.0 and BERT's word pieces.

python -m clipcap.text_to_image.word_table --wordnet dict --synsets synsets.txt --vocab vocab.txt --out TABLE

Classes come in order; a class gets the first lemma that is one whole word piece and not yet taken, else one of its
hypernyms', and up. Relations go in the order of WordNet's files, so that the table does not change from run to run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from clipcap.errors import ClipcapError
from clipcap.options import FlagParser
from clipcap.text_to_image.words import IMAGENET_TABLE

_HYPERNYM, _HYPONYM = "@", "~"  # of kinds; those of single persons and places are others


class Synset(NamedTuple):
    """A noun of WordNet: its lemmas, and the offsets of what lies above and below it."""

    lemmas: tuple[str, ...]
    hypernyms: tuple[int, ...]
    hyponyms: tuple[int, ...]


class WordNet:
    """The nouns of WordNet's database files (wndb(5WN))."""

    def __init__(self, folder: Path):
        data = (folder / "data.noun").read_text(encoding="latin-1").splitlines()
        self.notice = "\n".join(line.strip().partition(" ")[2].strip() for line in data if line.startswith("  "))
        self.synsets = dict(_synset(line) for line in data if not line.startswith("  "))
        lines = (folder / "index.noun").read_text(encoding="latin-1").splitlines()
        self.senses = dict(_senses(line) for line in lines if not line.startswith("  "))

    def common_word(self, offset: int, taken: set[str], pieces: set[str]) -> tuple[str, int] | None:
        """(word, offset of the synset that has it), climbing from a class; None at the top."""
        place: int | None = offset
        while place is not None:
            for lemma in self.synsets[place].lemmas:
                word = lemma.lower().replace("_", " ")
                if word in pieces and word not in taken:
                    return word, place
            place = next(iter(self.synsets[place].hypernyms), None)
        return None

    def sense_class(self, word: str, classes: dict[int, int]) -> int | None:
        """The class of the first sense that is one, else of what lies just above or below the senses."""
        senses = self.senses.get(word.replace(" ", "_"), ())
        near = [other for s in senses for other in (*self.synsets[s].hypernyms, *self.synsets[s].hyponyms)]
        return next((classes[offset] for offset in (*senses, *near) if offset in classes), None)

    def below(self, offset: int) -> Iterator[int]:
        """The synset and all below it."""
        seen, pending = set(), [offset]
        while pending:
            place = pending.pop()
            if place not in seen:
                seen.add(place)
                yield place
                pending += self.synsets[place].hyponyms


def _synset(line: str) -> tuple[int, Synset]:
    fields = line.split(" | ")[0].split()
    count = int(fields[3], 16)
    lemmas = tuple(fields[4 : 4 + 2 * count : 2])
    pointers = fields[5 + 2 * count :]
    nouns = [(pointers[i], int(pointers[i + 1])) for i in range(0, len(pointers) - 3, 4) if pointers[i + 2] == "n"]
    above = tuple(offset for symbol, offset in nouns if symbol == _HYPERNYM)
    return int(fields[0]), Synset(lemmas, above, tuple(offset for symbol, offset in nouns if symbol == _HYPONYM))


def _senses(line: str) -> tuple[str, tuple[int, ...]]:
    fields = line.split()
    return fields[0], tuple(int(offset) for offset in fields[-int(fields[2]) :])


def make_table(wordnet: WordNet, synsets: Sequence[int], pieces: set[str]) -> dict:
    """The table: `classes` [1000] of names, and for each word its class, its sense's class, and the classes below."""
    classes = {offset: number for number, offset in enumerate(synsets)}
    words: dict[str, dict] = {}
    for number, offset in enumerate(synsets):
        found = wordnet.common_word(offset, set(words), pieces)
        if found:
            word, place = found
            under = sorted(classes[other] for other in wordnet.below(place) if other in classes)
            words[word] = {"class": number, "sense": wordnet.sense_class(word, classes), "under": under}
    names = [wordnet.synsets[offset].lemmas[0].replace("_", " ") for offset in synsets]
    return {"notice": wordnet.notice, "classes": names, "words": words}


def main(argv: Sequence[str] | None = None) -> None:
    """Write the table from the command line."""
    parser = FlagParser(prog="python -m clipcap.text_to_image.word_table", description="Make the word table again.")
    parser.add_argument("--wordnet", type=Path, required=True, help="folder of data.noun and index.noun, WordNet 3.0")
    parser.add_argument(
        "--synsets", type=Path, required=True, help="the 1000 classes in order, as n01440764, one a line"
    )
    parser.add_argument("--vocab", type=Path, required=True, help="vocab.txt of bert-base-uncased")
    parser.add_argument("--out", type=Path, default=IMAGENET_TABLE, help="the table (default: the bundled one)")
    args = parser.parse_args(argv)
    try:
        synsets = [int(line.lstrip("n")) for line in args.synsets.read_text(encoding="utf-8").split()]
        pieces = set(args.vocab.read_text(encoding="utf-8").splitlines())
        table = make_table(WordNet(args.wordnet), synsets, pieces)
    except (OSError, ValueError, KeyError, IndexError) as error:
        sys.exit(str(ClipcapError(f"the table cannot be made: {error}")))
    lines = [f"  {json.dumps(word)}: {json.dumps(entry)}" for word, entry in table["words"].items()]
    text = f'{{"notice": {json.dumps(table["notice"])},\n "classes": {json.dumps(table["classes"])},\n "words": {{\n'
    args.out.write_text(text + ",\n".join(lines) + "\n }\n}\n", encoding="utf-8")
    print(f"{len(table['words'])} words: {args.out}")


if __name__ == "__main__":
    main()
