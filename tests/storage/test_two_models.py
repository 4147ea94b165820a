"""What is new to the model in use, in a real database file: after a switch, a deletion, and a switch back."""

from contextlib import closing
from pathlib import Path
from sqlite3 import connect

import pytest

from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, Outcome
from tests.support.daemon.workers import NOW, new_job
from tests.support.stored import add_texts, all_texts, new_texts, roll_back, served, start_job, succeed, words_of


@pytest.fixture
def store(store: Store) -> Store:
    """A store in which `small` is the model in use."""
    store.texts.use_model("small")
    return store


def learn(store: Store, model: str, name: str, *texts: str, outcome: Outcome = Outcome.LEARNED) -> Job:
    """Let a job of a model make an adapter from what is new."""
    add_texts(store, *texts)
    job = start_job(store, model=model)
    succeed(store, job, name, outcome=outcome)
    return job


def learn_beside(store: Store, name: str, *texts: str) -> Job:
    """Let a job of `small` make an adapter from the base model and these texts."""
    job = start_job(store, model="small", tuning={}, start_from="base", texts=new_texts(*texts))
    succeed(store, job, name)
    return job


def new(store: Store) -> set[str]:
    """The texts that are new to the model in use."""
    return {text.text for text in all_texts(store) if text.learned_in is None}


def test_new_is_what_the_model_in_use_has_not_learned(store: Store) -> None:
    learn(store, "small", "s", "one", "two")
    add_texts(store, "three")
    store.texts.use_model("large")
    assert new(store) == {"one", "two", "three"} and store.texts.counts().new_words == 3
    learn(store, "large", "l")
    assert new(store) == set() and (served(store, "small"), served(store, "large")) == ("s", "l")
    store.texts.use_model("small")
    assert new(store) == {"three"} and served(store, "small") == "s"
    learn(store, "small", "t")
    store.texts.use_model("large")
    assert new(store) == set()


def test_what_a_deletion_has_made_new_is_so_for_both_models_also_after_a_switch(store: Store) -> None:
    learn(store, "small", "s-kept", "first")
    [gone] = add_texts(store, "secret")
    learn(store, "small", "s", "second")
    store.texts.use_model("large")
    learn(store, "large", "l")
    receipt = store.deletions.texts([gone], now=NOW)
    assert receipt.adapters == ["l", "s"] and receipt.replaced
    assert (served(store, "small"), served(store, "large")) == ("s-kept", None)
    assert new(store) == {"first", "second"}
    store.texts.use_model("small")
    assert new(store) == {"second"}
    learn(store, "small", "again")
    store.texts.use_model("large")
    assert new(store) == {"first", "second"}
    store.texts.use_model("small")
    assert new(store) == set()


def test_only_the_model_in_use_asks_for_a_job_after_a_deletion(store: Store) -> None:
    [gone] = add_texts(store, "secret")
    learn(store, "small", "s")
    store.texts.use_model("large")
    receipt = store.deletions.texts([gone], now=NOW)
    assert receipt.adapters == ["s"] and not receipt.replaced and served(store, "small") is None


def test_what_an_adapter_that_could_not_tell_has_tried_is_new_and_goes_on_at_the_switch_back(store: Store) -> None:
    learn(store, "small", "unsure", "one", outcome=Outcome.TOO_LITTLE)
    assert new(store) == {"one"} and store.texts.counts().new_words == 0
    store.texts.use_model("large")
    assert store.texts.counts().new_words == 1
    learn(store, "large", "l")
    store.texts.use_model("small")
    assert new(store) == {"one"} and store.texts.counts().new_words == 0
    add_texts(store, "two")
    assert start_job(store, model="small").parent == "unsure"


def test_what_was_rolled_back_stays_set_aside(store: Store) -> None:
    learn(store, "small", "s", "one")
    roll_back(store, "small")
    store.texts.use_model("large")
    store.texts.use_model("small")
    add_texts(store, "two")
    assert words_of(store, start_job(store, model="small")) == {"two"}


def test_what_was_given_to_a_job_after_it_was_learned_is_new_once_that_adapter_is_lost(store: Store) -> None:
    [gone] = add_texts(store, "secret")
    learn(store, "small", "s", "one")
    learn_beside(store, "beside", "one")
    store.deletions.texts([gone], now=NOW)
    assert new(store) == {"one"}
    store.texts.use_model("large")
    store.texts.use_model("small")
    assert new(store) == {"one"}


def test_each_model_holds_out_by_its_own_jobs(store: Store) -> None:
    add_texts(store, *(f"note {number} of mine" for number in range(20)))
    notes = [text.text for text in all_texts(store)]
    job = learn(store, "small", "s")
    held_out = {text.id for text in store.texts.of_job(job.id) if text.held_out}
    beside = learn_beside(store, "t", *notes)
    assert held_out & {text.id for text in store.texts.of_job(beside.id) if not text.held_out}
    store.texts.use_model("large")
    assert {text.id for text in store.texts.of_job(start_job(store, model="large").id) if text.held_out} == held_out


def test_a_deletion_that_starts_a_waiting_job_of_another_model_again_leaves_its_old_texts_old(store: Store) -> None:
    learn(store, "small", "s", "old")
    [gone] = add_texts(store, "secret", "new")[:1]
    waiting = start_job(store, model="small")
    store.jobs.pause(waiting.id, reasons=["dark"], now=NOW)
    before = {text.text: text.learned_in for text in store.texts.of_job(waiting.id)}
    store.texts.use_model("large")
    store.deletions.texts([gone], now=NOW)
    del before["secret"]
    assert {text.text: text.learned_in for text in store.texts.of_job(waiting.id)} == before


def test_jobs_of_other_models_come_last_and_are_not_returned_for_a_request(store: Store) -> None:
    small = store.jobs.add(new_job(model="small"))
    large = store.jobs.add(new_job(model="large", immediate=False, created_at=NOW.replace(minute=30)))
    assert [job.id for job in store.jobs.open()] == [small.id, large.id]
    store.texts.use_model("large")
    assert [job.id for job in store.jobs.open()] == [large.id, small.id]
    assert store.jobs.add(new_job(model="large"), proceed=True).id == large.id
    assert store.jobs.add(new_job(model="small"), proceed=True).id == small.id


def test_without_a_switch_nothing_is_written(store: Store, path: Path) -> None:
    learn(store, "small", "s", "one")
    with closing(connect(path)) as raw:
        before = raw.execute("PRAGMA data_version").fetchall()  # changes when another connection writes
        store.texts.use_model("small")
        assert raw.execute("PRAGMA data_version").fetchall() == before
        store.texts.use_model("large")
        assert raw.execute("PRAGMA data_version").fetchall() != before
