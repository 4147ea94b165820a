"""What a job holds out of little text, and what follows when that was too little to tell."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from pocketllm.storage.repositories.texts import MAX_HELD_OUT_SHARE, MIN_HELD_OUT, NewText, is_held_out, text_id
from pocketllm.storage.store import Store
from pocketllm.storage.tables import BASE, Adapter, Job, Outcome, Text
from tests.support.daemon.workers import NOW, new_job

WORDS = 50


class Nights:
    """A store, and jobs in a row."""

    def __init__(self, store: Store) -> None:
        self.store, self.hours = store, count(1)
        self.now = NOW

    def write(self, number: int, *, first: int = 0) -> list[str]:
        texts = [f"note {first + place} " + "word " * (WORDS - 2) for place in range(number)]
        return list(self.store.texts.add([NewText(text=text, source="s") for text in texts], now=self.now).ids)

    def start(self, *, texts: Sequence[NewText] | None = None, **given: object) -> Job:
        self.now = NOW + timedelta(hours=next(self.hours))
        job = self.store.jobs.add(new_job(created_at=self.now, **given), texts=texts)
        return self.store.jobs.start(job.id, now=self.now)

    def end(self, job: Job, outcome: Outcome) -> Adapter:
        name = f"of-{job.id}"
        row = Adapter(id=name, job_id=job.id, model="tiny", parent=job.parent, outcome=outcome, created_at=self.now)
        self.now = NOW + timedelta(hours=next(self.hours))
        self.store.jobs.succeed(job.id, adapter=row, publish=outcome is Outcome.LEARNED, now=self.now)
        return self.store.adapters.get(name)

    def held_out(self, job: Job) -> set[str]:
        return {text.id for text in self.store.texts.of_job(job.id) if text.held_out}

    def trained(self, job: Job) -> set[str]:
        return {text.id for text in self.store.texts.of_job(job.id) if not text.held_out}

    @property
    def new_words(self) -> int:
        return self.store.texts.counts().new_words


@pytest.fixture
def nights(store: Store) -> Nights:
    return Nights(store)


def words(rows: list[Text]) -> int:
    return sum(row.words for row in rows)


def test_of_little_text_more_is_held_out(tmp_path: Path) -> None:
    for texts, held_out in {1: 0, 2: 0, 3: 1, 5: 2, 8: 3, 10: 4, 20: 8, 40: 12}.items():
        with closing(Store.open(tmp_path / f"{texts}.db")) as store:
            nights = Nights(store)
            ids = nights.write(texts)
            found = nights.held_out(nights.start())
            rows = store.texts.page(after=None, limit=99)
            always = {name for name in ids if store.texts.get(name).held_out}
        assert len(found) == max(held_out, len(always) if len(always) < texts else 0), texts
        assert always <= found or not found
        most = max(MAX_HELD_OUT_SHARE, len(always) / texts) * words(rows)
        assert words([row for row in rows if row.id in found]) <= most


def test_of_much_text_a_tenth_is(nights: Nights) -> None:
    ids = nights.write(300)
    assert nights.held_out(nights.start()) == {name for name in ids if nights.store.texts.get(name).held_out}


def test_a_long_text_is_not_held_out_of_a_few_short_ones(nights: Nights) -> None:
    [long] = nights.store.texts.add([NewText(text="long " * 5000, source="s")], now=NOW).ids
    short = set(nights.write(4))
    assert not nights.store.texts.get(long).held_out
    assert nights.held_out(nights.start()) == short


def test_which_are_depends_on_the_texts_alone(nights: Nights) -> None:
    nights.write(40)
    one, other = nights.start(), nights.start()
    assert nights.held_out(one) == nights.held_out(other) and len(nights.held_out(one)) == MIN_HELD_OUT


def test_a_file_of_a_job_is_held_out_as_it_says(nights: Nights) -> None:
    """And what only the content says of a job's own texts stays so."""
    texts = [NewText(text=f"{number} one", source="f", held_out=number > 6) for number in range(8)]
    job = nights.start(tuning={}, texts=texts)
    assert nights.held_out(job) == {text_id(text) for text in texts[7:]}
    plain = [NewText(text=f"{number} two", source="f") for number in range(30)]
    job = nights.start(tuning={}, texts=plain)
    assert nights.held_out(job) == {text_id(text) for text in plain if is_held_out(text)}


def test_an_undecided_jobs_texts_stay_new_and_the_next_job_goes_on_from_it(nights: Nights) -> None:
    first_texts = set(nights.write(8))
    first = nights.start()
    candidate = nights.end(first, Outcome.TOO_LITTLE)
    assert nights.store.adapters.serving("tiny") is None
    assert all(row.learned_in is None for row in nights.store.texts.page(after=None, limit=99))
    assert nights.store.jobs.events(first.id)[-1].message == (
        f"too little text to tell yet; adapter {candidate.id} is kept, not served: its texts stay new, and the next "
        "job on them starts from it"
    )
    second_texts = set(nights.write(8, first=8))
    second = nights.start()
    assert (second.parent, second.compared_with) == (candidate.id, BASE)
    assert nights.trained(second) | nights.held_out(second) == first_texts | second_texts
    served = nights.end(second, Outcome.LEARNED)
    assert nights.store.adapters.serving("tiny") == served
    assert {row.learned_in for row in nights.store.texts.page(after=None, limit=99)} == {second.id}
    assert nights.start().parent == served.id


def test_evidence_adds_up_and_is_never_what_the_candidate_was_trained_on(nights: Nights) -> None:
    trained, held_out = set[str](), set[str]()
    for night in range(4):
        nights.write(6, first=6 * night)
        job = nights.start()
        assert not nights.held_out(job) & trained
        assert len(nights.held_out(job)) >= min(MIN_HELD_OUT, len(held_out) + 1)
        trained, held_out = trained | nights.trained(job), nights.held_out(job)
        nights.end(job, Outcome.TOO_LITTLE)


def test_a_single_text_that_was_trained_on_to_its_last_blocks_is_no_evidence_later(nights: Nights) -> None:
    alone = (NewText(text=f"{number} alone", source="s") for number in count())
    [single] = nights.store.texts.add([next(filter(is_held_out, alone))], now=NOW).ids
    first = nights.start()
    assert nights.trained(first) == {single}
    nights.end(first, Outcome.TOO_LITTLE)
    nights.write(9)
    assert single in nights.trained(nights.start())


def test_what_was_held_out_more_is_measured_as_old_text_until_there_is_enough(nights: Nights) -> None:
    nights.write(8)
    first = nights.start()
    nights.end(first, Outcome.LEARNED)
    nights.write(8, first=8)
    second = nights.start()
    assert nights.held_out(first) <= nights.held_out(second) and nights.trained(first) <= nights.trained(second)
    nights.end(second, Outcome.LEARNED)
    nights.write(60, first=100)
    nights.end(nights.start(), Outcome.LEARNED)
    known = {row.id for row in nights.store.texts.page(after=None, limit=99)}
    nights.write(8, first=500)
    last = nights.start()
    measured = nights.held_out(last) & known
    assert len(measured) * WORDS == 500
    assert nights.trained(last) & known == {
        name for name in known - measured if not nights.store.texts.get(name).held_out
    }


class TestNewWords:
    """No loop: what a job could not tell of does not ask for the next one."""

    def test_only_newer_ones_count(self, nights: Nights) -> None:
        nights.write(8)
        job = nights.start()
        nights.write(2, first=8)  # while it runs
        assert nights.new_words == 10 * WORDS
        nights.end(job, Outcome.TOO_LITTLE)
        assert nights.new_words == 2 * WORDS
        nights.write(3, first=10)
        assert nights.new_words == 5 * WORDS

    def test_also_after_a_job_of_another_kind(self, nights: Nights) -> None:
        nights.write(8)
        nights.end(nights.start(), Outcome.TOO_LITTLE)
        aside = nights.start(tuning={}, texts=[NewText(text="own", source="f")], start_from=BASE)
        nights.end(aside, Outcome.NO_PROOF)
        assert nights.new_words == 0


@contextmanager
def undecided(nights: Nights) -> Iterator[tuple[Adapter, Adapter, Job]]:
    """A served adapter, a candidate that started from it, and its job."""
    nights.write(8)
    served = nights.end(nights.start(), Outcome.LEARNED)
    nights.write(8, first=8)
    job = nights.start()
    yield served, nights.end(job, Outcome.TOO_LITTLE), job


class TestStartingFromWhatIsServed:
    """Where the candidate is no longer what the next job should go on from."""

    def test_after_another_adapter_is_served(self, nights: Nights) -> None:
        with undecided(nights):
            nights.store.adapters.roll_back("tiny", usable=lambda _: True, now=nights.now)
        assert nights.start().parent is None
        assert nights.new_words == 8 * WORDS

    def test_after_the_owner_has_rolled_the_candidate_back(self, nights: Nights) -> None:
        with undecided(nights) as (served, candidate, _):
            nights.store.adapters.serve(candidate.id, usable=lambda _: True, now=nights.now)
            nights.store.adapters.roll_back("tiny", usable=lambda _: True, now=nights.now)
        assert nights.start().parent == served.id

    def test_after_one_of_its_texts_was_deleted(self, nights: Nights) -> None:
        with undecided(nights) as (served, _, job):
            nights.store.deletions.texts([min(nights.held_out(job))], now=nights.now)
        next_job = nights.start()
        assert next_job.parent in (served.id, None)  # the base, if the served one has seen the text as well

    def test_after_a_job_from_it_failed(self, nights: Nights) -> None:
        with undecided(nights) as (served, candidate, _):
            failed = nights.start()
        assert failed.parent == candidate.id
        nights.store.jobs.fail(failed.id, error="its files are gone", now=nights.now)
        assert nights.start().parent == served.id

    def test_for_another_mode(self, nights: Nights) -> None:
        with undecided(nights):
            assert nights.start(mode="full").parent is None

    def test_by_name(self, nights: Nights) -> None:
        with undecided(nights) as (served, _, _):
            job = nights.start(tuning={}, start_from=served.id)
        assert job.parent == served.id


def test_rolling_back_leaves_out_what_was_never_served(nights: Nights) -> None:
    with undecided(nights) as (served, candidate, _):
        nights.write(8, first=16)
        second = nights.start()
    assert second.parent == candidate.id
    newest = nights.end(second, Outcome.LEARNED)
    change = nights.store.adapters.roll_back("tiny", usable=lambda _: True, now=nights.now)
    assert (change.was, change.serving) == (newest.id, served.id)


def test_a_named_jobs_texts_are_learned_whatever_it_tells(nights: Nights) -> None:
    own = [NewText(text="own words", source="f")]
    job = nights.start(tuning={}, texts=own, start_from=BASE)
    nights.end(job, Outcome.TOO_LITTLE)
    assert nights.store.texts.get(text_id(own[0])).learned_in == job.id
