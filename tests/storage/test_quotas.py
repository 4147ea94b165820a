"""What an app may store, and how it is added up."""

from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text

from pocketllm.storage.errors import QuotaExceeded
from pocketllm.storage.repositories.quotas import ROW_BYTES, Quota
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from tests.support.daemon.workers import NOW


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(tmp_path / "pocketllm.db", Quota(texts_per_day=2, bytes=10_000))) as store:
        yield store


def add(store: Store, words: str, *, days: float = 0, completion: str | None = None) -> None:
    new = NewText(text=words, completion=completion, source="test")
    store.texts.add([new], now=NOW + timedelta(days=days), owner="notes")


def test_a_day_later_an_app_may_add_more(store: Store) -> None:
    add(store, "one")
    add(store, "two", days=0.5)
    with pytest.raises(QuotaExceeded, match=r"'notes' may add 2 texts in 24 hours .* Try again later"):
        add(store, "three", days=0.9)
    add(store, "three", days=1.1)
    assert store.texts.counts().texts == 3


def test_an_app_may_post_although_its_texts_are_dated_in_the_future(store: Store) -> None:
    for number in range(2):
        add(store, f"text {number}", days=9)
    add(store, "now")


def test_bytes_are_of_utf_8_with_the_completion_and_a_share_for_each_row(store: Store) -> None:
    add(store, "\N{SNOWMAN}" * 1000, completion="c" * (7000 - 2 * ROW_BYTES))
    with pytest.raises(QuotaExceeded):
        add(store, "d")
    store.deletions.app("notes", now=NOW)
    add(store, "d")


def test_a_quota_is_looked_up_in_an_index_alone(store: Store) -> None:
    plan = "EXPLAIN QUERY PLAN SELECT sum(bytes), count(*) FILTER (WHERE sent_at > 0) FROM text_owner WHERE owner = 'a'"
    with store._database.read() as session:
        [row] = session.connection().execute(text(plan)).all()
    assert "USING COVERING INDEX what_an_owner_has" in row.detail
