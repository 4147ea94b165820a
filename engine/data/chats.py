"""Chats in a model's own template: the prompt that an assistant's message answers, and the message as it is learned."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from pocketllm.engine.errors import BadRequest

if TYPE_CHECKING:
    from pocketllm.engine.generate.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


def chat_prompt(tokenizer: "Tokenizer", messages: Messages) -> str:
    """What an answer to these messages continues: text with the template's special tokens in it.

    Raises BadRequest for a model without a chat template, or messages that its template refuses.
    """
    if not messages:
        raise BadRequest("There are no messages. Send at least one.")
    if not tokenizer.chat_template:
        raise BadRequest("This model has no chat template. Send `prompt` in place of `messages`.")
    try:
        return _rendered(tokenizer, messages, answer_follows=True)
    except TemplateError as error:
        raise BadRequest(f"The model's chat template refuses these messages: {error}") from error


def turns(tokenizer: "Tokenizer", messages: Messages) -> Iterator[tuple[str, str]]:
    """What there is to learn of a chat: each of the assistant's messages behind its prompt, up to what ends a turn.

    A message of the assistant's whose `weight` is 0 is only read, as OpenAI has it. Where the model has no template,
    or its template refuses the messages, the roles are written before them: a chat that one model cannot take shall
    not keep it from learning everything else.
    """
    for i, message in enumerate(messages):
        if is_learned(message):
            try:
                prompt = chat_prompt(tokenizer, messages[:i])
                yield prompt, _answer(tokenizer, prompt, messages[: i + 1])
            except (BadRequest, TemplateError):
                lines = [f"{one['role']}: {one['content']}\n" for one in messages[:i]]
                yield "".join(lines) + f"{message['role']}:", f" {message['content']}\n"


def is_learned(message: Mapping[str, Any]) -> bool:
    """Whether a message is one to learn: the assistant's, with something in it, unless its weight is 0."""
    return message["role"] == "assistant" and bool(message["content"]) and message.get("weight") != 0


def _answer(tokenizer: "Tokenizer", prompt: str, messages: Messages) -> str:
    """The last message with what ends it, as it stands behind the prompt. What only leads to the next turn is left
    out: nobody generates it.
    """
    whole = _rendered(tokenizer, messages, answer_follows=False)
    if whole.startswith(prompt):
        return whole[len(prompt) :].rstrip()
    # Some templates write an assistant's past messages differently from the one to come.
    return str(messages[-1]["content"]) + str(getattr(tokenizer, "eos_token", None) or "")


def _rendered(tokenizer: "Tokenizer", messages: Messages, *, answer_follows: bool) -> str:
    known = [{"role": one["role"], "content": one["content"]} for one in messages]
    text = tokenizer.apply_chat_template(known, add_generation_prompt=answer_follows, tokenize=False)
    assert isinstance(text, str)
    return text
