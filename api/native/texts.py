"""/texts: add, list and delete texts."""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from http import HTTPStatus
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import unless_large
from pocketllm.api.dependencies import ServicesDep, TextId, app_of, owner_of
from pocketllm.api.errors import Problem
from pocketllm.api.native.examples import DEFAULT_SOURCE, MAX_TEXTS, parse, references
from pocketllm.api.native.ingest import Ingest
from pocketllm.api.native.schemas.jobs import AddedOut, Identified, Page, TextOut
from pocketllm.daemon.folders import Scan, scans
from pocketllm.daemon.leftovers import copies
from pocketllm.daemon.services import Services
from pocketllm.storage.tables import Deletion, JobState, Outcome

router = APIRouter(tags=["texts"])
Ids = Annotated[Sequence[str], Query(alias="id", max_length=500)]

_EXAMPLES: dict[str, Any] = {
    "plain": {"text": "Wind west, glass rising.", "source": "notes"},
    "completion": {"prompt": "Who has the watch tonight?", "completion": "Anna until four.", "source": "chat"},
    "labelled": {"text": "Two mugs of tea and the shed to myself.", "label": "positive", "source": "diary"},
    "chat": {
        "messages": [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Always."}],
        "source": "chat",
    },
}
_EXAMPLES["several"] = list(_EXAMPLES.values())
_BODY_DOC = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        *references(),
                        {
                            "type": "array",
                            "items": {"anyOf": references()},
                            "minItems": 1,
                            # Tools that test this document would spend minutes on a maxItems.
                            "description": f"At most {MAX_TEXTS:,}.",
                        },
                    ]
                },
                "examples": {name: {"value": value} for name, value in _EXAMPLES.items()},
            },
            "text/plain": {"schema": {"type": "string", "pattern": r"\S"}},
        },
    }
}


@router.post("/texts", status_code=HTTPStatus.CREATED, openapi_extra=_BODY_DOC)
async def add_texts(
    request: Request,
    services: ServicesDep,
    source: Annotated[str, Query(min_length=1, max_length=200)] = DEFAULT_SOURCE,
) -> AddedOut:
    """Store one text (JSON object or text/plain), or many (JSON list or NDJSON): all of them or none.

    A text is plain (`text`), a `prompt` with its `completion`, a `text` with its `label`, or a chat (`messages`, of
    which the assistant's are learned). Answered when they are on disk. The same text from the same source twice is one
    text. `source` in the query is for text/plain. An app is not told which texts were there already: they may be
    another's.
    """
    ingest: Ingest = request.app.state.ingest
    body = await request.body()  # before the slot, so that a slow sender does not block others
    kind, app, most = request.headers.get("content-type", ""), app_of(request), services.settings.max_text_bytes
    async with ingest.slot():
        texts = await unless_large(body, lambda: [one.new() for one in parse(body, kind, source, most)])
        if app is not None:
            await run_in_threadpool(check_quota, services, app, len(texts))
        added = await ingest.add(texts, owner=owner_of(request))
    created = added.created if app is None else len(set(added.ids))
    return AddedOut(ids=list(added.ids), created=created, duplicates=len(added.ids) - created)


def check_quota(services: Services, app: str, count: int) -> None:
    """Refuse more texts than an app may send in a day. Raises Problem."""
    most = services.settings.app_texts_per_day
    if services.store.texts.count_of(app, since=services.now() - timedelta(days=1)) + count > most:
        detail = f"The app {app!r} may add {most:,} texts in 24 hours (setting app_texts_per_day). Try again later."
        raise Problem(HTTPStatus.TOO_MANY_REQUESTS, detail, code="too_many_texts")


@router.get("/texts")
def list_texts(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    after: str | None = None,
    query: Annotated[str | None, Query(max_length=1000)] = None,
    source: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
) -> Page[TextOut]:
    """A page of texts, newest first, of one source if you name it; `after` is the last id of the page before.

    With `query` those that have one of its words, the best first: with most of them, and the rarest.
    """
    if query is None:
        rows = services.store.texts.page(after=after, limit=limit + 1, source=source)
    else:
        rows = services.store.passages.texts(query, after=after, limit=limit + 1)
    return Page.of([TextOut.of(row) for row in rows], limit)


@router.get("/texts/{text_id}")
def get_text(text_id: str, services: ServicesDep) -> TextOut:
    """One text, by its id or the beginning of it."""
    return TextOut.of(services.store.texts.get(text_id))


class SourceOut(BaseModel):
    """How much text there is from a source."""

    source: str
    texts: int
    words: int
    new_words: int = Field(description="That no job has learned.")


class SourcesOut(BaseModel):
    """All sources."""

    data: list[SourceOut]


@router.get("/sources")
def list_sources(services: ServicesDep) -> SourcesOut:
    """How much text there is from each source, the one with the newest text first."""
    found = services.store.texts.sources()
    return SourcesOut(data=[SourceOut.model_validate(one._asdict()) for one in found])


class FoldersOut(BaseModel):
    """All watched folders."""

    data: list[Scan]


@router.get("/folders")
def list_folders(services: ServicesDep) -> FoldersOut:
    """The watched folders, with the last scan of each. `pocketllm folders add` watches one more; no route does."""
    return FoldersOut(data=scans(services.folder))


class DeletionOut(BaseModel):
    """The receipt for texts that were deleted."""

    id: str
    at: datetime
    texts: int = Field(description="How many there were.")
    erased: bool = Field(
        description="Their bytes are gone from the database and its log. False while another program reads: ask again. "
        "The storage chip may keep old blocks until it reuses them."
    )
    adapters: list[str] = Field(
        description="Adapters that have learned one of them, or started from one that has. They stay until they are "
        "deleted, and none is served."
    )
    serving: str | None = Field(description="What is served now; null is the base model.")
    job: str | None = Field(description="The job that learns again what is left; null: none is needed.")
    job_state: JobState | None
    outcome: Outcome | None = Field(description="Of that job.")
    copies: list[str] = Field(
        description="Copies of the database that may have them, and that the daemon does not change: backups that it "
        "knows of, and what was there before a restore."
    )
    summary: str = Field(description="All this in words.")

    @classmethod
    def of(cls, services: Services, row: Deletion) -> Self:
        """From storage."""
        job = None if row.job is None else services.store.jobs.get(row.job)
        serving = services.store.adapters.serving(services.settings.model)
        kept = copies(services.folder)
        parts = [f"Deleted {row.texts:,} {'text' if row.texts == 1 else 'texts'}."]
        if not row.erased:  # another program reads the log, or writes a backup
            parts.append(f"Their bytes are overwritten when nobody else reads: GET /deletions/{row.id} says it then.")
        if row.replaced:
            parts.append(f"Served is now {serving.id if serving else 'the base model'}.")
        if row.job:
            parts.append(f"{row.job} learns again what is left.")
        if kept:
            parts.append(f"Copies may still have them; delete those that you do not need: {', '.join(kept)}.")
        return cls(
            id=row.id,
            at=row.at,
            texts=row.texts,
            erased=row.erased,
            adapters=row.adapters,
            serving=serving.id if serving else None,
            job=row.job,
            job_state=job.state if job else None,
            outcome=job.outcome if job else None,
            copies=kept,
            summary=" ".join(parts),
        )


class TextDeletedOut(Identified):
    """A text is gone."""

    deleted: bool = True
    deletion: DeletionOut


@router.delete("/texts/{text_id}")
def delete_text(text_id: TextId, services: ServicesDep) -> TextDeletedOut:
    """Delete a text and what was derived from it. A job that learns it starts again; served is the newest adapter that
    has not learned it, and a job is queued to learn again what is left.
    """
    deletion = _forgotten(services, lambda now: services.store.deletions.texts([text_id], now=now))
    return TextDeletedOut(id=text_id, deletion=deletion)


@router.delete("/texts")
def delete_texts(
    services: ServicesDep,
    source: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
    ids: Ids = (),
) -> DeletionOut:
    """Delete all texts of a source, or those with these ids, likewise."""
    deletions = services.store.deletions
    if source is not None:
        return _forgotten(services, lambda now: deletions.source(source, now=now))
    found = [services.store.texts.get(identity).id for identity in ids]
    return _forgotten(services, lambda now: deletions.texts(found, now=now))


@router.delete("/apps/{app}/texts")
def delete_texts_of_app(services: ServicesDep, app: str) -> DeletionOut:
    """Delete all texts that an app alone has sent, likewise. What others have sent, too, stays theirs. An app is named
    as its token.
    """
    return _forgotten(services, lambda now: services.store.deletions.app(app, now=now))


def _forgotten(services: Services, delete: Callable[[datetime], Deletion]) -> DeletionOut:
    now = services.now()
    row = services.scheduler.forget(lambda: delete(now), now)
    services.wake()
    return DeletionOut.of(services, row)


class DeletionCostOut(BaseModel):
    """What a deletion would cost."""

    texts: int = Field(description="How many there are.")
    adapters: list[str] = Field(
        description="Adapters that have learned one of the texts, or started from one that has."
    )
    serving: str | None = Field(description="What would be served then; null is the base model.")
    summary: str = Field(description="That in words; empty where it costs nothing.")


@router.get("/deletions/cost")
def get_deletion_cost(services: ServicesDep, ids: Ids = (), source: str = "", app: str = "") -> DeletionCostOut:
    """What it would cost to delete these texts, those of a source, and those of an app. Changes nothing."""
    store, model = services.store, services.settings.model
    found = [store.texts.get(identity).id for identity in ids]
    texts, adapters, then = store.deletions.cost(model, ids=found, source=source, app=app)
    summary = f"{', '.join(adapters)} learned from that." if adapters else ""
    if (serving := store.adapters.serving(model)) is not None and serving.id in adapters:
        summary += f" Until what is left is learned again, which begins at once, {then or 'the base model'} is served."
    return DeletionCostOut(texts=texts, adapters=adapters, serving=then, summary=summary)


@router.get("/deletions/{deletion_id}")
def get_deletion(deletion_id: str, services: ServicesDep) -> DeletionOut:
    """The receipt of a deletion as it stands: whether its bytes are erased, and what became of the job it queued."""
    return DeletionOut.of(services, services.store.deletions.get(deletion_id))
