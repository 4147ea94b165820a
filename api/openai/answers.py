"""What /v1/chat/completions and /v1/completions answer, for the OpenAPI document; the frames write it."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from pocketllm.api.native.recall import RecalledOut

FinishReason = Literal["stop", "length"]


class _Exact(BaseModel):
    model_config = ConfigDict(extra="forbid")


class Usage(_Exact):
    """Number of tokens in the prompts and the answers."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


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
    refusal: None = None


class AnswerMessage(_Exact):
    """The answer."""

    role: Literal["assistant"]
    content: str
    refusal: None = None


class ChatChoice(_Exact):
    """One of `n` answers."""

    index: int
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: FinishReason


class TextLogprobs(_Exact):
    """The tokens in columns. The first token of a prompt given as token ids has no probability."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class TextChoice(_Exact):
    """One of `n` continuations of one of the prompts."""

    index: int
    text: str
    logprobs: TextLogprobs | None
    finish_reason: FinishReason


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


def documented(answer: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """A route's answers, for FastAPI: the whole one, or a stream of its parts."""
    about = "The answer; with `stream`, its chunks as server-sent events, then `[DONE]`"
    return {200: {"model": answer, "description": about, "content": {"text/event-stream": {}}}}
