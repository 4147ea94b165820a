"""/classify: which of several labels a text has."""

from contextlib import aclosing
from http import HTTPStatus
from math import exp
from typing import Annotated

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field, field_validator
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import Body, JSONRoute
from pocketllm.api.dependencies import SERVING, ServicesDep, app_of, json_only, resolve_adapter
from pocketllm.api.errors import Problem
from pocketllm.api.native.examples import Label, Words
from pocketllm.daemon.generation.service import ClassifyRequest, Done
from pocketllm.daemon.services import Services

router = APIRouter(tags=["generate"], route_class=JSONRoute)

_MAX_LABELS = 50


class ClassifyIn(Body):
    """A text, and the labels to choose from."""

    model_config = ConfigDict(
        json_schema_extra={"example": {"text": "Invoice 8123 is due", "labels": ["work", "home"]}}
    )

    text: Annotated[Words, Field(max_length=100_000)]
    labels: list[Label] | None = Field(
        None,
        fail_fast=True,
        min_length=2,
        max_length=_MAX_LABELS,
        json_schema_extra={"uniqueItems": True},
        description="Default: the labels that stored texts have, which only the owner may leave out.",
    )
    adapter: str = Field(SERVING, description="'serving', 'base', or an adapter's id.")

    @field_validator("text")
    @classmethod
    def _some_words(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("it is empty")
        return text

    @field_validator("labels")
    @classmethod
    def _different(cls, labels: list[str] | None) -> list[str] | None:
        if labels is not None and len({label.strip() for label in labels}) < len(labels):
            raise ValueError("two of the labels are the same")
        if labels is not None and not all(label.strip() for label in labels):
            raise ValueError("one of the labels is empty")
        return labels


class LabelOut(BaseModel):
    """A label and its probability; those of all labels add up to 1."""

    label: str
    probability: float


class ClassifyOut(BaseModel):
    """The labels, the likeliest first."""

    label: str = Field(description="The likeliest.")
    labels: list[LabelOut]
    model: str
    adapter: str | None


@router.post("/classify", dependencies=[Depends(json_only)])
async def classify(request: Request, body: ClassifyIn, services: ServicesDep) -> ClassifyOut:
    """The probability of each label of a text, as learned from texts with labels. Nothing is stored."""
    labels = body.labels
    if labels is None:
        labels = await run_in_threadpool(_known, services, app_of(request))
    adapter, folder = await run_in_threadpool(resolve_adapter, services, body.adapter)
    training = services.settings.training
    asked = ClassifyRequest(
        text=body.text, labels=labels, template=training.template, label_words=training.label_words, adapter=folder
    )
    async with aclosing(services.generator.generate(asked)) as events:
        done = await anext(events)
    assert isinstance(done, Done), "there are no pieces"
    logprobs = dict(zip(labels, done.summary["logprobs"], strict=True))
    most = max(logprobs.values())
    weights = {label: exp(logprob - most) for label, logprob in logprobs.items()}
    found = [LabelOut(label=label, probability=weight / sum(weights.values())) for label, weight in weights.items()]
    found.sort(key=lambda one: -one.probability)
    return ClassifyOut(label=found[0].label, labels=found, model=services.settings.model, adapter=adapter)


def _known(services: Services, app: str | None) -> list[str]:
    """The labels of stored texts. Raises Problem for an app, and where there are fewer than two, or too many."""
    labels = services.store.texts.labels() if app is None else []
    if not 2 <= len(labels) <= _MAX_LABELS:
        detail = f"Give 2 to {_MAX_LABELS} labels."
        if app is None:
            detail = f"There are {len(labels)} labels among the stored texts. {detail}"
        raise Problem(HTTPStatus.UNPROCESSABLE_ENTITY, detail, param="labels")
    return labels
