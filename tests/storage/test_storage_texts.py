"""The owner's texts in a real database file: stored once, paged, counted, deleted for good."""

import sqlite3
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError

from pocketllm.storage.errors import NotFound
from pocketllm.storage.repositories.texts import MIN_REPLAY_WORDS, NewText, is_held_out
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, Kind, Outcome, Report
from pocketllm.storage.words import count_words
from tests.support.daemon.workers import NOW, delete_text
from tests.support.stored import add_texts, all_texts, new_texts, on_disk, start_job, succeed, words_of


def learn(store: Store, job: Job) -> None:
    """End a running job without a proof."""
    succeed(store, job, outcome=Outcome.NO_PROOF)


def test_the_same_text_again_is_one_and_keeps_its_time(store: Store) -> None:
    first = store.texts.add(new_texts("a", "b", "a"), now=NOW)
    assert (first.created, first.duplicates) == (2, 1)
    assert first.ids[0] == first.ids[2] != first.ids[1]
    later = store.texts.add(new_texts("c", "a"), now=NOW + timedelta(hours=1))
    assert (later.created, later.duplicates, later.ids[1]) == (1, 1, first.ids[0])
    assert store.texts.get(first.ids[0]).created_at == NOW
    assert store.texts.counts().texts == 3


def test_no_text_passes_for_another(store: Store) -> None:
    texts = [
        NewText(source="a", text="\0b"),
        NewText(source="a\0", text="b"),
        NewText(source="a", text="b\0c"),
        NewText(source="a\0b", text="c"),
        NewText(source="", text="a"),
        NewText(source="a", text=""),
        NewText(source="s", text="a"),
        NewText(source="s", text="ab"),
        NewText(source="s", text="a", completion=""),
        NewText(source="s", text="a", completion="b"),
        NewText(source="s", text="a", label="b"),
        NewText(source="s", text="a", completion="b\0c"),
        NewText(source="s", text="a\0b", completion="c"),
        NewText(source="s", text="a", completion="b\0label\0c"),
        NewText(source="s", text="acompletion\0b", label="c"),
    ]
    assert store.texts.add(texts, now=NOW).created == len(texts)


def test_a_text_comes_back_as_it_was_given(store: Store) -> None:
    white_space, scripts, megabyte = " tabs\tand\r\nlines \u2028", "naïve 日本語 مرحبا 👩‍👩‍👧", "long " * 200_000
    for text in (white_space, scripts, "a\0b", "'); DROP TABLE text; --", megabyte):
        [identity] = store.texts.add(new_texts(text, source=text[:20]), now=NOW).ids
        row = store.texts.get(identity)
        assert (row.text, row.source, row.created_at, row.learned_in) == (text, text[:20], NOW, None)


def test_more_texts_than_a_statement_takes_values_and_none_at_all(store: Store) -> None:
    texts = new_texts(*map(str, range(2500)))
    assert store.texts.add(texts, now=NOW).created == 2500
    assert store.texts.add([*texts, *new_texts("one more")], now=NOW).created == 1
    assert store.texts.add([], now=NOW).ids == ()


def test_when_one_text_cannot_be_stored_none_is(store: Store, tmp_path: Path) -> None:
    add_texts(store, "before")
    with closing(sqlite3.connect(tmp_path / "pocketllm.db")) as raw:
        raw.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON text WHEN NEW.text = '700' BEGIN SELECT RAISE(ABORT, 'no'); END"
        )
    with pytest.raises(IntegrityError, match="no"):
        add_texts(store, *map(str, range(1000)))
    assert [text.text for text in all_texts(store)] == ["before"]


def test_kinds_of_text_come_back_as_they_were_given(store: Store) -> None:
    examples = [
        NewText(text="one two", source="s"),
        NewText(text="one two", source="s", completion=" three\0"),
        NewText(text="one two", source="s", label="positive"),
    ]
    rows = [store.texts.get(identity) for identity in store.texts.add(examples, now=NOW).ids]
    assert [(row.kind, row.text, row.completion, row.label, row.words) for row in rows] == [
        (Kind.PLAIN, "one two", None, None, 2),
        (Kind.COMPLETION, "one two", " three\0", None, 3),
        (Kind.LABELLED, "one two", None, "positive", 2),
    ]
    assert store.texts.counts().new_words == 5, "a job learns no text with a label"
    assert store.texts.labelled(None) == {"positive": ["one two"]}
    assert store.texts.labelled(["negative"]) == {}


def test_about_one_text_in_ten_is_held_out(store: Store) -> None:
    held_out = [is_held_out(text) for text in new_texts(*(f"text {number}" for number in range(5000)))]
    assert 0.085 < sum(held_out) / len(held_out) < 0.115


def test_a_text_is_held_out_on_every_device_or_on_none(store: Store) -> None:
    """Its id depends on the source, which is another one where the folder has another name."""
    texts = [f"text {number}" for number in range(60)]
    here, there = add_texts(store, *texts), store.texts.add(new_texts(*texts, source="other device"), now=NOW).ids
    held_out = [[store.texts.get(identity).held_out for identity in ids] for ids in (here, there)]
    assert held_out[0] == held_out[1] and any(held_out[0])
    completed = [NewText(text="a prompt", completion=f"answer {number}", source="test") for number in range(60)]
    assert any(map(is_held_out, completed)) and not all(map(is_held_out, completed))


def test_which_texts_are_held_out_never_changes(store: Store) -> None:
    ids = add_texts(store, *(f"text {number}" for number in range(60)))
    held_out = [number for number, identity in enumerate(ids) if store.texts.get(identity).held_out]
    assert ids[0] == "text-d416183788fe3aad9871ff4f"
    assert held_out == [9, 27]


def test_a_text_that_comes_in_between_does_not_shift_the_pages(store: Store) -> None:
    for second in range(4):
        add_texts(store, f"text {second}", after_seconds=second)
    first = store.texts.page(after=None, limit=2)
    add_texts(store, "newest", after_seconds=9)
    second_page = store.texts.page(after=first[-1].id, limit=2)
    assert [text.text for text in first + second_page] == ["text 3", "text 2", "text 1", "text 0"]


def test_what_is_not_there_is_named(store: Store) -> None:
    with pytest.raises(NotFound, match=r"'text-none'.*GET /texts"):
        store.texts.get("text-none")
    with pytest.raises(NotFound, match="'text-none'"):
        store.texts.page(after="text-none", limit=1)
    with pytest.raises(NotFound, match="'text-none'"):
        delete_text(store, "text-none")


@pytest.mark.parametrize("folded", [False, True], ids=["from the log", "from the file"])
def test_a_deleted_texts_bytes_are_gone_and_those_of_reports_on_it(path: Path, folded: bool) -> None:
    store = Store.open(path)
    add_texts(store, *(f"filler {number} " * number for number in range(60)))
    secrets = add_texts(store, *("xyzzy " * repeats for repeats in (1, 20, 3000)), source="plugh")
    # More text and a change of the row: pages are split, and rows move.
    add_texts(store, *(f"more {number} " * number for number in range(60)))
    for repeats in (1, 3000, 1):
        job = start_job(store)
        report = Report(job_id=job.id, numbers={}, content={"completions": ["quux " * repeats]})
        succeed(store, job, outcome=Outcome.NO_PROOF, report=report)
    if folded:
        store.close()
        store = Store.open(path)
    words = (b"xyzzy", b"plugh", b"quux", b"filler 59")
    assert all(word in on_disk(path.parent) for word in words)
    for secret in secrets:
        delete_text(store, secret)
    assert [word for word in words if word in on_disk(path.parent)] == [b"filler 59"]
    store.close()


def test_a_deleted_text_is_gone_and_only_that_one_and_is_new_when_it_comes_back(store: Store) -> None:
    identity, kept = add_texts(store, "one two", "kept")
    learn(store, start_job(store))
    running = start_job(store)
    delete_text(store, identity)
    assert [text.id for text in all_texts(store)] == [kept]
    assert add_texts(store, "one two") == (identity,)
    assert store.texts.counts().new_words == 2
    assert words_of(store, running) == {"kept"}


def test_words_are_new_until_a_job_has_learned_them(store: Store) -> None:
    assert (store.texts.counts().texts, store.texts.counts().new_words) == (0, 0)
    [first] = add_texts(store, "one two three")
    job = start_job(store)
    [second] = add_texts(store, "four five")
    assert store.texts.counts().new_words == 5
    learn(store, job)
    assert (store.texts.counts().texts, store.texts.counts().new_words) == (2, 2)
    assert (store.texts.get(first).learned_in, store.texts.get(second).learned_in) == (job.id, None)
    delete_text(store, second)
    assert (store.texts.counts().texts, store.texts.counts().new_words) == (1, 0)


def test_a_text_stays_learned_in_the_job_that_was_first(store: Store) -> None:
    [identity] = add_texts(store, "one")
    first, second = start_job(store), start_job(store)
    learn(store, first)
    learn(store, second)
    assert store.texts.get(identity).learned_in == first.id


def test_what_is_new_to_a_job_stays_new_to_it(store: Store) -> None:
    [old] = add_texts(store, "old")
    earlier = start_job(store)
    learn(store, earlier)
    [new] = add_texts(store, "new", after_seconds=1)
    job, other = start_job(store), start_job(store)
    learn(store, other)
    assert store.texts.get(new).learned_in == other.id
    assert [(text.id, text.learned_in) for text in store.texts.of_job(job.id)] == [(old, earlier.id), (new, None)]


def test_new_words_beside_a_job_are_those_of_other_texts_whenever_they_came(store: Store) -> None:
    add_texts(store, "learned by now")
    learn(store, start_job(store))
    add_texts(store, "of the job")
    job = start_job(store)
    for second in (-9, 9):
        add_texts(store, f"two {second}", after_seconds=second)
    assert store.texts.counts(beside=job.id).new_words == 4
    assert store.texts.counts().new_words == 7


def test_words_are_counted_in_any_script() -> None:
    words = {
        "": 0,
        "one": 1,
        " one\n\ttwo  three ": 3,
        "吾輩は猫である。名前はまだ無い。": 6,  # 48 bytes, and no spaces
        "x" * 80: 10,
    }
    assert {text: count_words(text) for text in words} == words


def test_a_jobs_texts_come_oldest_first(store: Store) -> None:
    for second in (3, 1, 2):
        add_texts(store, f"at {second}", after_seconds=second)
    assert [text.text for text in store.texts.of_job(start_job(store).id)] == ["at 1", "at 2", "at 3"]


class TestReplay:
    """What a job learns from when there is old text, too."""

    def old_and_new(self, store: Store, *, old: int, new_words: int) -> tuple[set[str], set[str]]:
        """Ids of learned texts of 100 words each, and of one new text; a job has learned the former."""
        known = set(add_texts(store, *(f"{number} " + "old " * 99 for number in range(old))))
        learn(store, start_job(store))
        return known, set(add_texts(store, "new " * new_words))

    @pytest.mark.parametrize(("new_words", "replayed"), [(10, MIN_REPLAY_WORDS // 100), (8000, 80)])
    def test_as_many_old_words_as_new_ones_but_no_fewer_than_the_least(
        self, store: Store, new_words: int, replayed: int
    ) -> None:
        known, fresh = self.old_and_new(store, old=200, new_words=new_words)
        job = start_job(store)
        chosen = {text.id for text in store.texts.of_job(job.id)}
        assert fresh <= chosen
        assert len(chosen & known) == replayed
        assert job.texts == len(chosen)

    def test_little_old_text_comes_back_whole(self, store: Store) -> None:
        known, fresh = self.old_and_new(store, old=3, new_words=10)
        assert {text.id for text in store.texts.of_job(start_job(store).id)} == known | fresh

    def test_a_tenth_of_what_comes_back_is_held_out_so_that_forgetting_is_seen(self, store: Store) -> None:
        known, _ = self.old_and_new(store, old=800, new_words=10)
        for _ in range(5):
            held_out = [name for name in known if store.texts.get(name).held_out]
            chosen = {text.id for text in store.texts.of_job(start_job(store).id)}
            assert len(chosen.intersection(held_out)) == MIN_REPLAY_WORDS // 100 // 10

    def test_each_job_draws_others(self, store: Store) -> None:
        known, _ = self.old_and_new(store, old=200, new_words=10)
        one, other = ({text.id for text in store.texts.of_job(start_job(store).id)} & known for _ in range(2))
        assert one != other

    def test_where_nothing_is_new_everything_is_learned_again(self, store: Store) -> None:
        known = set(add_texts(store, *(f"{number} " + "old " * 99 for number in range(80))))
        learn(store, start_job(store))
        assert {text.id for text in store.texts.of_job(start_job(store).id)} == known


def test_counting_reads_no_texts(store: Store) -> None:
    """Each idle tick and GET /status count; of long texts that would read megabytes."""
    add_texts(store, "one", "two")
    asked = list[tuple[str, tuple[object, ...]]]()

    def note(_connection: object, _cursor: object, statement: str, parameters: tuple[object, ...], *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(store._database.engine, "before_cursor_execute", note)
    store.texts.counts()
    with closing(sqlite3.connect(store._database.path)) as raw:
        plans = [row[3] for one in asked for row in raw.execute(f"EXPLAIN QUERY PLAN {one[0]}", one[1])]
    reads = [plan for plan in plans if plan.split()[1] == "text"]
    assert reads and all("USING COVERING INDEX" in plan for plan in reads), plans
