"""What a language model wants to read around the image's positions: its begin token, its chat template, its ends."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipcap.errors import ClipcapError
from clipcap.models.config import Template
from clipcap.models.language_model import token_embeddings, token_ids
from clipcap.runtime.text import one_line

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel
    from transformers import PreTrainedTokenizerBase as Tokenizer

REQUEST = "Describe this picture in one sentence."
_IMAGE, _CAPTION = "[[picture]]", "[[caption]]"  # where they stand in the rendered template


@dataclass(frozen=True)
class LmText:
    """Token ids around the image's positions, and those that end a caption besides the tokenizer's end-of-text."""

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    ends: tuple[int, ...] = ()


def lm_text(lm: PreTrainedModel, tokenizer: Tokenizer, template: Template) -> LmText:
    """The text around the image's positions in the input of a language model.

    Without a template that is the begin token alone, where the tokenizer sets one before every text (Llama, OPT; not
    GPT-2). Of the chat template the end of a turn comes first in `ends`.

    Raises:
        ClipcapError: the tokenizer has no chat template, or one that cannot be used.
    """
    vocabulary = token_embeddings(lm).num_embeddings  # a configuration may name the ends of another vocabulary
    ends = [end for end in _ends_of(lm) if end != tokenizer.eos_token_id and 0 <= end < vocabulary]
    if template == "none":
        first = token_ids(tokenizer, "a", special=True)[0]
        begins = tokenizer.bos_token_id is not None and first == tokenizer.bos_token_id
        return LmText((first,) if begins else (), (), tuple(ends))
    before, after, tail = _rendered(tokenizer)
    special = set(tokenizer.all_special_ids)
    turn = [token for token in token_ids(tokenizer, tail) if token in special][:1]
    all_ends = dict.fromkeys([*turn, *ends])
    return LmText(tuple(token_ids(tokenizer, before)), tuple(token_ids(tokenizer, after)), tuple(all_ends))


def _rendered(tokenizer: Tokenizer) -> tuple[str, str, str]:
    """(text before the image, between it and the caption, behind the caption) in the chat template."""
    if not tokenizer.chat_template:
        raise ClipcapError(
            f"--template chat: the tokenizer of {tokenizer.name_or_path} has no chat template: choose a language "
            f"model that was trained on instructions, or leave the flag out"
        )
    asked = [{"role": "user", "content": f"{_IMAGE}\n{REQUEST}"}]
    try:
        request: Any = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
        answered: Any = tokenizer.apply_chat_template(
            [*asked, {"role": "assistant", "content": _CAPTION}], tokenize=False
        )
        before, after = request.split(_IMAGE)
        tail = answered.split(_CAPTION)[1]
    except Exception as error:  # templates are programs of their own, and raise what they like
        raise ClipcapError(
            f"--template chat: the chat template of {tokenizer.name_or_path} cannot be used: {one_line(error)}"
        ) from error
    return before, after, tail


def _ends_of(lm: PreTrainedModel) -> list[int]:
    """The token ids at which the language model's own generation stops: one, a list, or none."""
    found = getattr(lm.generation_config, "eos_token_id", None)
    found = getattr(lm.config, "eos_token_id", None) if found is None else found
    several = found if isinstance(found, (list, tuple)) else [found]
    return [token for token in several if type(token) is int]


def end_captions_with(tokenizer: Tokenizer, token: int) -> None:
    """Let the tokenizer's end-of-text be this token, at which captions are then taught to end."""
    tokenizer.eos_token = str(tokenizer.convert_ids_to_tokens(token))
