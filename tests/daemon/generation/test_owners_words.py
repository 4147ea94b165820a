"""The counts of the owner's words, which follow the database."""

from datetime import UTC, datetime
from pathlib import Path

from pocketllm.daemon.generation.owners_words import OwnersWords
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_they_follow_what_comes_in_and_what_goes(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "pocketllm.db")
    words = OwnersWords(tmp_path / "pocketllm.db")
    assert words.counts().beginning("", "Q") == ({}, 0.0)
    added = store.texts.add([NewText(text="Quillfeather rowed.", source="notes")], now=NOW)
    assert words.counts().beginning("", "Q")[0] == {"Quillfeather": 1}
    messages = [{"role": "user", "content": "Quiet?"}, {"role": "assistant", "content": "Quince."}]
    others = [
        NewText(text="Quoted by others", completion="Quite so.", source="chat"),
        NewText(text="user: Quiet?", messages=messages, source="chat"),
        NewText(text="Quotes of a label", label="letters", source="labels"),
    ]
    store.texts.add(others, now=NOW)
    assert words.counts().beginning("", "Q")[0].keys() == {"Quillfeather", "Quite", "Quince"}
    store.deletions.texts(added.ids, now=NOW)
    assert words.counts().beginning("", "Q")[0].keys() == {"Quite", "Quince"}
    quay = store.texts.add([NewText(text="Quay", source="notes")], now=NOW)
    store.deletions.texts(store.texts.add([NewText(text="Queen", source="notes")], now=NOW).ids, now=NOW)
    assert words.counts().beginning("", "Q")[0].keys() == {"Quite", "Quince", "Quay"}
    store.deletions.texts(quay.ids, now=NOW)
    store.texts.add([NewText(text="Quoin", source="notes")], now=NOW)  # in the row of the deleted one
    assert words.counts().beginning("", "Q")[0].keys() == {"Quite", "Quince", "Quoin"}
    words.close()
    store.close()
