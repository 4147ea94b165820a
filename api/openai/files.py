"""/v1/files: what a fine-tuning job is to learn from, uploaded as OpenAI's clients do it."""

from collections import deque
from collections.abc import Iterator
from contextlib import suppress
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Depends, Form, Query, Request, UploadFile
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import parse_lines
from pocketllm.api.dependencies import ServicesDep, needs, owner_of, sees
from pocketllm.api.native.schemas import Identified
from pocketllm.api.openai.schemas import ChatMessage, Deleted, Listing, page_of
from pocketllm.daemon.documents import Example, checked, validated
from pocketllm.daemon.errors import InvalidValue
from pocketllm.daemon.services import Services
from pocketllm.storage.errors import NotFound
from pocketllm.storage.tables import PERSON, UploadedFile

#: The `training_file` of jobs that learn all new texts. It is not among the files that are listed.
INBOX = "file-inbox"
#: What OpenAI's chats may hold beside their messages; nothing of it is learned.
_BESIDE = ("tools", "functions", "parallel_tool_calls")
_EXPECTED = 'Each line must be {"messages": [...]}, {"prompt": ..., "completion": ...} or {"text": ...}.'


def check_own(request: Request, services: Services, *identities: str) -> None:
    """Refuse an app what others have in the words of what is not there. Raises NotFound."""
    store = services.store
    for identity in () if sees(request, PERSON) else identities:
        job_id = identity.replace("ftjob-", "job-", 1)
        with suppress(NotFound):
            row = store.jobs.get(job_id, abbreviated=False) if job_id.startswith("job-") else store.files.get(identity)
            if row.owner == owner_of(request):
                continue
        raise NotFound(f"You have no {identity!r}. GET /v1/files and GET /v1/fine_tuning/jobs list what you have.")


def check_path(request: Request, services: ServicesDep) -> None:
    """Likewise for what is named in the path."""
    check_own(request, services, *request.path_params.values())


router = APIRouter(prefix="/v1/files", tags=["openai"], dependencies=[Depends(check_path)])


class FileOut(Identified):
    """A file."""

    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["fine-tune"] = "fine-tune"
    status: Literal["processed"] = "processed"

    @classmethod
    def of(cls, row: UploadedFile) -> Self:
        """From its row."""
        return cls(id=row.id, bytes=row.size, created_at=int(row.created_at.timestamp()), filename=row.filename)


@router.post("", openapi_extra=needs("train"))
async def upload(
    request: Request, services: ServicesDep, file: UploadFile, purpose: Annotated[Literal["fine-tune"], Form()]
) -> FileOut:
    """Store a file for fine-tuning: JSON lines of chats (`messages`), `prompt` with `completion`, or `text`.

    If a line is none of these, the whole file is refused. Nothing is trained on until you create a job.
    """
    data = await file.read()
    examples = examples_in(data, source=INBOX, max_bytes=services.settings.max_text_bytes)
    await run_in_threadpool(deque, examples, maxlen=0)  # in a thread: a large file takes a second
    row = await run_in_threadpool(
        services.store.files.add,
        owner=owner_of(request),
        filename=(file.filename or "file")[:200],
        purpose=purpose,
        data=data,
        now=services.now(),
    )
    return FileOut.of(row)


@router.get("", openapi_extra=needs("train"))
def files(
    request: Request,
    services: ServicesDep,
    after: str | None = None,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
) -> Listing[FileOut]:
    """List the uploaded files, newest first. Apps see only their own files."""
    rows = [FileOut.of(row) for row in services.store.files.all() if sees(request, row.owner)]
    return page_of(rows, after=after, limit=limit)


@router.get("/{file_id}", openapi_extra=needs("train"))
def file(services: ServicesDep, file_id: str) -> FileOut:
    """Return a file's metadata."""
    return FileOut.of(services.store.files.get(file_id))


@router.delete("/{file_id}", openapi_extra=needs("train"))
def delete(services: ServicesDep, file_id: str) -> Deleted:
    """Delete a file and the texts that jobs have taken from it, with the effects of deleting one text."""
    now = services.now()
    services.scheduler.forget(lambda: services.store.deletions.file(file_id, now=now), now)
    services.wake()
    return Deleted(id=file_id, object="file")


def examples_in(data: bytes, *, source: str, max_bytes: int) -> Iterator[Example]:
    """The examples in a file, as texts from `source`. Raises InvalidValue, which names the line that is wrong."""
    for place, document in parse_lines(data.removeprefix(b"\xef\xbb\xbf")):
        yield validated(_as_text(document, place, source), place, max_bytes)


def _as_text(document: Any, place: str, source: str) -> dict[str, Any]:
    if not isinstance(document, dict):
        raise InvalidValue(f"{place}This is not a JSON object. {_EXPECTED}")
    if not document.keys() & {"messages", "prompt", "completion", "text"}:
        raise InvalidValue(f"{place}There is no text to train on. {_EXPECTED}")
    kept = {name: value for name, value in document.items() if name not in _BESIDE} | {"source": source}
    if isinstance(kept.get("messages"), list):
        kept["messages"] = [_message(message, place) for message in kept["messages"]]
    return kept


def _message(message: Any, place: str) -> dict[str, Any]:
    """A message as OpenAI's files hold it, as one that can be learned."""
    plain: dict[str, Any] = {**checked(ChatMessage, message, place).plain()}
    weight = message.get("weight")
    return plain if weight is None else plain | {"weight": weight}
