"""/v1/models: the base model, what is served, and each adapter, by the names that OpenAI's clients choose models by."""

from datetime import datetime
from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel

from pocketllm.api import choosing
from pocketllm.api.choosing import chosen
from pocketllm.api.context import Context
from pocketllm.api.problems import Problem
from pocketllm.daemon.services import Services
from pocketllm.storage.errors import NotFound
from pocketllm.storage.tables import Adapter

router = APIRouter(prefix="/v1", tags=["openai"])

LATEST, BASE = "pocketllm:latest", "pocketllm:base"
#: `ft:<base>:<owner>:<suffix>:<id>`, as OpenAI names fine-tuned models.
_TUNED = "ft:{model}:pocketllm::{id}"


class OpenAIModel(BaseModel):
    """A name that can be asked for. `parent` is what an adapter was made from; null for the base model."""

    id: str
    object: str = "model"
    created: int
    owned_by: str
    parent: str | None


class OpenAIModels(BaseModel):
    """All names."""

    object: str = "list"
    data: list[OpenAIModel]


@router.get("/models")
def models(services: Context) -> OpenAIModels:
    """The base model, what is served, and each adapter of the model in use, newest first."""
    return OpenAIModels(data=_all(services))


@router.get("/models/{model_id:path}")
def model(services: Context, model_id: str) -> OpenAIModel:
    """One of them."""
    for found in _all(services):
        if found.id == model_id:
            return found
    raise _unknown(model_id)


def resolve(services: Services, name: str) -> tuple[str | None, Path | None]:
    """The adapter's id and folder behind a name; None for the base. Raises ModelNotReady, or Problem."""
    base = services.settings.model
    if name in (LATEST, BASE, base):
        return chosen(services, choosing.SERVING if name == LATEST else choosing.BASE)
    adapter = name.removeprefix(_TUNED.format(model=base, id=""))
    try:
        return chosen(services, adapter)
    except NotFound as error:
        raise _unknown(name) from error


def name_of(adapter: Adapter) -> str:
    """What clients call an adapter."""
    return _TUNED.format(model=adapter.model, id=adapter.id)


def _all(services: Services) -> list[OpenAIModel]:
    base = services.settings.model
    adapters = [row for row in services.store.adapters.all() if row.model == base]
    names = {row.id: name_of(row) for row in adapters}
    serving = next((row for row in adapters if row.serving), None)
    began = services.started_at
    special = [
        _model(LATEST, serving.created_at if serving else began, names[serving.id] if serving else BASE),
        _model(BASE, began, None),
    ]
    return special + [_model(names[row.id], row.created_at, names.get(row.parent or "", BASE)) for row in adapters]


def _model(name: str, created: datetime, parent: str | None) -> OpenAIModel:
    return OpenAIModel(id=name, created=int(created.timestamp()), owned_by="pocketllm", parent=parent)


def _unknown(name: str) -> Problem:
    detail = f"There is no model {name[:80]!r}. GET /v1/models lists what there is; {LATEST} is what is served."
    return Problem(HTTPStatus.NOT_FOUND, detail, param="model", code="model_not_found")
