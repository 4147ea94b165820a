"""/v1/files: what a fine-tuning job is to learn from, uploaded as OpenAI's clients do it, and its results."""

import csv
import io
import json
from collections import deque
from collections.abc import Iterator
from http import HTTPStatus
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Form, Query, Request, Response, UploadFile
from fastapi.responses import StreamingResponse
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from pocketllm.api.dependencies import ServicesDep, owner_of, sees
from pocketllm.api.errors import Problem
from pocketllm.api.native.schemas.jobs import Identified
from pocketllm.api.openai.fine_tuning_schemas import INBOX
from pocketllm.api.openai.schemas import Listing, page_of
from pocketllm.api.openai.training_file import FINE_TUNE, examples_in
from pocketllm.daemon.services import Services
from pocketllm.storage.errors import NotFound
from pocketllm.storage.tables import PERSON, Job, JobState, Text, UploadedFile

RESULTS = "fine-tune-results"
#: The file that a job that has succeeded leaves has this id, with what is behind "job-" in the job's.
_RESULT = "file-result-"
_PAGE = 100
_JSON_LINES = "application/jsonl"
_BYTES = {"schema": {"type": "string", "format": "binary"}}


def check_own(request: Request, services: Services, *identities: str) -> None:
    """Refuse an app files and jobs of others, as if there were none. Raises NotFound."""
    for identity in () if sees(request, PERSON) else identities:
        job_id = identity.replace(_RESULT, "job-", 1).replace("ftjob-", "job-", 1)
        if job_id.startswith("job-"):
            owner = services.store.jobs.get(job_id).owner
        else:
            owner = PERSON if identity == INBOX else services.store.files.get(identity).owner
        if owner != owner_of(request):
            raise NotFound(f"You have no {identity!r}. GET /v1/files and GET /v1/fine_tuning/jobs list what you have.")


def check_path(request: Request, services: ServicesDep) -> None:
    """Likewise for what is named in the path."""
    check_own(request, services, *request.path_params.values())


router = APIRouter(prefix="/v1/files", tags=["openai"], dependencies=[Depends(check_path)])

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals"]


class FileOut(Identified):
    """A file."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: Literal["processed"] = "processed"
    status_details: None = None

    @classmethod
    def of(cls, row: UploadedFile) -> "FileOut":
        """From its row."""
        return cls(
            id=row.id,
            bytes=row.size,
            created_at=int(row.created_at.timestamp()),
            filename=row.filename,
            purpose=row.purpose,
        )


class FileDeleted(BaseModel):
    """A deleted file."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


@router.post("")
async def upload(
    request: Request,
    services: ServicesDep,
    file: UploadFile,
    purpose: Annotated[Purpose, Form()],
) -> FileOut:
    """Store a file. Files for fine-tuning are JSON lines: chats (`messages`), `prompt` with `completion`, or `text`.

    If a line is none of these, the whole file is refused. Nothing is trained on until you create a job.
    """
    data = await file.read()
    if purpose == FINE_TUNE:  # in a thread: a large file takes a second
        examples = examples_in(data, source=INBOX, max_bytes=services.settings.max_text_bytes)
        await run_in_threadpool(deque, examples, maxlen=0)
    row = await run_in_threadpool(
        services.store.files.add,
        owner=owner_of(request),
        filename=(file.filename or "file")[:200],
        purpose=purpose,
        data=data,
        now=services.now(),
    )
    return FileOut.of(row)


@router.get("")
def files(
    request: Request,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    order: Literal["asc", "desc"] = "desc",
    purpose: str | None = None,
) -> Listing[FileOut]:
    """List the uploaded files, and `file-inbox`, which contains all texts. Results of jobs are listed only with
    `purpose=fine-tune-results`. Apps see only their own files.
    """
    if purpose == RESULTS:
        found = [_result(services, job) for job in jobs_behind(request, services, None) if results_of(job)]
    else:
        found = [FileOut.of(row) for row in services.store.files.all() if sees(request, row.owner)]
        found += [_inbox(services)] * sees(request, PERSON)
        found = [file for file in found if purpose in (None, file.purpose)]
    found.sort(key=lambda file: (file.created_at, file.id), reverse=order == "desc")
    return page_of(found, after=after, limit=limit)


@router.get("/{file_id}")
def file(services: ServicesDep, file_id: str) -> FileOut:
    """Return a file's metadata."""
    if file_id == INBOX:
        return _inbox(services)
    if file_id.startswith(_RESULT):
        return _result(services, _job(services, file_id))
    return FileOut.of(services.store.files.get(file_id))


@router.get(
    "/{file_id}/content",
    response_class=Response,
    responses={200: {"content": dict.fromkeys(("application/octet-stream", _JSON_LINES, "text/csv"), _BYTES)}},
)
def content(services: ServicesDep, file_id: str) -> Response:
    """Return a file's content: an upload as it was sent, a job's losses as CSV, or all texts as JSON lines."""
    if file_id == INBOX:
        return StreamingResponse(_texts(services), media_type=_JSON_LINES)
    if file_id.startswith(_RESULT):
        return Response(_table(services, _job(services, file_id)), media_type="text/csv")
    return Response(services.store.files.get(file_id).data, media_type="application/octet-stream")


@router.delete("/{file_id}")
def delete(services: ServicesDep, file_id: str) -> FileDeleted:
    """Delete a file and the texts that jobs have taken from it. Adapters keep what they learned from it."""
    if file_id == INBOX or file_id.startswith(_RESULT):
        detail = f"{file_id} is made from other stored data and cannot be deleted. DELETE /texts/ID deletes a text."
        raise Problem(HTTPStatus.CONFLICT, detail)
    now = services.now()
    services.scheduler.forget(lambda: services.store.files.delete(file_id, now=now), now)
    return FileDeleted(id=file_id)


def results_of(job: Job) -> list[str]:
    """The ids of the files that a job leaves."""
    return [job.id.replace("job-", _RESULT, 1)] if job.state is JobState.SUCCEEDED else []


def jobs_behind(request: Request, services: Services, after: str | None) -> Iterator[Job]:
    """All jobs that the caller may see, newest first, from behind one of them. Raises NotFound."""
    while rows := services.store.jobs.page(after=after, limit=_PAGE):
        yield from (row for row in rows if sees(request, row.owner))
        after = rows[-1].id


def _job(services: Services, file_id: str) -> Job:
    job = services.store.jobs.get(file_id.replace(_RESULT, "job-", 1))
    if not results_of(job):
        raise NotFound(f"Job {job.id} is {job.state}; only jobs that have succeeded have results.")
    return job


def _result(services: Services, job: Job) -> FileOut:
    ended = job.finished_at or job.created_at
    return FileOut(
        id=results_of(job)[0],
        bytes=len(_table(services, job)),
        created_at=int(ended.timestamp()),
        filename=f"{job.id}.csv",
        purpose=RESULTS,
    )


def _table(services: Services, job: Job) -> bytes:
    """The losses at each step, as OpenAI has them; of no token is known whether it was the likeliest."""
    curve = services.store.step_log.curve(job.id)
    training = {point.step: point.loss for point in curve.training}
    held_out = {point.step: point.loss for point in curve.held_out if point.step >= 0}
    table = io.StringIO()
    writer = csv.writer(table)
    writer.writerow(["step", "train_loss", "train_accuracy", "valid_loss", "valid_mean_token_accuracy"])
    for step in sorted(training.keys() | held_out.keys()):
        writer.writerow([step, training.get(step, ""), "", held_out.get(step, ""), ""])
    return table.getvalue().encode()


def _inbox(services: Services) -> FileOut:
    """Its size is that of the texts alone."""
    began = int(services.started_at.timestamp())
    size = services.store.texts.size()
    return FileOut(id=INBOX, bytes=size, created_at=began, filename="inbox.jsonl", purpose=FINE_TUNE)


def _texts(services: Services) -> Iterator[bytes]:
    """All texts, newest first, a line each."""
    after = None
    while rows := services.store.texts.page(after=after, limit=_PAGE):
        yield b"".join(_line(row) for row in rows)
        after = rows[-1].id


def _line(row: Text) -> bytes:
    fields: dict[str, Any] = {"text": row.text, "label": row.label, "source": row.source}
    if row.messages is not None:
        fields = {"messages": row.messages, "source": row.source}
    elif row.completion is not None:
        fields = {"prompt": row.text, "completion": row.completion, "source": row.source}
    kept = {name: value for name, value in fields.items() if value is not None}
    return json.dumps(kept, ensure_ascii=False).encode() + b"\n"
