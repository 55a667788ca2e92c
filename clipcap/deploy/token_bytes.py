"""The bytes of each token, so that a program without a tokenizer can write a caption."""

from __future__ import annotations

import json
import random
import re
from typing import Any

from transformers import PreTrainedTokenizerBase as Tokenizer

from clipcap.errors import ClipcapError

TRIES = 200  # random captions on which the table is compared with the tokenizer


def token_bytes(tokenizer: Tokenizer, size: int) -> list[bytes]:
    """The bytes of token ids 0 to `size` - 1, whose concatenation is a caption in UTF-8.

    Raises:
        ClipcapError: the tokenizer joins tokens in another way.
    """
    names = [str(name or "") for name in tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))]
    whole = {number: token.content.encode() for number, token in tokenizer.added_tokens_decoder.items()}
    characters = _byte_characters() if "ByteLevel" in _decoder(tokenizer) else None
    table = [whole.get(number, _bytes(name, characters)) for number, name in enumerate(names)]
    table += [b""] * (size - len(table))  # rows of the language model that no token has
    _check(tokenizer, table, len(names))
    return table


def _decoder(tokenizer: Tokenizer) -> str:
    """The tokenizer's own description of how it decodes."""
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    return "" if backend is None else json.dumps(json.loads(backend.to_str())["decoder"])


def _bytes(name: str, characters: dict[str, int] | None) -> bytes:
    if characters is not None and all(c in characters for c in name):
        return bytes(characters[c] for c in name)
    if byte := re.fullmatch(r"<0x([0-9A-Fa-f]{2})>", name):
        return bytes([int(byte[1], 16)])
    return name.replace("\u2581", " ").encode()


def _byte_characters() -> dict[str, int]:
    """The characters that byte-level tokenizers write bytes as: those that print are themselves."""
    printed = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printed]
    return {chr(b): b for b in printed} | {chr(256 + n): b for n, b in enumerate(others)}


def _check(tokenizer: Tokenizer, table: list[bytes], tokens: int) -> None:
    """Compare the table with the tokenizer on random captions; blanks at the ends do not count."""
    chosen = random.Random(0)
    for _ in range(TRIES):
        ids = [chosen.randrange(tokens) for _ in range(12)]
        own = str(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
        if own.strip() != b"".join(table[number] for number in ids).decode("utf-8", "replace").strip():
            raise ClipcapError(
                "the checkpoint's tokenizer joins tokens in a way that an export cannot describe: choose a "
                "language model with a byte-level or SentencePiece tokenizer"
            )
