"""What happens to a store in tests: texts come in, jobs start and end, adapters are served and rolled back."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from pocketllm.storage.repositories.adapters import Change
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter, Job, Outcome, Report, Text
from tests.support.daemon.workers import NOW, new_job


def new_texts(*texts: str, source: str = "test") -> list[NewText]:
    return [NewText(text=text, source=source) for text in texts]


def add_texts(store: Store, *texts: str, source: str = "test", after_seconds: float = 0) -> tuple[str, ...]:
    """Store texts; their ids."""
    return store.texts.add(new_texts(*texts, source=source), now=NOW + timedelta(seconds=after_seconds)).ids


def all_texts(store: Store) -> list[Text]:
    """All texts, newest first."""
    return store.texts.page(after=None, limit=10_000)


def start_job(store: Store, *, texts: Sequence[NewText] | None = None, now: datetime = NOW, **given: Any) -> Job:
    """A running job: on these texts, or on what is new. given: columns with other values than in `new_job`."""
    job = store.jobs.add(new_job(created_at=now, **given), texts=texts)
    return store.jobs.start(job.id, now=now)


def succeed(
    store: Store,
    job: Job,
    name: str | None = None,
    *,
    outcome: Outcome = Outcome.LEARNED,
    now: datetime = NOW,
    report: Report | None = None,
    **columns: Any,
) -> Adapter:
    """End a running job well. Its adapter, of this name, is served if it has learned. columns: more of its own."""
    name, learned = name or f"of-{job.id}", outcome is Outcome.LEARNED
    usual: dict[str, Any] = {"model": job.model, "parent": job.parent, "outcome": outcome, "created_at": now}
    row = Adapter(id=name, job_id=job.id, **usual | columns)
    store.jobs.succeed(job.id, adapter=row, publish=learned, now=now, report=report)
    return store.adapters.get(name)


def served(store: Store, model: str = "tiny") -> str | None:
    """The id of the adapter that is served."""
    serving = store.adapters.serving(model)
    return serving.id if serving else None


def roll_back(store: Store, model: str = "tiny", *, gone: Sequence[str] = (), now: datetime = NOW) -> Change:
    """gone: adapters without files."""
    return store.adapters.roll_back(model, usable=lambda adapter: adapter.id not in gone, now=now)


def serve(store: Store, name: str, *, gone: Sequence[str] = (), now: datetime = NOW) -> Change:
    """gone: adapters without files."""
    return store.adapters.serve(name, usable=lambda adapter: adapter.id not in gone, now=now)


def words_of(store: Store, job: Job) -> set[str]:
    """What a job learns from."""
    return {text.text for text in store.texts.of_job(job.id)}


def on_disk(folder: Path) -> bytes:
    """The database file and its log as they lie there."""
    return b"".join(path.read_bytes() for path in folder.glob("pocketllm.db*"))
