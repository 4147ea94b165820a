"""/compare: the base model's and the personal one's answer side by side, and what learning has made likelier."""

from contextlib import aclosing
from dataclasses import replace
from http import HTTPStatus

from fastapi import APIRouter, Depends
from pydantic import BaseModel, Field

from pocketllm.api.context import Context
from pocketllm.api.generate import AskIn, asked
from pocketllm.api.problems import Problem
from pocketllm.api.requests import json_only
from pocketllm.daemon.generator import Done

router = APIRouter(tags=["generate"])


class AnswerOut(BaseModel):
    """One model's answer."""

    text: str
    finish_reason: str
    completion_tokens: int


class TokenGainOut(BaseModel):
    """A token of the personal answer, and the natural logarithm of its probability to each model."""

    id: int = Field(description="The token's number in the model's vocabulary.")
    token: str
    personal: float
    base: float


class CompareOut(BaseModel):
    """Both answers to the same prompt with the same seed."""

    personal: AnswerOut
    base: AnswerOut
    tokens: list[TokenGainOut]
    gained_nats_per_token: float | None = Field(
        description="By how much likelier the personal answer is to the personal model; null for an empty one."
    )
    prompt_tokens: int
    model: str
    adapter: str
    seed: int


@router.post("/compare", dependencies=[Depends(json_only)])
async def compare(body: AskIn, services: Context) -> CompareOut:
    """Answer with the base model and with an adapter: the one that is served, or a named one.

    Both compute in fp32, which takes longer than /generate.
    """
    wanted, about = await asked(services, body)
    if wanted.adapter is None:
        detail = "Nothing that was learned is served: there is only the base model. `pocketllm train` starts a job."
        raise Problem(HTTPStatus.CONFLICT, detail, param="adapter")
    async with aclosing(services.generator.generate(replace(wanted, compare=True))) as events:
        done = await anext(events)
    assert isinstance(done, Done), "there are no pieces"
    summary = done.summary
    gains = [token["personal"] - token["base"] for token in summary["tokens"]]
    return CompareOut(**summary, **about, gained_nats_per_token=sum(gains) / len(gains) if gains else None)
