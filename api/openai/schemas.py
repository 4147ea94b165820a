"""Requests of OpenAI's clients, and lists as they expect them.

Every valid request is accepted; parameters that do not apply here are ignored and named in `warnings`.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, Field

from pocketllm.api.native.generate import StopStrings
from pocketllm.api.native.schemas import Identified
from pocketllm.daemon.documents import Body
from pocketllm.storage.errors import NotFound

#: OpenAI's own for the older route; a chat's is ours, since theirs is "until the model ends".
_TEXT_TOKENS, _CHAT_TOKENS = 16, 512
_MAX_TOKENS, _MAX_CHOICES, _MAX_PROMPTS, _MAX_PROMPT_TOKENS, _MAX_ALTERNATIVES = 8192, 16, 64, 100_000, 20
#: No tokenizer has more.
Token = Annotated[int, Field(strict=True, ge=0, lt=2**31)]
_Tokens = Annotated[list[Token], Field(fail_fast=True, min_length=1, max_length=_MAX_PROMPT_TOKENS)]
_Prompts = Annotated[list[str], Field(fail_fast=True, min_length=1, max_length=_MAX_PROMPTS)]
_TokenPrompts = Annotated[list[_Tokens], Field(fail_fast=True, min_length=1, max_length=_MAX_PROMPTS)]
#: Seeds are any integer there.
_SEEDS = 2**31
#: Fields that would change no answer there either.
_HARMLESS = frozenset({"user", "metadata", "store", "safety_identifier", "prompt_cache_key"})


class Part(Body, extra="allow"):
    """A part of a message. Only text is supported."""

    type: str
    text: str = ""


class Function(Body, extra="allow"):
    """A function that can be called, or a call of it."""

    name: str
    parameters: dict[str, Any] = Field({"type": "object"}, description="The JSON schema of its arguments.")
    arguments: str = Field("", description="Of a call, as JSON.")


class Tool(Body, extra="allow"):
    """A tool, or a call of one. Only functions are supported."""

    function: Function | None = None


class ChatMessage(Body, extra="allow"):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | Annotated[list[Part], Field(fail_fast=True, max_length=1000)] | None = None
    tool_calls: list[Tool] | None = None

    def plain(self) -> dict[str, str]:
        """As chat templates know it: a developer is the system, a call is its arguments, a tool's answer the user's."""
        role = {"developer": "system", "tool": "user", "function": "user"}.get(self.role, self.role)
        content = self.content or "".join(call.function.arguments for call in self.tool_calls or () if call.function)
        return {"role": role, "content": content if isinstance(content, str) else "".join(p.text for p in content)}


class StreamOptions(Body, extra="allow"):
    """Options of a stream."""

    include_usage: bool | None = None


class JSONSchema(Body, extra="allow"):
    """A JSON schema, wrapped as OpenAI's clients send it."""

    of: dict[str, Any] = Field(alias="schema")


class ResponseFormat(Body, extra="allow"):
    """The format of an answer: text, or JSON, which requires llama.cpp."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JSONSchema | None = None

    @property
    def schema_wanted(self) -> dict[str, Any] | None:
        """The schema that the answer is to follow."""
        if self.json_schema is not None:
            return self.json_schema.of
        return None if self.type == "text" else {"type": "object"}


class SharedRequest(Body, extra="allow"):
    """What both kinds of request have in common."""

    model: str = Field(description="`pocketllm:latest`, `pocketllm:base`, or an id from GET /v1/models.")
    temperature: float | None = Field(None, ge=0, le=5)
    top_p: float | None = Field(None, gt=0, le=1)
    stop: StopStrings | None = None
    seed: int | None = None
    n: int | None = Field(None, ge=1, le=_MAX_CHOICES)
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = Field(
        None, description="JSON: any object, or one that follows a schema. 400 if llama.cpp is not available."
    )

    @property
    def usage_wanted(self) -> bool:
        """Whether a stream is to end with what it took."""
        return bool(self.stream_options and self.stream_options.include_usage)

    def seeds(self, first: int) -> Iterator[int]:
        """A seed for each choice."""
        return ((first + number) % _SEEDS for number in range(self.n or 1))

    def unsupported(self) -> str | None:
        """A parameter that asks for what the model cannot do, and whose answer without it would be wrong."""
        given = self.model_extra or {}
        return next(
            (name for name, allowed in _OTHER_ANSWERS.items() if given.get(name) and given[name] not in allowed), None
        )

    @property
    def warnings(self) -> list[str]:
        """What was sent and means nothing here."""
        given = (self.model_extra or {}).items()
        # Zero, false and empty are what these are where they are not sent.
        ignored = sorted(name for name, value in given if value and name not in _HARMLESS)
        return [f"{name} is ignored" for name in ignored]


#: Parameters that ask for another kind of answer than text, unless they have one of these values.
_OTHER_ANSWERS: dict[str, tuple[Any, ...]] = {
    "tools": (),
    "functions": (),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "modalities": (["text"],),
    "audio": (),
}


class ChatRequest(SharedRequest):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(fail_fast=True, min_length=1, max_length=1000)
    logprobs: bool | None = Field(None, description="Score the answer's tokens. Ignored in a stream.")
    top_logprobs: int | None = Field(None, ge=0, le=_MAX_ALTERNATIVES)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    context: Literal["recall"] | None = Field(None, description="See POST /generate.")
    tools: list[Tool] | None = Field(None, description="One function, which `tool_choice` forces; requires llama.cpp.")
    tool_choice: str | Annotated[dict[str, Any], Field(min_length=1)] | None = None

    @property
    def forced(self) -> Function | None:
        """The one function that the answer must call."""
        one = self.tools[0].function if self.tools and len(self.tools) == 1 else None
        named = one and {"type": "function", "function": {"name": one.name}}
        return one if self.tool_choice in ("required", named) else None

    def unsupported(self) -> str | None:
        """See SharedRequest; also tools that are not forced, and a message with another part than text."""
        if self.forced is None and (self.tools or self.tool_choice not in (None, "none", "auto")):
            return "tools" if self.tools else "tool_choice"
        for place, message in enumerate(self.messages):
            if isinstance(message.content, list) and any(part.type != "text" for part in message.content):
                return f"messages.{place}.content"
        return super().unsupported()

    @property
    def most_tokens(self) -> int:
        """The longest answer."""
        return min(self.max_completion_tokens or self.max_tokens or _CHAT_TOKENS, _MAX_TOKENS)

    @property
    def alternatives(self) -> int | None:
        """How many tokens to score beside each; None where none is scored."""
        return (self.top_logprobs or 0) if self.logprobs else None


class CompletionRequest(SharedRequest):
    """POST /v1/completions."""

    prompt: str | _Prompts | _Tokens | _TokenPrompts = Field(
        "", description="A text, or token ids, which are used as they are; or a list of either."
    )
    max_tokens: int | None = Field(None, ge=0)
    echo: bool | None = Field(None, description="Begin the answer with the prompt; with logprobs, score it too.")
    logprobs: int | None = Field(
        None,
        ge=0,
        le=_MAX_ALTERNATIVES,
        description="Score each token and this many of the likeliest alternatives. Ignored in a stream.",
    )

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """Each prompt as a GenerationRequest takes it."""
        prompt = self.prompt
        if isinstance(prompt, str):
            return [_text(prompt)]
        several: list[Any] = [prompt] if isinstance(prompt[0], int) else prompt
        return [_text(one) if isinstance(one, str) else {"tokens": one} for one in several]

    @property
    def most_tokens(self) -> int:
        """The longest answer; none at all is for who wants the prompt scored."""
        return min(_TEXT_TOKENS if self.max_tokens is None else self.max_tokens, _MAX_TOKENS)

    @property
    def alternatives(self) -> int | None:
        """See ChatRequest."""
        return self.logprobs


def _text(prompt: str) -> dict[str, Any]:
    """Just these words, as whoever counts tokens expects, without what separates texts in training."""
    return {"prompt": prompt, "begins_text": False}


class Deleted(BaseModel):
    """A deleted file or model."""

    id: str
    object: Literal["file", "model"]
    deleted: bool = True


Item = TypeVar("Item", bound=Identified)


class Listing(BaseModel, Generic[Item]):
    """One page of a list."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str | None
    last_id: str | None
    has_more: bool

    @classmethod
    def of(cls, items: Sequence[Item], *, has_more: bool) -> "Listing[Item]":
        """From what is in it."""
        first, last = (items[0].id, items[-1].id) if items else (None, None)
        return cls(data=list(items), first_id=first, last_id=last, has_more=has_more)


def page_of(items: Sequence[Item], *, after: str | None, limit: int) -> Listing[Item]:
    """A part of a whole list, from behind the item `after`. Raises NotFound where there is none with that id."""
    ids = [item.id for item in items]
    if after is not None and after not in ids:
        raise NotFound(f"There is no {after!r} in this list. Try again without `after`.")
    start = 0 if after is None else ids.index(after) + 1
    return Listing.of(items[start : start + limit], has_more=start + limit < len(items))
