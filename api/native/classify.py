"""/classify: which of several labels a text has."""

from collections.abc import Sequence
from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field, field_validator
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import JSONRoute
from pocketllm.api.dependencies import SERVING, ServicesDep, app_of, needs, resolve_adapter
from pocketllm.api.errors import Problem
from pocketllm.api.native.schemas import Data
from pocketllm.daemon.documents import Body, Label, Words
from pocketllm.daemon.errors import InvalidValue
from pocketllm.daemon.generation.generator import ClassifyRequest
from pocketllm.daemon.services import Services

router = APIRouter(tags=["generate"], route_class=JSONRoute)

_MAX_LABELS = 50
#: Examples that a label needs; and of all labels together, the newest that count: each takes time.
MIN_EXAMPLES, MAX_EXAMPLES = 3, 256


class ClassifyIn(Body, json_schema_extra={"example": {"text": "Invoice 8123 is due", "labels": ["work", "home"]}}):
    """A text, and the labels to choose from."""

    text: Annotated[Words, Field(max_length=100_000)]
    labels: list[Label] | None = Field(
        None,
        fail_fast=True,
        min_length=2,
        max_length=_MAX_LABELS,
        json_schema_extra={"uniqueItems": True},
        description=f"Default: every label with enough examples, at most {_MAX_LABELS}; apps must name the labels.",
    )
    adapter: str = Field(SERVING, description="'serving', 'base', or an adapter's id.")

    @field_validator("text")
    @classmethod
    def _some_words(cls, text: str) -> str:
        if not text.strip():
            raise ValueError("must not be empty")
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
    """A label and its probability. The probabilities of all labels add up to 1."""

    label: str
    probability: float


class ClassifyOut(BaseModel):
    """The labels, likeliest first."""

    label: str = Field(description="The likeliest label.")
    labels: list[LabelOut]
    examples: int | None = Field(description="Number of examples used; null for apps.")
    accuracy: float | None = Field(description="Leave-one-out accuracy on the examples, from 0 to 1; null for apps.")
    threshold: float | None = Field(
        description="Below it a text may have no label: nine in ten examples, left out, are above. Null for apps."
    )
    model: str
    adapter: str | None


class LabelExamplesOut(BaseModel):
    """A label, and the texts that have it."""

    label: str
    examples: int = Field(description="Number of texts.")
    newest: list[str] = Field(description="The first 100 characters of the newest five.")


@router.get("/labels")
def list_labels(services: ServicesDep) -> Data[LabelExamplesOut]:
    """List the labels and their newest examples, the label with the newest first."""
    found = services.store.texts.labelled(None)
    rows = [LabelExamplesOut(label=one, examples=len(t), newest=[x[:100] for x in t[:5]]) for one, t in found.items()]
    return Data(data=rows)


@router.post("/classify", openapi_extra=needs("generate"))
async def classify(request: Request, body: ClassifyIn, services: ServicesDep) -> ClassifyOut:
    """Return each label's probability for a text, judged by the stored texts with labels. Three examples each of two
    labels are enough; no job is needed. Nothing is stored.
    """
    is_app = app_of(request) is not None
    found = await run_in_threadpool(_examples, services, body.labels, is_app)
    adapter, folder = await run_in_threadpool(resolve_adapter, services, body.adapter)
    examples = [(text, label) for label, texts in found.items() for text in texts]
    asked = ClassifyRequest(text=body.text, examples=examples, adapter=folder)
    summary = await services.generator.ask(asked, is_gone=request.is_disconnected)
    labels = [LabelOut(label=label, probability=value) for label, value in summary["probabilities"].items()]
    labels.sort(key=lambda one: -one.probability)
    return ClassifyOut(
        label=labels[0].label,
        labels=labels,
        examples=None if is_app else len(examples),
        accuracy=None if is_app else summary["accuracy"],
        threshold=None if is_app else summary["threshold"],
        model=services.settings.model,
        adapter=adapter,
    )


def _examples(services: Services, labels: Sequence[str] | None, is_app: bool) -> dict[str, list[str]]:
    """The newest texts of each label, as many of each. Raises Problem where they are too few, and InvalidValue
    where there are too many labels, and for an app that names none. An app is not told how many there are.
    """
    unnamed = InvalidValue(f"Give 2 to {_MAX_LABELS} labels.", "labels")
    if labels is None and is_app:
        raise unnamed
    found = services.store.texts.labelled(labels)
    enough = {label: texts for label, texts in found.items() if len(texts) >= MIN_EXAMPLES}
    if len(enough) > _MAX_LABELS:
        raise unnamed
    if len(enough) < (2 if labels is None else len(labels)):
        said = ", ".join(f"{len(found.get(label, []))} of {label!r}" for label in labels or found) or "none"
        counted = "one of these has fewer" if is_app else f"at least two labels are needed; there are {said}"
        detail = (
            f"Each label needs {MIN_EXAMPLES} examples; {counted}. "
            "Add texts with their labels with POST /texts or `pocketllm add --label`."
        )
        raise Problem(HTTPStatus.CONFLICT, detail, code="too_few_examples", param="labels")
    return {label: texts[: MAX_EXAMPLES // len(enough)] for label, texts in enough.items()}
