"""/v1/models: the base model, what is served, and each adapter, by the names that OpenAI's clients choose models by."""

from http import HTTPStatus
from pathlib import Path

from fastapi import APIRouter
from pydantic import BaseModel

from pocketllm.api import dependencies
from pocketllm.api.dependencies import ServicesDep, needs, resolve_adapter
from pocketllm.api.errors import Problem
from pocketllm.api.native.adapters import delete_adapter
from pocketllm.api.openai.schemas import Deleted
from pocketllm.daemon.services import Services
from pocketllm.storage.tables import Adapter

router = APIRouter(prefix="/v1", tags=["openai"])

LATEST, BASE = "pocketllm:latest", "pocketllm:base"
#: `ft:<base>:<owner>:<suffix>:<id>`, as OpenAI names fine-tuned models.
_TUNED = "ft:{model}:pocketllm:{suffix}:{id}"


class OpenAIModel(BaseModel):
    """A model that you can request. `parent` is the model that it started from; null for the base model."""

    id: str
    object: str = "model"
    created: int
    owned_by: str = "pocketllm"
    parent: str | None


class OpenAIModels(BaseModel):
    """All models."""

    object: str = "list"
    data: list[OpenAIModel]


@router.get("/models", openapi_extra=needs("generate"))
def models(services: ServicesDep) -> OpenAIModels:
    """List the serving model, the base model, and each adapter of the model in use, newest first."""
    return OpenAIModels(data=_all(services))


@router.get("/models/{model_id:path}", openapi_extra=needs("generate"))
def model(services: ServicesDep, model_id: str) -> OpenAIModel:
    """Return one model."""
    for found in _all(services):
        if found.id == model_id:
            return found
    raise _unknown(model_id)


@router.delete("/models/{model_id:path}")
def delete(services: ServicesDep, model_id: str) -> Deleted:
    """Delete a fine-tuned model. 409 if it is served, or if another adapter or an open job starts from it."""
    adapter, _ = resolve(services, model_id)
    if adapter is None or model_id == LATEST:
        detail = f"{model_id} is not the name of a fine-tuned model. GET /v1/models lists these names."
        raise Problem(HTTPStatus.CONFLICT, detail, param="model")
    delete_adapter(services, adapter)
    return Deleted(id=model_id, object="model")


def resolve(services: Services, name: str) -> tuple[str | None, Path | None]:
    """The adapter's id and folder behind a name; None for the base. Raises ModelNotReady, or Problem."""
    base = services.settings.model
    if name in (LATEST, BASE, base):
        return resolve_adapter(services, dependencies.SERVING if name == LATEST else dependencies.BASE)
    adapter = _adapter_in(name, base)
    if adapter not in {row.id for row in services.store.adapters.all()}:
        raise _unknown(name)
    return resolve_adapter(services, adapter)


def name_of(adapter: Adapter) -> str:
    """What clients call an adapter."""
    return _TUNED.format(model=adapter.model, suffix=adapter.suffix or "", id=adapter.id)


def _adapter_in(name: str, base: str) -> str:
    """The adapter's id in a fine-tuned model's name, whatever the suffix; another name as it is."""
    rest, _, identity = name.rpartition(":")
    tuned, _, _suffix = rest.rpartition(":")
    return identity if tuned == f"ft:{base}:pocketllm" else name


def _all(services: Services) -> list[OpenAIModel]:
    base = services.settings.model
    adapters = [row for row in services.store.adapters.all() if row.model == base]
    names = {row.id: name_of(row) for row in adapters}
    serving = next((row for row in adapters if row.serving), None)
    began = services.started_at
    rows = [
        (LATEST, serving.created_at if serving else began, names[serving.id] if serving else BASE),
        (BASE, began, None),
        *((names[row.id], row.created_at, names.get(row.parent or "", BASE)) for row in adapters),
    ]
    return [OpenAIModel(id=name, created=int(created.timestamp()), parent=parent) for name, created, parent in rows]


def _unknown(name: str) -> Problem:
    detail = f"There is no model {name[:80]!r}. GET /v1/models lists all models; {LATEST} is the serving one."
    return Problem(HTTPStatus.NOT_FOUND, detail, param="model", code="model_not_found")
