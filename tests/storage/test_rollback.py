"""The chain of adapters in a real database file: back along it, forth again, and what becomes of texts and jobs."""

import pytest

from pocketllm.storage.errors import NotFound, WrongState
from pocketllm.storage.repositories.adapters import Change
from pocketllm.storage.store import Store
from pocketllm.storage.tables import JobState
from tests.support.daemon.workers import NOW, new_job
from tests.support.stored import add_texts, all_texts, roll_back, serve, served, start_job, succeed, words_of


def chain(store: Store, *names: str, model: str = "tiny") -> None:
    """Let jobs make adapters in a row, each from a text of its own that has the adapter's name."""
    for name in names:
        add_texts(store, name)
        succeed(store, start_job(store, model=model), name)


def test_rolling_back_again_and_again_walks_down_to_the_base(store: Store) -> None:
    chain(store, "a", "b", "c")
    steps = [roll_back(store) for _ in range(3)]
    assert [(step.was, step.serving) for step in steps] == [("c", "b"), ("b", "a"), ("a", None)]
    assert served(store) is None
    assert {row.id for row in store.adapters.all()} == {"a", "b", "c"}


def test_it_is_said_why_no_adapter_is_served(store: Store) -> None:
    assert store.adapters.withdrawn("tiny") is None, "there was none"
    chain(store, "a", "b")
    assert store.adapters.withdrawn("tiny") is None, "one is served"
    roll_back(store)
    roll_back(store)
    assert store.adapters.withdrawn("tiny") == "rollback"
    serve(store, "b")
    [text] = [text.id for text in all_texts(store) if text.text == "a"]
    store.deletions.texts([text], now=NOW)
    assert (served(store), store.adapters.withdrawn("tiny")) == (None, "deletion")


def test_only_the_named_models_chain_is_rolled_back(store: Store) -> None:
    chain(store, "x", "y", model="other")
    with pytest.raises(WrongState, match=r"the base model tiny is already served"):
        roll_back(store)
    chain(store, "a", "b")
    assert roll_back(store, "other") == Change(model="other", was="y", serving="x")
    assert served(store) == "b"


def test_an_ancestor_whose_files_are_gone_is_passed_over_and_named(store: Store) -> None:
    chain(store, "a", "b", "c", "d")
    assert roll_back(store, gone=["b", "c"]) == Change(model="tiny", was="d", serving="a", skipped=("c", "b"))
    chain(store, "e")
    assert roll_back(store, gone=["a"]) == Change(model="tiny", was="e", serving=None, skipped=("a",))


@pytest.mark.parametrize("paused", [False, True])
def test_a_job_that_started_from_what_was_rolled_back_does_not_bring_it_back(store: Store, paused: bool) -> None:
    chain(store, "a", "b")
    add_texts(store, "new")
    job = start_job(store)
    if paused:
        store.jobs.pause(job.id, reasons=["dark"], now=NOW)
    roll_back(store)
    if paused:
        store.jobs.start(job.id, now=NOW)
    succeed(store, job, "c")
    assert served(store) == "a"
    assert store.jobs.get(job.id).state is JobState.SUCCEEDED
    assert "adapter c is kept, not served" in store.jobs.events(job.id)[-1].message
    # Its text has not been tried on what is served now: the next job does.
    assert store.texts.counts().new_words == 1
    again = start_job(store)
    assert again.parent == "a" and "new" in words_of(store, again)


def test_a_job_that_is_queued_starts_from_what_is_served_then(store: Store) -> None:
    chain(store, "a", "b")
    queued = store.jobs.add(new_job())
    roll_back(store)
    job = store.jobs.start(queued.id, now=NOW)
    succeed(store, job, "c")
    assert (job.parent, served(store)) == ("a", "c")


def test_texts_of_what_was_rolled_back_are_neither_new_nor_old_until_it_is_served_again(store: Store) -> None:
    chain(store, "a", "b", "c")
    roll_back(store)
    roll_back(store)
    assert store.texts.counts().new_words == 0  # or a job would begin by itself to learn them once more
    add_texts(store, "new")
    assert words_of(store, start_job(store)) == {"a", "new"}

    assert serve(store, "c") == Change(model="tiny", was="a", serving="c")
    add_texts(store, "newer")
    assert words_of(store, start_job(store)) == {"a", "b", "c", "new", "newer"}


def test_events_of_the_jobs_say_what_the_owner_did(store: Store) -> None:
    chain(store, "a", "b")
    jobs = {row.id: row.job_id for row in store.adapters.all()}
    roll_back(store)
    serve(store, "b")
    (*_, withdrawn, brought_back) = store.jobs.events(jobs["b"])
    assert (withdrawn.kind, brought_back.kind) == ("withdrawn", "brought back")
    assert "the owner withdrew adapter b: a is served" in withdrawn.message
    assert store.jobs.events(jobs["a"])[-1].kind == "succeeded"
    assert serve(store, "b") == Change(model="tiny", was="b", serving="b")
    assert store.jobs.events(jobs["b"])[-1] == brought_back, "it was served already"


def test_what_is_not_there_cannot_be_served(store: Store) -> None:
    chain(store, "a", "b")
    with pytest.raises(NotFound, match=r"'none'.*GET /adapters"):
        serve(store, "none")
    with pytest.raises(WrongState, match="files of adapter a are missing"):
        serve(store, "a", gone=["a"])
    assert served(store) == "b"
