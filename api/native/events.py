"""/events: events of jobs, by long poll or as server-sent events. Contains no text."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator
from typing import Annotated

from fastapi import APIRouter, Header, Query, Request
from fastapi.responses import Response, StreamingResponse
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from pocketllm.api.dependencies import ServicesDep
from pocketllm.api.native.jobs import job_out
from pocketllm.api.native.schemas.jobs import EventOut, JobOut
from pocketllm.api.responses import PrettyJSONResponse, server_sent_event
from pocketllm.daemon.services import Services
from pocketllm.storage.tables import Event

router = APIRouter(tags=["jobs"])

#: How often the database is polled while a client waits: the worker's process writes events too.
_POLL_SECONDS = 0.5
#: Interval of keep-alive comments, so that proxies do not close the connection.
_KEEP_ALIVE_SECONDS = 15.0
_PAGE = 200
#: SQLite's largest integer; what else a browser sends back, it does not have from here.
_LAST, _NUMBER = 2**63 - 1, re.compile("[0-9]{1,18}")
_STREAM = "text/event-stream"


class NumberedEventOut(EventOut):
    """An event of a job, with its number."""

    id: int
    job: str

    @classmethod
    def of(cls, row: Event) -> "NumberedEventOut":
        """From its row."""
        assert row.id is not None
        return cls(id=row.id, job=row.job_id, at=row.at, kind=row.kind, message=row.message)


class EventsOut(BaseModel):
    """Events, oldest first."""

    data: list[NumberedEventOut]
    last: int = Field(description="Pass this as `after` in the next request.")


@router.get("/events", response_model=EventsOut, responses={200: {"content": {_STREAM: {}}}})
async def events(
    request: Request,
    services: ServicesDep,
    after: Annotated[
        int | None, Query(ge=0, le=_LAST, description="The last event you know; by default, only new events count.")
    ] = None,
    job: Annotated[str | None, Query(description="Only events of this job.")] = None,
    wait: Annotated[float, Query(ge=0, le=60, description="Seconds to wait for an event if there is none.")] = 0,
    last_event_id: Annotated[str | None, Header(description="Sent by browsers when they reconnect.")] = None,
) -> Response:
    """Return events of jobs.

    With `Accept: text/event-stream`, stream until the client disconnects: `job` events, each with its number as id, and
    `progress` events (a job) after steps.
    """
    start = after
    if last_event_id and _NUMBER.fullmatch(last_event_id):
        start = int(last_event_id)
    if start is None:
        start = await run_in_threadpool(services.store.jobs.last_event)
    if _STREAM in request.headers.get("accept", ""):
        return StreamingResponse(_stream(services, start, job), media_type=_STREAM)
    until = time.monotonic() + wait
    while True:
        found = await _news(services, start, job)
        if found or time.monotonic() >= until or services.ending.is_set() or await request.is_disconnected():
            break
        await asyncio.sleep(_POLL_SECONDS)
    answer = EventsOut(data=found, last=found[-1].id if found else start)
    return PrettyJSONResponse(answer.model_dump(mode="json"))


async def _news(services: Services, after: int, job: str | None) -> list[NumberedEventOut]:
    rows = await run_in_threadpool(services.store.jobs.events_after, after, limit=_PAGE, job_id=job)
    return [NumberedEventOut.of(row) for row in rows]


async def _stream(services: Services, after: int, job: str | None) -> AsyncGenerator[bytes]:
    """Until the client goes away, which closes this, or the daemon ends."""
    spoke, step = time.monotonic(), ("", 0)
    while not services.ending.is_set():
        sent = False
        for event in await _news(services, after, job):
            after, sent = event.id, True
            yield f"id: {event.id}\n".encode() + server_sent_event("job", event.model_dump(mode="json"))
        running = await run_in_threadpool(_running, services, job)
        if running is not None and (running.id, running.step) != step:
            step, sent = (running.id, running.step), True
            yield server_sent_event("progress", running.model_dump(mode="json"))
        if not sent and time.monotonic() - spoke > _KEEP_ALIVE_SECONDS:
            sent = True
            yield b": still here\n\n"
        spoke = time.monotonic() if sent else spoke
        await asyncio.sleep(_POLL_SECONDS)


def _running(services: Services, job: str | None) -> JobOut | None:
    """The running job, if the client asked for it or for all."""
    running = services.scheduler.running_job
    if running is None or job not in (None, running):
        return None
    return job_out(services, services.store.jobs.get(running))
