"""A model's tokenizer and where its texts end, read with transformers or, where that gives the same, without."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pocketllm.engine.formats.model_folder import NativeModel
from pocketllm.engine.generate.lean_tokenizer import LeanTokenizer
from pocketllm.engine.generate.streaming_text import Lexicon, end_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizer = PreTrainedTokenizerBase | LeanTokenizer
else:
    Tokenizer = Any


def open_lexicon(native: NativeModel, *, lean: bool) -> tuple[Tokenizer, Lexicon]:
    """The tokenizer, and what it takes to make text of tokens. Raises ModelFileError or BadRequest.

    lean: without transformers, if that can be.
    """
    tokenizer = LeanTokenizer.open(native.folder) if lean else None
    values = _settings(native) if tokenizer else None
    if tokenizer is None or values is None:
        with_transformers, config = native.tokenizer(), native.config()
        context = getattr(config, "max_position_embeddings", None)
        ends = end_tokens(config.eos_token_id, with_transformers)
        return with_transformers, Lexicon(tokenizer=with_transformers, ends=ends, context=context)
    context, end = values
    return tokenizer, Lexicon(tokenizer=tokenizer, ends=end_tokens(end, tokenizer), context=context)


def _settings(native: NativeModel) -> tuple[int, Any] | None:
    """The context and the end token as config.json names them; None where it has other names for them."""
    try:
        values = json.loads((native.folder / "config.json").read_bytes())
        return int(values["max_position_embeddings"]), values["eos_token_id"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
