"""Chats in the model's chat template, as prompts for generation and as training examples."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jinja2 import TemplateError

from pocketllm.engine.errors import BadRequest

if TYPE_CHECKING:
    from pocketllm.engine.formats.tokenizer import Tokenizer

Messages = Sequence[Mapping[str, Any]]


def chat_prompt(tokenizer: "Tokenizer", messages: Messages) -> str:
    """The prompt that an answer to these messages continues, with the template's special tokens.

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
    """Yield (prompt, answer) for each of the assistant's messages; an answer includes the end of its turn.

    A message whose `weight` is 0 is context only, as in OpenAI's format. If the model has no template, or its template
    refuses the messages, each message is written after its role, so that one chat does not fail the whole job.
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
    """Whether a message is a target: the assistant's, not empty, and not of weight 0."""
    return message["role"] == "assistant" and bool(message["content"]) and message.get("weight") != 0


def _answer(tokenizer: "Tokenizer", prompt: str, messages: Messages) -> str:
    """The last message as it follows the prompt, up to the end of its turn."""
    whole = _rendered(tokenizer, messages, answer_follows=False)
    if whole.startswith(prompt):
        return whole[len(prompt) :].rstrip()
    # Some templates render an assistant's past messages differently from its next one.
    return str(messages[-1]["content"]) + str(getattr(tokenizer, "eos_token", None) or "")


def _rendered(tokenizer: "Tokenizer", messages: Messages, *, answer_follows: bool) -> str:
    known = [{"role": one["role"], "content": one["content"]} for one in messages]
    text = tokenizer.apply_chat_template(known, add_generation_prompt=answer_follows, tokenize=False)
    assert isinstance(text, str)
    return text
