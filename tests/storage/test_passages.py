"""Full-text search in a real database file: what is found, in which order, and what is gone after a deletion."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pocketllm.storage.errors import DatabaseUnusable, SearchIndexDamaged
from pocketllm.storage.repositories.passages import PASSAGE_WORDS, passages_of
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from tests.support.daemon.workers import NOW
from tests.support.stored import add_texts

LONG = "\n".join(f"Line {number} is about boats and the {number} boards that they have." for number in range(60))


def found(store: Store, query: str, *, limit: int = 5) -> list[str]:
    return [passage.words for passage in store.passages.search(query, limit=limit)]


def test_the_passage_with_the_rarest_words_is_the_first(store: Store) -> None:
    for _ in range(2):  # what comes twice is found once
        add_texts(store, "The ferry leaves at nine.", "The ferry is late.", "The ferry to Zennor leaves at ten.")
    assert found(store, "When does the ferry to Zennor leave?")[0] == "The ferry to Zennor leaves at ten."
    assert (len(found(store, "ferry")), len(found(store, "ferry", limit=2))) == (3, 2)


def test_of_a_long_text_the_passage_is_found(store: Store) -> None:
    [identity] = add_texts(store, f"{LONG}\nThe key lies under the third pot.\n{LONG}")
    [best] = store.passages.search("under which pot lies the key", limit=1)
    assert best.text.id == identity and "third pot" in best.words and len(best.words.split()) <= PASSAGE_WORDS


def test_accents_and_capitals_do_not_count(store: Store) -> None:
    add_texts(store, "Das Café heißt Älskling.")
    assert found(store, "CAFE") == found(store, "alskling") == ["Das Café heißt Älskling."]


def test_completions_are_searched_too(store: Store) -> None:
    store.texts.add([NewText(text="Who has the watch?", completion="Anna until four.", source="chat")], now=NOW)
    assert found(store, "Anna") == ["Who has the watch?\nAnna until four."]


def test_any_query_is_only_words(store: Store) -> None:
    add_texts(store, "Wind west, glass rising.")
    for query in ("", " ", "?!", '"', "AND", "a* OR b", "words:x", "-x", "x" * 9000, "\0"):
        assert found(store, query) == [], query


@given(text=st.text(max_size=2000), completion=st.none() | st.text(max_size=50))
def test_passages_hold_every_word_once(text: str, completion: str | None) -> None:
    passages = passages_of(text, completion)
    assert " ".join(passages).split() == f"{text}\n{completion or ''}".split()
    assert all(0 < len(passage.split()) <= PASSAGE_WORDS for passage in passages)


@pytest.mark.parametrize("others", [0, 300])
def test_the_words_of_a_deleted_text_are_in_no_file(store: Store, tmp_path: Path, others: int) -> None:
    add_texts(store, *(f"{LONG} {number}" for number in range(others)))
    secret, kept = add_texts(store, f"{LONG} quillfeather {LONG}", "kept quillpen")
    assert found(store, "quillfeather")
    store.deletions.texts([secret], now=NOW)
    store.deletions.erase(store.deletions.pending())
    assert found(store, "quillfeather") == [] and found(store, "quillpen") == ["kept quillpen"]
    assert store.texts.get(kept)
    assert b"quillfeather" not in b"".join(file.read_bytes() for file in tmp_path.iterdir())
    with closing(sqlite3.connect(tmp_path / "pocketllm.db")) as raw:  # FTS5 compresses words that begin alike
        raw.execute("CREATE VIRTUAL TABLE temp.words USING fts5vocab(main, passage, row)")
        terms = {term for (term,) in raw.execute("SELECT term FROM words")}
    assert "quillpen" in terms and "quillfeather" not in terms


def test_a_sender_cannot_choose_texts_that_share_a_place_in_the_index(store: Store) -> None:
    """The first 48 bits of these two texts' ids are the same; such a pair is found in a minute."""
    first, second = add_texts(store, "a 1539352", "a 20086129", source="notes")
    assert first[:17] == second[:17] and first != second
    store.deletions.texts([first], now=NOW)
    assert found(store, "1539352") == [] and found(store, "20086129") == ["a 20086129"]
    add_texts(store, "a 1539352", source="notes")
    assert found(store, "1539352") == ["a 1539352"]
    store.deletions.texts([second], now=NOW)
    assert found(store, "20086129") == []


@pytest.mark.parametrize("use", ["search", "delete", "start"])
def test_a_damaged_index_is_written_anew_from_the_texts(store: Store, tmp_path: Path, use: str) -> None:
    ids = add_texts(store, *(f"{LONG} quillpen{number}" for number in range(20)))
    with closing(sqlite3.connect(tmp_path / "pocketllm.db")) as raw:
        raw.execute("UPDATE passage_data SET block = zeroblob(9) WHERE id > 10")
        raw.commit()
    if use == "start":
        Store.open(tmp_path / "pocketllm.db").close()
    elif use == "search":
        with pytest.raises(SearchIndexDamaged, match="Try again"):
            found(store, "boats")
    else:
        with pytest.raises(SearchIndexDamaged, match="Try again"):
            store.deletions.texts([ids[7]], now=NOW)
        assert store.texts.counts().texts == len(ids)
        store.deletions.texts([ids[7]], now=NOW)
    assert len(found(store, "quillpen7")) == (use != "delete")
    assert len(found(store, "quillpen8")) == 1


def test_a_damaged_file_is_told_once_where_the_index_is_damaged_too(tmp_path: Path) -> None:
    path = tmp_path / "pocketllm.db"
    store = Store.open(path)
    add_texts(store, *(f"{LONG} {number}" for number in range(300)))
    store.close()
    content = bytearray(path.read_bytes())
    for page in range(4096, len(content), 2 * 4096):
        content[page : page + 512] = b"\xff" * 512
    path.write_bytes(content)
    with pytest.raises(DatabaseUnusable, match="pocketllm restore"):
        Store.open(path)
