"""/generate: text from the personal model, from a named adapter, or from the base."""

import secrets
from collections.abc import AsyncGenerator
from contextlib import aclosing
from math import inf
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import MAX_SEED, JSONRoute
from pocketllm.api.dependencies import SERVING, ServicesDep, app_of, needs, resolve_adapter
from pocketllm.api.errors import problem_of
from pocketllm.api.native.recall import RecalledOut, before_question, described, front, recall
from pocketllm.api.responses import PrettyJSONResponse, server_sent_event
from pocketllm.daemon.documents import Body
from pocketllm.daemon.errors import DaemonError
from pocketllm.daemon.generation.generator import Event, GenerationRequest
from pocketllm.daemon.services import Services
from pocketllm.storage.repositories.passages import Passage

router = APIRouter(tags=["generate"], route_class=JSONRoute)

_StopString = Annotated[str, Field(min_length=1, max_length=256)]
_StopStrings = Annotated[list[_StopString], Field(fail_fast=True, max_length=16)]
#: Strings at which to stop, which are looked for after each token; one may stand alone.
StopStrings = Annotated[
    _StopStrings,
    BeforeValidator(
        lambda given: [given] if isinstance(given, str) else given, json_schema_input_type=_StopString | _StopStrings
    ),
]


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "user", "assistant"]
    content: str


class GenerateIn(Body):
    """A `prompt` to continue or chat `messages` to answer, and how to generate."""

    model_config = ConfigDict(
        json_schema_extra={
            "example": {"prompt": "Wind west,", "max_tokens": 60, "seed": 1},
            # Neither, or both. Generators of clients understand no `oneOf` beside properties.
            "not": {
                "anyOf": [
                    {"properties": {"prompt": {"type": "null"}, "messages": {"type": "null"}}},
                    {
                        "required": ["prompt", "messages"],
                        "properties": {"prompt": {"type": "string"}, "messages": {"type": "array"}},
                    },
                ]
            },
        }
    )

    prompt: str | None = Field(None, min_length=1)
    messages: list[Message] | None = Field(None, fail_fast=True, min_length=1, max_length=1000)
    context: Literal["recall"] | None = Field(
        None,
        description="`recall` puts matching passages from your texts before the prompt, or into a chat's last message. "
        "Requires the scope `recall`.",
    )
    adapter: str = Field(SERVING, description="'serving', 'base', or an adapter's id.")
    temperature: float = Field(0.7, ge=0, le=5, description="0 always takes the likeliest token.")
    top_p: float = Field(0.95, gt=0, le=1)
    max_tokens: int = Field(128, ge=1, le=8192)
    stop: StopStrings | None = None
    seed: int | None = Field(None, ge=0, le=MAX_SEED, description="The same seed gives the same text.")
    keep_alive: float | None = Field(
        None,
        description="Seconds that the model stays in memory afterwards. 0 unloads it within 15 s, a negative number "
        "never. Default: the setting keep_alive_seconds, which is also the maximum for apps.",
    )

    stream: bool = Field(False, description="Stream the text as server-sent events.")

    @model_validator(mode="after")
    def _prompt_or_messages(self) -> Self:
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("send either prompt or messages")
        return self


def seconds_of(keep_alive: float | None) -> float | None:
    """The duration that a request asks for; infinite where that is negative."""
    return inf if keep_alive is not None and keep_alive < 0 else keep_alive


class GenerateOut(BaseModel):
    """The answer and how it was made."""

    text: str
    model: str
    adapter: str | None
    finish_reason: Literal["stop", "length"]
    prompt_tokens: int
    completion_tokens: int
    tokens_per_second: float | None
    seed: int
    recalled: list[RecalledOut] = Field(description="With `context`: the passages read before the prompt, best first.")


@router.post(
    "/generate",
    response_model=GenerateOut,
    responses={200: {"content": {"text/event-stream": {}}}},
    openapi_extra=needs("generate"),
)
async def generate(request: Request, body: GenerateIn, services: ServicesDep) -> Response:
    """Generate text. With `stream`, send `token` events ({"text"}), then `done` (the whole answer) or `error`."""
    generation, about = await asked(request, services, body)
    if not body.stream:
        summary = await services.generator.ask(generation, is_gone=request.is_disconnected)
        return PrettyJSONResponse(GenerateOut(**summary, **about).model_dump())
    events = services.generator.generate(generation)
    # The first event decides whether there is an answer at all, and so the status.
    first = await anext(events)
    return StreamingResponse(_stream(first, events, about), media_type="text/event-stream")


async def asked(request: Request, services: Services, body: GenerateIn) -> tuple[GenerationRequest, dict[str, Any]]:
    """What the generator is to do, and what the answer says of how it was made."""
    adapter, folder = await run_in_threadpool(resolve_adapter, services, body.adapter)
    seed = secrets.randbits(31) if body.seed is None else body.seed
    messages = [message.model_dump() for message in body.messages] if body.messages else None
    prompt, passages = body.prompt, list[Passage]()
    if body.context:
        asked_for = messages[-1]["content"] if messages else prompt or ""
        passages = await run_in_threadpool(recall, request, services, asked_for)
        prompt = None if prompt is None else front([one.words for one in passages]) + prompt
        messages = None if messages is None else before_question(passages, messages)
    keep_alive = seconds_of(body.keep_alive)
    if keep_alive is not None and app_of(request) is not None:  # training may need the memory
        keep_alive = min(keep_alive, services.settings.keep_alive_seconds)
    generation = GenerationRequest(
        prompt=prompt,
        messages=messages,
        adapter=folder,
        temperature=body.temperature,
        top_p=body.top_p,
        max_tokens=body.max_tokens,
        stop=tuple(body.stop or ()),
        seed=seed,
        keep_alive_seconds=keep_alive,
    )
    about = {"model": services.settings.model, "adapter": adapter, "seed": seed, "recalled": described(passages)}
    return generation, about


async def _stream(first: Event, events: AsyncGenerator[Event], about: dict[str, Any]) -> AsyncGenerator[bytes]:
    """The answer as it comes. Starlette closes this when the client goes away, which stops the generation."""
    async with aclosing(events):
        try:
            event = first
            while isinstance(event, str):
                yield server_sent_event("token", {"text": event})
                event = await anext(events)
            yield server_sent_event("done", GenerateOut(**event, **about).model_dump())
        except DaemonError as error:
            yield server_sent_event("error", problem_of(error).body())
