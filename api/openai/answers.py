"""What /v1/chat/completions and /v1/completions answer, whole or in the chunks of a stream."""

import secrets
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, Literal, Self

from pydantic import BaseModel, Field

from pocketllm.api.native.recall import RecalledOut
from pocketllm.api.openai.schemas import Function

FinishReason = Literal["stop", "length"]
#: What the generator says of an answer.
Summary = dict[str, Any]


class _Exact(BaseModel, extra="forbid"):
    pass


class Usage(_Exact):
    """Number of tokens in the prompts and the answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, answers: Sequence[Summary]) -> Self:
        """The sum over all answers."""
        prompt, completion = (sum(one[f"{part}_tokens"] for one in answers) for part in ("prompt", "completion"))
        return cls(prompt_tokens=prompt, completion_tokens=completion, total_tokens=prompt + completion)


class ScoredToken(_Exact):
    """A token and the natural logarithm of its probability."""

    token: str
    logprob: float
    bytes: list[int]


class AnswerToken(ScoredToken):
    """A token of the answer, with the likeliest alternatives."""

    top_logprobs: list[ScoredToken]


class ChatLogprobs(_Exact):
    """The answer's tokens."""

    content: list[AnswerToken]
    refusal: None


class AnswerMessage(_Exact):
    """The answer."""

    role: Literal["assistant"]
    content: str | None = Field(description="Null where a function is called.")
    refusal: None
    tool_calls: list[dict[str, Any]] | None = Field(None, description="The call of a function that had to be called.")


class ChatChoice(_Exact):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal[FinishReason, "tool_calls"]

    @classmethod
    def of(cls, index: int, answer: Summary, function: Function | None) -> Self:
        """From an answer, which may have scored tokens. function: see `as_call`."""

        def token(text: str, logprob: float) -> dict[str, Any]:
            return {"token": text, "logprob": logprob, "bytes": list(text.encode())}

        content = answer["scored"] and [
            token(one["token"], one["logprob"]) | {"top_logprobs": [token(*pair) for pair in one["likeliest"]]}
            for one in answer["scored"]
        ]
        choice = {
            "index": index,
            "message": {"role": "assistant", "content": answer["text"], "refusal": None},
            "logprobs": None if content is None else {"content": content, "refusal": None},
            "finish_reason": answer["finish_reason"],
        }
        return cls.model_validate(as_call(choice, function))


class TextLogprobs(_Exact):
    """The tokens in columns. The first token of a prompt given as token ids has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]

    @classmethod
    def of(cls, scored: Sequence[dict[str, Any]]) -> Self:
        """From an answer's scored tokens."""
        tokens = [one["token"] for one in scored]
        return cls(
            tokens=tokens,
            token_logprobs=[one["logprob"] for one in scored],
            top_logprobs=[None if one["logprob"] is None else _by_token(one["likeliest"]) for one in scored],
            text_offset=[0, *accumulate(map(len, tokens[:-1]))] if tokens else [],
        )


class TextChoice(_Exact):
    """One of `n` continuations of one of the prompts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason

    @classmethod
    def of(cls, index: int, answer: Summary) -> Self:
        """From an answer, which may have scored tokens."""
        logprobs = None if answer["scored"] is None else TextLogprobs.of(answer["scored"])
        return cls(index=index, text=answer["text"], logprobs=logprobs, finish_reason=answer["finish_reason"])


class _Answer(_Exact):
    id: str
    created: int = Field(description="Seconds since 1970.")
    model: str
    system_fingerprint: str = Field(description="The base model, and the adapter or `base`.")
    usage: Usage
    warnings: list[str] | None = Field(None, description="Parameters that were ignored.")


class ChatAnswer(_Answer):
    """The answer to a chat. In a stream, chunks have `delta` instead of `message`."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]
    recalled: list[RecalledOut] | None = Field(
        None, description="With `context`: see POST /generate. In a stream, only the first chunk has it."
    )


class TextAnswer(_Answer):
    """The continuation of texts."""

    object: Literal["text_completion"]
    choices: list[TextChoice]


def part(
    is_chat: bool, index: int, text: str, finish_reason: FinishReason | None = None, **more: str
) -> dict[str, Any]:
    """A choice in a chunk: some more text, or why it ends. more: what a chat's delta says beside its content."""
    said: dict[str, Any] = {"text": text}
    if is_chat:
        said = {"delta": more if finish_reason else more | {"content": text}}
    return {"index": index, **said, "logprobs": None, "finish_reason": finish_reason}


def as_call(choice: dict[str, Any], function: Function | None) -> dict[str, Any]:
    """A chat's choice, whole or in a chunk, with its text as the arguments of a call, if a function is to be called."""
    said = choice.get("message", choice.get("delta", {}))
    if function and "content" in said:
        opening = {"id": f"call_{secrets.token_hex(12)}", "type": "function"} if "role" in said else {}
        called = ({"name": function.name} if opening else {}) | {"arguments": said["content"]}
        said |= {"content": None, "tool_calls": [{"index": 0, **opening, "function": called}]}
    if function and choice["finish_reason"] == "stop":
        choice["finish_reason"] = "tool_calls"
    return choice


def _by_token(pairs: Sequence[tuple[str, float]]) -> dict[str, float]:
    """Of tokens that look the same (bytes that are no character alone) the likeliest, which comes first."""
    found: dict[str, float] = {}
    for token, logprob in pairs:
        found.setdefault(token, logprob)
    return found
