"""The tokenizer of a GPT-2 by the tokenizers package alone: to decode with, without transformers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

FILE, CONFIG, SPECIAL = "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"
CLASSES = (None, "GPT2Tokenizer", "GPT2TokenizerFast", "PreTrainedTokenizerFast", "TokenizersBackend")
# Entries of its configuration that change no token and no text.
HARMLESS = {
    "backend", "bos_token", "clean_up_tokenization_spaces", "eos_token", "is_local", "local_files_only",
    "model_max_length", "name_or_path", "tokenizer_class", "unk_token",
}  # fmt: skip
NAMED = ("bos_token", "eos_token", "unk_token")  # those of its entries that are tokens
END = "<|endoftext|>"  # where a configuration of GPT-2's own class names none
GENERAL = ("PreTrainedTokenizerFast", "TokenizersBackend")  # classes that have no token by default


class GPT2Tokenizer:
    """Of what transformers' tokenizers do that which decoding asks for.

    Args:
        tokenizer: of the package.
        end: the end-of-text token, one of the vocabulary.
    """

    sep_token_id = None

    def __init__(self, tokenizer: Tokenizer, end: str):
        self.tokenizer = tokenizer
        self.eos_token = end
        self.eos_token_id = tokenizer.token_to_id(end)

    def __len__(self) -> int:
        return self.tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        """A text → its tokens, `input_ids`."""
        return {"input_ids": self.tokenizer.encode(text, add_special_tokens=add_special_tokens).ids}

    def decode(self, token_ids: Sequence[int], clean_up_tokenization_spaces: bool = False) -> str:
        """Tokens → their text, as it is."""
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False)


def load_gpt2_tokenizer(folder: Path) -> GPT2Tokenizer | None:
    """The tokenizer of a folder; None where it has to be left to transformers, which says what is wrong."""
    if not (folder / CONFIG).is_file() or not (folder / FILE).is_file():  # may be pipes, which are waited for
        return None
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        known = isinstance(config, dict) and set(config) <= HARMLESS and config.get("tokenizer_class") in CLASSES
        if not known or (folder / SPECIAL).exists() or (folder / "added_tokens.json").exists():
            return None
        tokenizer = Tokenizer.from_file(str(folder / FILE))
    except Exception:  # the package raises nothing more special
        return None
    tokenizer.no_truncation()  # as transformers, which cuts and fills texts only when it is asked to
    tokenizer.no_padding()
    end = config.get("eos_token", None if config.get("tokenizer_class") in GENERAL else END)
    named = [end, *(config[name] for name in NAMED if config.get(name) is not None)]
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    if not all(isinstance(token, str) and token in added for token in named) or tokenizer.get_vocab_size() < 2:
        return None  # transformers adds a token that is named and not there
    return GPT2Tokenizer(tokenizer, end) if _is_of_gpt2(tokenizer) else None


def _is_of_gpt2(tokenizer: Tokenizer) -> bool:
    """Whether texts become tokens by GPT-2's steps alone: transformers' class of it ignores any others."""
    before, model = tokenizer.pre_tokenizer, tokenizer.model
    if not isinstance(before, pre_tokenizers.ByteLevel) or not isinstance(model, models.BPE):
        return False
    further = (
        tokenizer.normalizer, before.add_prefix_space, not before.use_regex, model.dropout, model.unk_token,
        model.continuing_subword_prefix, model.end_of_word_suffix, model.byte_fallback, model.ignore_merges,
    )  # fmt: skip
    return isinstance(tokenizer.decoder, decoders.ByteLevel) and not any(further)
