"""/suggest: the likeliest next words."""

import asyncio
from http import HTTPStatus

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import JSONRoute
from pocketllm.api.dependencies import SERVING, ServicesDep, needs, resolve_adapter
from pocketllm.api.errors import Problem
from pocketllm.daemon.documents import Body
from pocketllm.daemon.generation.generator import SuggestionRequest

router = APIRouter(tags=["generate"], route_class=JSONRoute)

#: Of the time, what is left for sending the answer.
_SENDING_MS = 10


class SuggestIn(Body, json_schema_extra={"example": {"context": "We met at the railway sta", "n": 3}}):
    """The text typed so far, and what to suggest."""

    context: str = Field(
        max_length=100_000, description="The text before the cursor; its last 2,000 to 4,000 characters are used."
    )
    prefix: str | None = Field(
        None,
        max_length=100,
        description="The beginning of the word being typed after `context`; empty to suggest the next word. Default: "
        "the letters at the end of `context`, which may also be a whole word.",
    )
    n: int = Field(3, ge=1, le=10, description="Number of suggestions.")
    adapter: str = Field(SERVING, description="'serving', 'base', or an adapter's id.")
    counts: bool | None = Field(
        None, description="Also weigh words by how often you wrote them. Default: true, except for 'base'."
    )
    timeout_ms: int = Field(
        1000,
        ge=1,
        le=60_000,
        description="Answer within this time, with the suggestions found by then. 503 if the model is busy or not yet "
        "in memory.",
    )


class SuggestionOut(BaseModel):
    """A word that may come next, including its typed letters."""

    text: str = Field(description="Begins with a space where it follows a finished word.")
    probability: float = Field(description="Probability that the text continues with exactly this word.")
    share: float = Field(description="Probability among all words that begin as typed.")


class SuggestOut(BaseModel):
    """The suggestions, likeliest first; fewer than `n` if no more words begin this way."""

    suggestions: list[SuggestionOut]
    replaces: int = Field(description="Number of characters before the cursor that a suggestion's `text` replaces.")
    complete: bool = Field(description="False if time ran out before the search ended.")
    model: str
    adapter: str | None = Field(description="The adapter used; null for the base model.")


@router.post("/suggest", openapi_extra=needs("generate"))
async def suggest(request: Request, body: SuggestIn, services: ServicesDep) -> SuggestOut:
    """Suggest the likeliest next words, or endings of the word being typed. Nothing typed is stored.

    Without an adapter, suggestions come from the base model. The first request loads the model, which takes seconds.
    """
    adapter, folder = await run_in_threadpool(resolve_adapter, services, body.adapter)
    asked = SuggestionRequest(
        context=body.context,
        prefix=body.prefix,
        n=body.n,
        counts=body.adapter != "base" if body.counts is None else body.counts,
        timeout_seconds=max(0, body.timeout_ms - _SENDING_MS) / 1000,
        adapter=folder,
    )
    try:
        async with asyncio.timeout(body.timeout_ms / 1000):
            summary = await services.generator.ask(asked, is_gone=request.is_disconnected)
    except TimeoutError as error:
        detail = "The model is busy or still loading. Try again, or raise timeout_ms."
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, code="not_in_time") from error
    return SuggestOut(**summary, model=services.settings.model, adapter=adapter)
