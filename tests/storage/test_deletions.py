"""Deletions in a real database file: what is left in it, how much room they take, and what goes with a text."""

import random
from pathlib import Path

import pytest
from sqlmodel import update

from pocketllm.storage.errors import NotFound, StorageTrouble
from pocketllm.storage.repositories.deletions import PORTION_WORDS
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Text
from tests.support.daemon.workers import NOW
from tests.support.faults import no_room
from tests.support.stored import add_texts, all_texts, new_texts, served, start_job, succeed, words_of


def learn(store: Store, name: str) -> None:
    """Let a job learn what is new; its adapter is served."""
    succeed(store, start_job(store, id=name), f"adapter-{name}")


def long_text(name: str) -> str:
    """Two of them are more than a portion."""
    return f"{name} " * (PORTION_WORDS * 2 // 3)


def test_no_page_keeps_a_copy_of_what_was_deleted(store: Store, tmp_path: Path) -> None:
    """SQLite moves cells from page to page, and leaves copies in the gaps; secure_delete overwrites the cells alone."""
    rng = random.Random(1)  # which leaves two copies until the pages are written anew
    words = [f"w{number}" for number in range(500)]
    texts = [f"secret{number:05d}x {' '.join(rng.choices(words, k=rng.randint(5, 60)))}" for number in range(3000)]
    ids = [identity for start in range(0, 3000, 100) for identity in add_texts(store, *texts[start : start + 100])]
    with store._database.write() as session:
        session.exec(update(Text).values(learned_in="job-123456789abc"))
    gone = rng.sample(range(3000), 300)
    for number in gone:
        store.deletions.texts([ids[number]], now=NOW)
    pending = store.deletions.pending()
    assert len(pending) == 300
    assert store.deletions.erase(pending) and store.deletions.pending() == []
    data = b"".join(file.read_bytes() for file in tmp_path.iterdir())
    assert [number for number in gone if b"secret%05dx" % number in data] == []
    assert store.texts.counts().texts == 2700


def test_a_deletion_needs_little_room_however_much_goes(store: Store, tmp_path: Path) -> None:
    """On a full disk, the log of one transaction for all of it would not fit."""
    ids = add_texts(store, *map(long_text, "abcdefgh"))
    store._database.truncate_log()
    with no_room((tmp_path / "pocketllm.db").stat().st_size):
        receipt = store.deletions.source("test", now=NOW)
    assert receipt.texts == len(ids) and store.texts.counts().texts == 0
    assert (tmp_path / "pocketllm.db-wal").stat().st_size == 0
    with pytest.raises(NotFound):
        store.deletions.source("test", now=NOW)


def test_what_fails_in_the_middle_is_done_by_the_next_try(store: Store, tmp_path: Path) -> None:
    add_texts(store, *map(long_text, "abcd"))
    store._database.truncate_log()
    with no_room(1 << 16), pytest.raises(StorageTrouble):
        store.deletions.source("test", now=NOW)
    assert (tmp_path / "pocketllm.db-wal").stat().st_size == 0
    left = store.texts.counts().texts
    assert left and store.deletions.source("test", now=NOW).texts == left


def test_portions_have_one_receipt(store: Store) -> None:
    add_texts(store, "kept", source="other")
    learn(store, "first")
    add_texts(store, long_text("a"), long_text("b"))
    learn(store, "second")
    add_texts(store, long_text("c"))
    learn(store, "third")
    start_job(store, id="open")
    receipt = store.deletions.source("test", now=NOW)
    assert (receipt.texts, receipt.replaced, receipt.restarts) == (3, True, ["open"])
    assert receipt.adapters == ["adapter-second", "adapter-third"]
    assert store.deletions.pending() == [receipt]
    assert served(store) == "adapter-first"
    assert [event.kind for event in store.jobs.events("open")].count("began anew") == 1
    assert words_of(store, store.jobs.get("open", abbreviated=False)) == {"kept"}


def test_a_file_goes_with_the_first_of_its_texts(store: Store) -> None:
    """An app could read the deleted text in it, and have it learned again."""
    files = [
        store.files.add(owner="keyboard", filename=name, purpose="fine-tune", data=b"{}", now=NOW) for name in "abc"
    ]
    first, other = add_texts(store, "one", "two", source=files[0].id)
    add_texts(store, "three", source=files[1].id)
    store.deletions.texts([first], now=NOW)
    assert {file.id for file in store.files.all()} == {files[1].id, files[2].id}
    assert store.texts.get(other).text == "two"
    receipt = store.deletions.file(files[1].id, now=NOW)
    assert receipt.texts == 1 and [file.id for file in store.files.all()] == [files[2].id]
    assert store.deletions.file(files[2].id, now=NOW).texts == 0 and store.files.all() == []
    with pytest.raises(NotFound, match="no file"):
        store.deletions.file(files[2].id, now=NOW)


def test_an_apps_files_go_with_its_texts(store: Store) -> None:
    for owner in ("keyboard", "other"):
        store.files.add(owner=owner, filename="a", purpose="fine-tune", data=b"{}", now=NOW)
        store.texts.add(new_texts("shared", owner), now=NOW, owner=owner)
    assert store.deletions.app("keyboard", now=NOW).texts == 1
    assert {text.text for text in all_texts(store)} == {"shared", "other"}
    assert [file.owner for file in store.files.all()] == ["other"]
    assert store.deletions.app("other", now=NOW).texts == 2 and store.files.all() == []
    with pytest.raises(NotFound, match="no texts"):
        store.deletions.app("other", now=NOW)
