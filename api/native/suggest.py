"""/suggest: the likeliest next words."""

import asyncio
from contextlib import aclosing
from http import HTTPStatus

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import Body, JSONRoute
from pocketllm.api.dependencies import SERVING, ServicesDep, json_only, resolve_adapter
from pocketllm.api.errors import Problem
from pocketllm.daemon.generation.service import Done, SuggestionRequest

router = APIRouter(tags=["generate"], route_class=JSONRoute)

#: Of the time, what is left for sending the answer.
_SENDING_MS = 10


class SuggestIn(Body):
    """What is typed so far, and what to suggest."""

    model_config = ConfigDict(json_schema_extra={"example": {"context": "We met at the sta", "n": 3}})

    context: str = Field(
        max_length=100_000, description="The text before the cursor; its last 2,000 to 4,000 characters count."
    )
    prefix: str | None = Field(
        None,
        max_length=100,
        description="The beginning of the word that is being typed behind `context`; empty for the next word. Default: "
        "the letters at the end of `context`.",
    )
    n: int = Field(3, ge=1, le=10, description="How many suggestions.")
    words: int = Field(1, ge=1, le=5, description="Words of each: with more than 1, short phrases.")
    adapter: str = Field(SERVING, description="'serving', 'base', or an adapter's id.")
    counts: bool | None = Field(
        None,
        description="Weigh the owner's own words, too, by how often they were written. Default: yes, but for 'base'.",
    )
    timeout_ms: int = Field(
        1000,
        ge=1,
        le=60_000,
        description="Answer within this time, with what is found by then. 503 where the model is busy, or not yet in "
        "memory.",
    )


class SuggestionOut(BaseModel):
    """Words that may come next, with what is typed of the first."""

    text: str
    probability: float = Field(description="That the text goes on with exactly these words.")


class SuggestOut(BaseModel):
    """The suggestions, the likeliest first. Fewer than `n` where no more words begin so."""

    suggestions: list[SuggestionOut]
    complete: bool = Field(description="False where time was up before the search was over.")
    model: str
    adapter: str | None = Field(description="By which they are made; null for the base model.")


@router.post("/suggest", dependencies=[Depends(json_only)])
async def suggest(body: SuggestIn, services: ServicesDep) -> SuggestOut:
    """The likeliest next words, or endings of the word that is being typed. Nothing typed is stored.

    Where nothing was learned yet, they are the base model's. The first request loads the model, which takes seconds.
    """
    adapter, folder = await run_in_threadpool(resolve_adapter, services, body.adapter)
    request = SuggestionRequest(
        context=body.context,
        prefix=body.prefix,
        n=body.n,
        words=body.words,
        counts=body.adapter != "base" if body.counts is None else body.counts,
        timeout_seconds=max(0, body.timeout_ms - _SENDING_MS) / 1000,
        adapter=folder,
    )
    try:
        async with asyncio.timeout(body.timeout_ms / 1000):
            async with aclosing(services.generator.generate(request)) as events:
                done = await anext(events)
    except TimeoutError as error:
        detail = "The model is busy, or being loaded. Ask again, or give it more time with timeout_ms."
        raise Problem(HTTPStatus.SERVICE_UNAVAILABLE, detail, code="not_in_time") from error
    assert isinstance(done, Done), "there are no pieces"
    return SuggestOut(**done.summary, model=services.settings.model, adapter=adapter)
