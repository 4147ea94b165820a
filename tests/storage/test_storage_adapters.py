"""Adapters in a real database file."""

from datetime import timedelta

import pytest

from pocketllm.storage.errors import NotFound
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Adapter, Outcome
from tests.support.workers import NOW, queue_job


def made(store: Store, name: str, *, minute: int = 0, publish: bool = True) -> None:
    """Let a job make an adapter."""
    job = queue_job(store)
    at = NOW + timedelta(minutes=minute)
    row = Adapter(id=name, job_id=job.id, model="tiny", outcome=Outcome.LEARNED, held_out_loss_now=3.5, created_at=at)
    store.jobs.succeed(job.id, adapter=row, publish=publish, now=NOW)


def test_an_adapter_comes_back_as_it_was_made(store: Store) -> None:
    made(store, "a")
    row = store.adapters.get("a")
    assert (row.model, row.outcome, row.serving, row.created_at) == ("tiny", Outcome.LEARNED, True, NOW)
    assert (row.held_out_loss_before, row.held_out_loss_now) == (None, 3.5)


def test_an_adapter_that_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(NotFound, match=r"'adapter-none'.*GET /adapters"):
        store.adapters.get("adapter-none")


def test_adapters_come_newest_first(store: Store) -> None:
    for minute in (2, 3, 1):
        made(store, f"of minute {minute}", minute=minute)
    assert [row.id for row in store.adapters.all()] == ["of minute 3", "of minute 2", "of minute 1"]


def test_nothing_is_served_before_something_was_learned(store: Store) -> None:
    assert store.adapters.serving("tiny") is None
    made(store, "kept", publish=False)
    assert store.adapters.serving("tiny") is None


def test_what_is_served_is_the_models_own(store: Store) -> None:
    made(store, "a")
    serving = store.adapters.serving("tiny")
    assert serving is not None and serving.id == "a"
    assert store.adapters.serving("other") is None
