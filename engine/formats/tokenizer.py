"""A model's tokenizer, without transformers if the result is the same: that takes seconds, and more memory."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import tokenizers
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pocketllm.engine.errors import BadRequest
from pocketllm.engine.formats.model_folder import ModelFolder

#: Tokenizer classes of transformers that add nothing to tokenizer.json.
_PLAIN_CLASSES = ("TokenizersBackend", "PreTrainedTokenizerFast")
#: Extensions of chat templates that only transformers renders.
_EXTENSIONS = re.compile(r"{%-?\s*generation|strftime_now")
_SPECIAL = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")


class LeanTokenizer:
    """The part of transformers' tokenizers that causal models need, with the same results."""

    def __init__(self, tokenizer: tokenizers.Tokenizer, special: dict[str, str], chat_template: str | None) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer, self._special, self.chat_template = tokenizer, special, chat_template

    @classmethod
    def open(cls, folder: Path) -> LeanTokenizer | None:
        """The tokenizer in an imported model's folder; None if it needs transformers."""
        try:
            settings = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            if settings.get("tokenizer_class") not in _PLAIN_CLASSES or settings.get("clean_up_tokenization_spaces"):
                return None
            template = folder / "chat_template.jinja"
            text = template.read_text(encoding="utf-8") if template.exists() else settings.get("chat_template")
            if text is not None and (not isinstance(text, str) or _EXTENSIONS.search(text)):
                return None
            tokenizer = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        except Exception:  # the parser is native code; transformers has the better error message
            return None
        given = {name: settings[name] for name in _SPECIAL if settings.get(name)}
        # A token may be in an object with its settings.
        special = {name: str(one["content"] if isinstance(one, dict) else one) for name, one in given.items()}
        return cls(tokenizer, special, text)

    def __len__(self) -> int:
        return self._tokenizer.get_vocab_size(with_added_tokens=True)

    def __call__(self, text: str | list[str], *, add_special_tokens: bool = True, **_options: Any) -> dict[str, Any]:
        """The text, or each of the texts, as tokens, under "input_ids"."""
        texts = [text] if isinstance(text, str) else text
        found = [list(one.ids) for one in self._tokenizer.encode_batch(texts, add_special_tokens=add_special_tokens)]
        return {"input_ids": found[0] if isinstance(text, str) else found}

    @property
    def eos_token(self) -> str | None:
        """The end token, if there is one."""
        return self._special.get("eos_token")

    @property
    def eos_token_id(self) -> int | None:
        """The end token's id, if there is an end token."""
        return None if self.eos_token is None else self._tokenizer.token_to_id(self.eos_token)

    def get_vocab(self) -> dict[str, int]:
        """All tokens with their ids."""
        return dict(self._tokenizer.get_vocab(with_added_tokens=True))

    def decode(self, token_ids: list[int], skip_special_tokens: bool = False) -> str:
        """The tokens as text."""
        return str(self._tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens))

    def apply_chat_template(
        self, messages: list[dict[str, str]], *, add_generation_prompt: bool = False, tokenize: Literal[False] = False
    ) -> str:
        """The chat as text. Raises TemplateError if the template refuses it."""
        assert self.chat_template is not None
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.filters["tojson"] = _to_json
        environment.globals["raise_exception"] = _refuse
        return environment.from_string(self.chat_template).render(
            messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **self._special
        )


def _to_json(value: Any, indent: int | None = None, **settings: Any) -> str:
    return json.dumps(value, indent=indent, **{"ensure_ascii": False, **settings})


def _refuse(message: str) -> None:
    raise TemplateError(message)


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    Tokenizer = PreTrainedTokenizerBase | LeanTokenizer
else:
    Tokenizer = Any


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """A model's tokenizer, stop tokens and context length."""

    tokenizer: Tokenizer
    stop_ids: frozenset[int]  #: the tokens that end a text
    context: int | None  #: most tokens of prompt and answer together; None: unknown


def name_plainly(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Name a plain class in an imported tokenizer's settings, if its own class adds nothing to tokenizer.json."""
    with suppress(Exception):  # it has no such file, or none that is read without transformers
        plain = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
        if tokenizer.backend_tokenizer.to_str() == plain.to_str():
            path = folder / "tokenizer_config.json"
            settings = json.loads(path.read_text(encoding="utf-8")) | {"tokenizer_class": _PLAIN_CLASSES[0]}
            path.write_text(json.dumps(settings, indent=2), encoding="utf-8")


def lean_tokenizer(model_folder: ModelFolder) -> Tokenizer:
    """The tokenizer, without transformers if possible. Raises ModelFileError."""
    lean = None if model_folder.manifest.is_mlm else LeanTokenizer.open(model_folder.path)
    return lean or model_folder.tokenizer()


def open_tokenizer(model_folder: ModelFolder) -> tuple[Tokenizer, Decoding]:
    """The tokenizer, without transformers if possible, and the parameters of decoding.

    Raises ModelFileError or BadRequest.
    """
    tokenizer, values = lean_tokenizer(model_folder), _settings(model_folder)
    if values is None:
        config = model_folder.config()
        values = getattr(config, "max_position_embeddings", None), config.eos_token_id
    context, end = values
    return tokenizer, Decoding(tokenizer=tokenizer, stop_ids=stop_ids_of(end, tokenizer), context=context)


def _settings(model_folder: ModelFolder) -> tuple[int | None, Any] | None:
    """The context length and the end token by config.json; None if it names them differently."""
    try:
        values = json.loads((model_folder.path / "config.json").read_bytes())
        return int(values["max_position_embeddings"]), values["eos_token_id"]
    except (OSError, ValueError, LookupError, TypeError):
        return None


def stop_ids_of(configured: int | Sequence[int] | None, tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens that end a text: the config's and the tokenizer's end tokens, and the one between training texts."""
    own = [configured] if configured is None or isinstance(configured, int) else configured
    stop_ids = {*own, tokenizer.eos_token_id, eos_id(tokenizer)}
    return frozenset(token for token in stop_ids if token is not None)


def start_ids(tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens that the tokenizer puts before every text, such as BOS; () where it puts none.

    A model that has learned with them is lost without: the first position takes up what attention has to spare.
    """
    text = "a"
    whole, plain = tokenizer(text)["input_ids"], tokenizer(text, add_special_tokens=False)["input_ids"]
    return tuple(whole[: next(at for at in range(len(whole)) if whole[at : at + len(plain)] == plain)])


def eos_id(tokenizer: Tokenizer) -> int:
    """The token between training texts: <|endoftext|> if there is one, else the tokenizer's end token."""
    token = tokenizer.get_vocab().get("<|endoftext|>", tokenizer.eos_token_id)
    if token is None:
        raise BadRequest("The model's tokenizer has no end token to separate texts with. Use another model.")
    return int(token)
