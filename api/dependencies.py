"""Dependencies of routes: the daemon's services, ids in paths, the requested adapter, and who asks."""

from http import HTTPStatus
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, Request

from pocketllm.api.errors import Problem
from pocketllm.api.security.tokens import OWNER, Scope
from pocketllm.daemon.errors import ModelNotReady
from pocketllm.daemon.services import Services
from pocketllm.storage.tables import PERSON


async def services_of(request: Request) -> Services:
    """The services that the app was made with."""
    # Async although it does not wait: FastAPI runs a plain function in a thread, for each request.
    services = request.app.state.services
    assert isinstance(services, Services)
    return services


ServicesDep = Annotated[Services, Depends(services_of)]

#: What a route that needs no token says of itself in OpenAPI: it has no content, or is the page that asks for one.
NO_TOKEN: dict[str, Any] = {"security": []}


def needs(scope: str) -> dict[str, Any]:
    """What a route says of itself in OpenAPI that this scope allows, beside admin. The guard goes by it."""
    return {"security": [{"token": sorted({Scope.ADMIN, Scope(scope)})}]}


def _job_id(job_id: str, services: ServicesDep) -> str:
    return services.store.jobs.get(job_id).id


def _adapter_id(adapter_id: str, services: ServicesDep) -> str:
    return services.store.adapters.get(adapter_id).id


def _text_id(text_id: str, services: ServicesDep) -> str:
    return services.store.texts.get(text_id).id


#: Ids in a path: the beginning of one is enough where no other begins like it. Else NotFound.
JobId = Annotated[str, Depends(_job_id)]
AdapterId = Annotated[str, Depends(_adapter_id)]
TextId = Annotated[str, Depends(_text_id)]

SERVING, BASE = "serving", "base"


def resolve_adapter(services: Services, name: str) -> tuple[str | None, Path | None]:
    """The id and folder of the requested adapter; None for the base. Raises ModelNotReady, NotFound or Problem."""
    if problem := services.model_problem():
        raise ModelNotReady(problem)
    if name == BASE:
        return None, None
    if name == SERVING:
        serving = services.scheduler.adapter_files.serving(services.settings.model, services.now())
        return (serving.id, services.folder.adapter(serving.id)) if serving else (None, None)
    row = services.store.adapters.get(name)
    if row.model != services.settings.model:
        detail = f"Adapter {row.id} belongs to the model {row.model}, but {services.settings.model} is in use."
        raise Problem(HTTPStatus.CONFLICT, detail, param="adapter")
    if problem := services.scheduler.adapter_files.problem(row):
        raise Problem(HTTPStatus.CONFLICT, f"{problem} GET /adapters lists the others.", param="adapter")
    return row.id, services.folder.adapter(row.id)


def app_of(request: Request) -> str | None:
    """The name of the app that sends a request; None for the owner."""
    caller = request.scope.get("state", {}).get("caller")
    return None if caller in (None, OWNER) else str(caller)


def owner_of(request: Request) -> str:
    """Whose what a request adds is: PERSON, or an app by its name."""
    return app_of(request) or PERSON


def sees(request: Request, owner: str) -> bool:
    """Whether a request may see files and jobs of this owner."""
    return Scope.ADMIN in request.state.scopes or owner == owner_of(request)


def may_monitor(request: Request) -> bool:
    """Whether the caller may see what could hold words of the owner's."""
    return bool(request.state.scopes & {Scope.MONITOR, Scope.ADMIN})
