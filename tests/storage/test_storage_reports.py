"""Reports in a real database file: stored with their job's end, and forgotten with the texts that they speak of."""

from contextlib import closing
from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest

from pocketllm.storage.errors import WrongState
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState, Report
from tests.support.daemon.workers import NOW, delete_text
from tests.support.stored import add_texts, start_job, succeed

NUMBERS = {"verdict": {"outcome": "learned"}, "verbatim_recall": {"base": 0.0, "personal": 0.5, "places": 8}}
#: Longer than a page of the database.
CONTENT = {"words": [{"word": "xyzzy", "base": 0.01, "personal": 0.02}], "completions": ["xyzzy " * 2000]}


def report(job: Job, content: dict[str, Any] = CONTENT) -> Report:
    return Report(job_id=job.id, numbers=NUMBERS, content=content)


def job_with_report(store: Store) -> Job:
    """One that has ended."""
    job = start_job(store)
    succeed(store, job, report=report(job))
    return job


def content_of(store: Store, job: Job) -> dict[str, Any] | None:
    found = store.reports.find(job.id)
    assert found is not None and found.numbers == NUMBERS
    return found.content


def test_a_job_that_has_ended_takes_no_report(store: Store) -> None:
    job = start_job(store)
    store.jobs.cancel(job.id, message="withdrawn", now=NOW)
    with pytest.raises(WrongState):
        succeed(store, job, report=report(job))
    assert store.reports.find(job.id) is None


def test_a_deleted_text_takes_the_content_with_it_and_leaves_the_numbers(store: Store, tmp_path: Path) -> None:
    gone, _ = add_texts(store, "gone", "kept")
    with_it = job_with_report(store)
    delete_text(store, gone)
    assert content_of(store, with_it) is None
    with closing(connect(tmp_path / "pocketllm.db")) as raw:
        assert raw.execute("SELECT content FROM report").fetchall() == [(None,)]


def test_reports_of_jobs_that_never_saw_the_text_keep_their_content(store: Store) -> None:
    add_texts(store, "early")
    early = job_with_report(store)
    [late] = add_texts(store, "late")
    delete_text(store, late)
    assert content_of(store, early) == CONTENT


def test_a_job_that_went_on_from_the_texts_adapter_loses_its_content_too(store: Store) -> None:
    """Its model knows the text, though the job has not read it."""
    [gone] = add_texts(store, "gone")
    first, second, third = (job_with_report(store) for _ in range(3))
    assert (second.parent, third.parent) == (f"of-{first.id}", f"of-{second.id}")
    delete_text(store, gone)
    beside = job_with_report(store)  # from the base, after the text has gone
    assert [content_of(store, job) for job in (first, second, third)] == [None] * 3
    assert content_of(store, beside) == CONTENT


def test_a_text_that_was_deleted_while_the_job_ran_leaves_no_content(store: Store) -> None:
    gone, _ = add_texts(store, "gone", "kept")
    job = start_job(store)
    delete_text(store, gone)
    assert store.jobs.get(job.id).state is JobState.PAUSED
    store.jobs.start(job.id, now=NOW)
    succeed(store, job, report=report(job))
    assert content_of(store, job) == CONTENT, "it has started again without the text"
