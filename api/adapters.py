"""/adapters: what was learned, which of it is served, and going back."""

from collections.abc import Callable

from fastapi import APIRouter, Depends
from pydantic import BaseModel, ConfigDict, Field

from pocketllm.api.context import Context
from pocketllm.api.requests import json_only
from pocketllm.api.schemas import AdapterOut
from pocketllm.daemon.services import Services
from pocketllm.storage.adapters import Change

router = APIRouter(tags=["adapters"])


class AdaptersOut(BaseModel):
    """All adapters; their parents make the chains."""

    data: list[AdapterOut]


class RollbackIn(BaseModel):
    """Which model to roll back."""

    model_config = ConfigDict(extra="forbid")

    model: str | None = Field(None, min_length=1, description="Default: the setting model.")


class ServingOut(BaseModel):
    """What was served until now, and what is from the next request on. null is the base model."""

    model: str
    was: str | None
    serving: str | None
    skipped: list[str] = Field(description="Adapters whose turn it would have been, but their files are gone.")

    @classmethod
    def of(cls, change: Change) -> "ServingOut":
        """From what storage says."""
        return cls.model_validate(change, from_attributes=True)


@router.get("/adapters")
def adapters(services: Context) -> AdaptersOut:
    """The adapters made so far, newest first, what each was made from, and where their folders are."""
    rows = services.store.adapters.all()
    return AdaptersOut(data=[AdapterOut.of(row, str(services.folder.adapter(row.id))) for row in rows])


@router.post("/adapters/rollback", dependencies=[Depends(json_only)])
def roll_back(services: Context, body: RollbackIn | None = None) -> ServingOut:
    """Serve what the adapter that is served was made from, at last the base model. Nothing is deleted.

    What the jobs taken back alone have learned is set aside: no job learns it again, unless the adapter is served
    again. A job that is under way keeps what it makes, and does not serve it.
    """
    model = (body or RollbackIn()).model or services.settings.model
    return ServingOut.of(services.store.adapters.roll_back(model, usable=_usable(services), now=services.now()))


@router.post("/adapters/{adapter_id}/serve")
def serve(adapter_id: str, services: Context) -> ServingOut:
    """Serve this adapter for its model, whatever was served, and whatever its job's outcome."""
    return ServingOut.of(services.store.adapters.serve(adapter_id, usable=_usable(services), now=services.now()))


def _usable(services: Services) -> Callable[[str], bool]:
    return lambda adapter_id: services.folder.adapter(adapter_id).is_dir()
