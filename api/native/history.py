"""/history: what the sensors have seen over the last days, for plots. Holds no content."""

from datetime import datetime, timedelta
from typing import Annotated

from fastapi import APIRouter, Query
from pydantic import BaseModel

from pocketllm.api.dependencies import Context

router = APIRouter(tags=["status"])


class SampleOut(BaseModel):
    """What was seen at a time. null is unknown, or absent."""

    at: datetime
    battery: float | None
    temperature: float | None
    heat: float | None
    memory: float | None


class HistoryOut(BaseModel):
    """Oldest first, in the units of /status: percent, degrees Celsius, bytes."""

    data: list[SampleOut]


@router.get("/history")
def history(services: Context, hours: Annotated[float, Query(gt=0, le=48)] = 24) -> HistoryOut:
    """What was seen, every five minutes. Open without a token."""
    rows = services.store.samples.since(services.now() - timedelta(hours=hours))
    return HistoryOut(data=[SampleOut.model_validate(row, from_attributes=True) for row in rows])
