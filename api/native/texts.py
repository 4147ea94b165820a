"""/texts: add, list and delete texts."""

from collections.abc import Callable, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Annotated, Any, Self

from fastapi import APIRouter, Query, Request
from pydantic import BaseModel, Field, TypeAdapter

from pocketllm.api.bodies import MAX_TEXTS, parse, unless_large
from pocketllm.api.dependencies import ServicesDep, TextId, app_of, needs, owner_of
from pocketllm.api.errors import Problem
from pocketllm.api.native.ingest import Ingest
from pocketllm.api.native.recall import PASSAGES, RecalledOut, described
from pocketllm.api.native.schemas import AddedOut, Data, Identified, Page, TextOut
from pocketllm.daemon.documents import DEFAULT_SOURCE, Example
from pocketllm.daemon.errors import InvalidValue
from pocketllm.daemon.folder_scans import Scan, scans
from pocketllm.daemon.leftovers import copies
from pocketllm.daemon.services import Services
from pocketllm.storage.repositories.texts import SourceCount
from pocketllm.storage.tables import PERSON, Deletion

router = APIRouter(tags=["texts"])
Ids = Annotated[Sequence[str], Query(alias="id", max_length=500)]

#: The JSON schemas of the kinds, and in `$defs` of their parts, which are among the OpenAPI document's components.
KINDS = TypeAdapter[Any](Example).json_schema(ref_template="#/components/schemas/{model}")
_BODY_DOC = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {
                "schema": {
                    "anyOf": [
                        *KINDS["anyOf"],
                        {
                            "type": "array",
                            "items": {"anyOf": KINDS["anyOf"]},
                            "minItems": 1,
                            # Tools that test this document would spend minutes on a maxItems.
                            "description": f"At most {MAX_TEXTS:,}.",
                        },
                    ]
                }
            },
            "text/plain": {"schema": {"type": "string", "pattern": r"\S"}},
        },
    }
}


@router.post("/texts", status_code=HTTPStatus.CREATED, openapi_extra=_BODY_DOC | needs("ingest"))
async def add_texts(
    request: Request,
    services: ServicesDep,
    source: Annotated[str, Query(min_length=1, max_length=200)] = DEFAULT_SOURCE,
) -> AddedOut:
    """Store one text (JSON object or text/plain) or several (JSON list or NDJSON): all or none.

    A text is plain (`text`), a `prompt` with its `completion`, a `text` with its `label`, or a chat (`messages`, of
    which only the assistant's are trained on). The response is sent once they are on disk. The same text from the same
    source is stored once. `source` in the query applies to text/plain. Apps are not told which texts existed already,
    since another app may have sent them.
    """
    ingest: Ingest = request.app.state.ingest
    body = await request.body()  # before the slot, so that a slow sender does not block others
    kind, app, most = request.headers.get("content-type", ""), app_of(request), services.settings.max_text_bytes
    async with ingest.slot(len(body)):
        texts = await unless_large(body, lambda: [one.new() for one in parse(body, kind, source, most)])
        added = await ingest.add(texts, owner=owner_of(request))
    created = added.created if app is None else len(set(added.ids))
    return AddedOut(ids=list(added.ids), created=created, duplicates=len(added.ids) - created)


@router.get("/texts")
def list_texts(
    services: ServicesDep,
    limit: Annotated[int, Query(ge=1, le=500)] = 50,
    after: str | None = None,
    query: Annotated[str | None, Query(max_length=1000)] = None,
    source: Annotated[str | None, Query(min_length=1, max_length=200)] = None,
) -> Page[TextOut]:
    """List texts, newest first, optionally of one source. `after` is the last id of the previous page.

    With `query`, search all sources for texts that contain any of its words. Texts with the most and the rarest of
    these words come first.
    """
    if query is None:
        rows = services.store.texts.page(after=after, limit=limit + 1, source=source)
    else:
        rows = services.store.passages.texts(query, after=after, limit=limit + 1)
    files = services.store.folders.files_of([row.id for row in rows])
    return Page.of([TextOut.of(row, files) for row in rows], limit)


@router.get("/passages", openapi_extra=needs("recall"))
def search_passages(
    services: ServicesDep,
    query: Annotated[str, Query(max_length=1000)] = "",
    limit: Annotated[int, Query(ge=1, le=20)] = PASSAGES,
) -> Data[RecalledOut]:
    """Search all texts for passages of up to 100 words that have any of the query's words, best match first."""
    found = services.store.passages.search(query, limit=limit)
    return Data[RecalledOut].model_validate({"data": described(found)})


@router.get("/texts/{text_id}")
def get_text(text_id: str, services: ServicesDep) -> TextOut:
    """Return a text by its id or a unique prefix of it."""
    row = services.store.texts.get(text_id)
    return TextOut.of(row, services.store.folders.files_of([row.id]))


@router.get("/sources")
def list_sources(services: ServicesDep) -> Data[SourceCount]:
    """List all sources and how much text each has, the one with the newest text first."""
    return Data[SourceCount](data=services.store.texts.sources())


@router.get("/folders")
def list_folders(services: ServicesDep) -> Data[Scan]:
    """List the watched folders with the last scan of each. Only `pocketllm folders add` can add a folder."""
    return Data[Scan](data=scans(services.folder))


class DeletionOut(BaseModel):
    """The receipt of a deletion."""

    id: str
    at: datetime
    texts: int = Field(description="Number of texts deleted.")
    erased: bool = Field(
        description="Whether the database was written anew since, so that no trace is left in it or in its log. That "
        "happens ten minutes later, or once no job runs and no other program reads the database. The storage chip may "
        "keep old blocks until it reuses them."
    )
    adapters: list[str] = Field(
        description="Adapters that were trained on one of the texts, or started from such an adapter. They are kept "
        "until you delete them, but are no longer served."
    )
    serving: str | None = Field(description="The serving adapter; null is the base model.")
    job: str | None = Field(description="The job that trains on the remaining texts; null if none is needed.")
    copies: list[str] = Field(
        description="Copies of the database that may still contain the texts: known backups, and files that a restore "
        "replaced. The daemon does not change them."
    )
    files: list[str] = Field(description="Files of watched folders that still have one of the texts.")
    summary: str = Field(description="The receipt in words.")

    @classmethod
    def of(cls, services: Services, row: Deletion) -> Self:
        """From storage."""
        serving = services.store.adapters.serving(services.settings.model)
        kept = copies(services.folder)
        parts = [f"Deleted {row.texts:,} {'text' if row.texts == 1 else 'texts'}."]
        if row.replaced:
            now = serving.id if serving else "the base model"
            parts.append(f"The adapter that had learned from it is withdrawn; {now} is now served.")
        if row.job:
            parts.append(f"{row.job} trains on the remaining texts.")
        if row.files:
            named = ", ".join(row.files[:5]) + (f" (and {len(row.files) - 5:,} more)" if row.files[5:] else "")
            advice = "PocketLLM will not learn it from them again; edit them if you want it gone there."
            parts.append(f"These files still have the text: {named}. {advice}")
        if kept:
            parts.append(f"These copies may still contain them; delete those you do not need: {', '.join(kept)}.")
        if not row.erased:
            parts.append("The last traces on disk go in ten minutes, or once no job runs.")
        return cls(**row.model_dump(), serving=serving.id if serving else None, copies=kept, summary=" ".join(parts))


class TextDeletedOut(Identified):
    """A deleted text."""

    deleted: bool = True
    deletion: DeletionOut


@router.delete("/texts/{text_id}")
def delete_text(text_id: TextId, services: ServicesDep) -> TextDeletedOut:
    """Delete a text and what was derived from it. An open job that trains on it starts again. If the serving adapter
    was trained on it, the newest adapter that was not is served instead, and a job on the remaining texts is queued.
    """
    deletion = _forgotten(services, lambda now: services.store.deletions.texts([text_id], now=now))
    return TextDeletedOut(id=text_id, deletion=deletion)


@router.delete("/texts")
def delete_texts(
    services: ServicesDep, source: Annotated[str | None, Query(min_length=1, max_length=200)] = None, ids: Ids = ()
) -> DeletionOut:
    """Delete every text from a source, or the texts with these ids. The effects are those of deleting one text."""
    deletions = services.store.deletions
    if source is not None and ids:
        raise InvalidValue("Send either source or id, not both.", "source")
    if source is not None:
        return _forgotten(services, lambda now: deletions.source(source, now=now))
    found = [services.store.texts.get(identity).id for identity in ids]
    return _forgotten(services, lambda now: deletions.texts(found, now=now))


@router.delete("/apps/{app}/texts")
def delete_texts_of_app(services: ServicesDep, app: str) -> DeletionOut:
    """Delete every text that only this app has sent, and its uploaded files; texts that others have sent too are
    kept. `app` is the name of its access token.
    """
    if app == PERSON:
        raise Problem(HTTPStatus.NOT_FOUND, f"{app!r} is you, not an app. DELETE /texts deletes texts of your own.")
    return _forgotten(services, lambda now: services.store.deletions.app(app, now=now))


def _forgotten(services: Services, delete: Callable[[datetime], Deletion]) -> DeletionOut:
    now = services.now()
    row = services.scheduler.forget(lambda: delete(now), now)
    services.wake()
    return DeletionOut.of(services, row)


class DeletionCostOut(BaseModel):
    """What a deletion would cost."""

    texts: int = Field(description="Number of texts.")
    adapters: list[str] = Field(
        description="Adapters that were trained on one of the texts, or started from such an adapter."
    )
    serving: str | None = Field(description="The adapter that would then be served; null is the base model.")
    summary: str = Field(description="The cost in words; empty if there is none.")


@router.get("/deletions/cost")
def get_deletion_cost(services: ServicesDep, ids: Ids = (), source: str = "", app: str = "") -> DeletionCostOut:
    """Return the cost of deleting these texts, those of a source and those of an app. Changes nothing."""
    store, model = services.store, services.settings.model
    found = [store.texts.get(identity).id for identity in ids]
    texts, adapters, then = store.deletions.cost(model, ids=found, source=source, app=app)
    summary = f"{', '.join(adapters)} learned from it." if adapters else ""
    if (serving := store.adapters.serving(model)) is not None and serving.id in adapters:
        summary += f" {then or 'The base model'} is served until a job, queued at once, has trained on what remains."
    return DeletionCostOut(texts=texts, adapters=adapters, serving=then, summary=summary)


@router.get("/deletions/{deletion_id}")
def get_deletion(deletion_id: str, services: ServicesDep) -> DeletionOut:
    """Return the current receipt of a deletion: whether its bytes are erased, and the job it queued."""
    return DeletionOut.of(services, services.store.deletions.get(deletion_id))
