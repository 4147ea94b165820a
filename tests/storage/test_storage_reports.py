"""Reports in a real database file: stored with their job's end, and forgotten with the texts that they speak of."""

from contextlib import closing
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest

from pocketllm.storage.errors import WrongState
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter, Job, JobState, Outcome, Report
from tests.support.daemon.workers import NOW, delete_text, queue_job

NUMBERS = {"verdict": {"outcome": "learned"}, "verbatim_recall": {"base": 0.0, "personal": 0.5, "places": 8}}
#: Longer than a page of the database.
CONTENT = {"words": [{"word": "xyzzy", "base": 0.01, "personal": 0.02}], "completions": ["xyzzy " * 2000]}


def add(store: Store, *texts: str) -> tuple[str, ...]:
    return store.texts.add([NewText(text=text, source="test") for text in texts], now=NOW).ids


def report(job: Job, content: dict[str, Any] = CONTENT) -> Report:
    return Report(job_id=job.id, numbers=NUMBERS, content=content)


def end(store: Store, job: Job, new: Report | None) -> str:
    """End a running job well; the adapter's id."""
    name = job.id.replace("job-", "adapter-")
    row = Adapter(id=name, job_id=job.id, model="tiny", outcome=Outcome.LEARNED, created_at=NOW)
    store.jobs.succeed(job.id, adapter=row, publish=True, now=NOW, report=new)
    return name


def content_of(store: Store, job: Job) -> dict[str, Any] | None:
    found = store.reports.find(job.id)
    assert found is not None and found.numbers == NUMBERS
    return found.content


def on_disk(folder: Path) -> bytes:
    """The database file and its log as they lie there."""
    return b"".join(path.read_bytes() for path in folder.glob("pocketllm.db*"))


def test_a_report_is_stored_with_the_jobs_end(store: Store) -> None:
    add(store, "one", "two")
    job = queue_job(store)
    assert store.reports.find(job.id) is None
    end(store, job, report(job))
    assert content_of(store, job) == CONTENT


def test_a_job_may_end_without_one(store: Store) -> None:
    job = queue_job(store)
    end(store, job, None)
    assert store.reports.find(job.id) is None


def test_a_job_that_has_ended_takes_no_report(store: Store) -> None:
    job = queue_job(store)
    store.jobs.cancel(job.id, message="withdrawn", now=NOW)
    with pytest.raises(WrongState):
        end(store, job, report(job))
    assert store.reports.find(job.id) is None


def test_a_deleted_text_takes_the_content_with_it_and_leaves_the_numbers(store: Store, tmp_path: Path) -> None:
    gone, kept = add(store, "gone", "kept")
    with_it = queue_job(store)
    end(store, with_it, report(with_it))
    delete_text(store, gone)
    assert content_of(store, with_it) is None
    with closing(connect(tmp_path / "pocketllm.db")) as raw:
        assert raw.execute("SELECT content FROM report").fetchall() == [(None,)]
    delete_text(store, kept)
    assert content_of(store, with_it) is None


def test_the_contents_bytes_are_gone_from_every_file(tmp_path: Path) -> None:
    """Where they are still in the log, and where they were folded into the file."""
    for name in ("log", "file"):
        folder = tmp_path / name
        folder.mkdir()
        store = Store.open(folder / "pocketllm.db")
        jobs: list[Job] = []
        gone, _ = add(store, "gone", "kept")
        for repeats in (1, 3000, 1):
            job = queue_job(store)
            jobs.append(job)
            end(store, job, report(job, {"words": [], "completions": ["xyzzy " * repeats]}))
        if name == "file":
            store.close()
            store = Store.open(folder / "pocketllm.db")
        assert b"xyzzy" in on_disk(folder)
        delete_text(store, gone)
        assert b"xyzzy" not in on_disk(folder)
        assert [content_of(store, job) for job in jobs] == [None] * 3
        store.close()


def test_reports_of_jobs_that_never_saw_the_text_keep_their_content(store: Store) -> None:
    add(store, "early")
    early = queue_job(store)
    end(store, early, report(early))
    [late] = add(store, "late")
    delete_text(store, late)
    assert content_of(store, early) == CONTENT


def test_a_job_that_went_on_from_the_texts_adapter_loses_its_content_too(store: Store) -> None:
    """Its model knows the text, though the job has not read it."""
    [gone] = add(store, "gone")
    first = queue_job(store)
    start = end(store, first, report(first))
    jobs = []
    for _ in range(2):
        job = queue_job(store)
        store.jobs.update(job.id, parent=start)
        jobs.append(job)
        start = end(store, job, report(job))
    delete_text(store, gone)
    beside = queue_job(store)  # from the base, after the text has gone
    end(store, beside, report(beside))
    assert [content_of(store, job) for job in (first, *jobs)] == [None] * 3
    assert content_of(store, beside) == CONTENT


def test_a_text_that_was_deleted_while_the_job_ran_leaves_no_content(store: Store) -> None:
    gone, _ = add(store, "gone", "kept")
    job = queue_job(store)
    delete_text(store, gone)
    assert store.jobs.get(job.id).state is JobState.PAUSED
    store.jobs.start(job.id, now=NOW)
    end(store, job, report(job))
    assert content_of(store, job) == CONTENT, "it has started again without the text"
