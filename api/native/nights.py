"""/nights: the last nights."""

from typing import Annotated

from fastapi import APIRouter, Query

from pocketllm.api.bodies import JSONRoute
from pocketllm.api.dependencies import ServicesDep, needs
from pocketllm.api.native.schemas.jobs import Data
from pocketllm.daemon.scheduling.nights import Night

router = APIRouter(tags=["status"], route_class=JSONRoute)


@router.get("/nights", openapi_extra=needs("monitor"))
def nights(services: ServicesDep, days: Annotated[int, Query(ge=1, le=30)] = 14) -> Data[Night]:
    """List the last nights, the present one first: when a job could run, what ran, what ended, and for how long what
    held a job back while nobody used the device. A night lasts from noon to noon of your time; its date is its end's.
    """
    return Data[Night](data=services.scheduler.nights.recent(services.now(), days=days))
