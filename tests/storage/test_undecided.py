"""What a job holds out of little text, and what follows when that was too little to tell."""

from contextlib import closing
from datetime import timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from pocketllm.storage.repositories.texts import MAX_HELD_OUT_SHARE, MIN_HELD_OUT, NewText, is_held_out, text_id
from pocketllm.storage.store import Store
from pocketllm.storage.tables import BASE, CANDIDATE, Adapter, Job, Outcome
from tests.support.daemon.workers import NOW
from tests.support.stored import add_texts, all_texts, new_texts, roll_back, serve, served, start_job, succeed

WORDS = 50


class Nights:
    """A store, and jobs in a row."""

    def __init__(self, store: Store) -> None:
        self.store, self.hours = store, count(1)
        self.now = NOW

    def write(self, number: int, *, first: int = 0) -> tuple[str, ...]:
        return add_texts(self.store, *(f"note {first + place} " + "word " * (WORDS - 2) for place in range(number)))

    def start(self, **given: Any) -> Job:
        self.now = NOW + timedelta(hours=next(self.hours))
        return start_job(self.store, now=self.now, **given)

    def end(self, job: Job, outcome: Outcome) -> Adapter:
        self.now = NOW + timedelta(hours=next(self.hours))
        return succeed(self.store, job, outcome=outcome, now=self.now)

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


def test_a_tenth_of_the_text_is_held_out_and_of_little_text_more(tmp_path: Path) -> None:
    for texts, held_out in {1: 0, 2: 1, 3: 1, 5: 2, 8: 4, 10: 5, 20: 10, 40: 12, 300: 0}.items():  # of 300, a tenth
        with closing(Store.open(tmp_path / f"{texts}.db")) as store:
            nights = Nights(store)
            ids = nights.write(texts)
            found = nights.held_out(nights.start())
            words = {row.id: row.words for row in all_texts(store)}
            always = {name for name in ids if store.texts.get(name).held_out}
        assert len(found) == max(held_out, len(always) if len(always) < texts else 0), texts
        assert always <= found or not found
        most = max(MAX_HELD_OUT_SHARE, len(always) / texts) * sum(words.values())
        assert sum(words[name] for name in found) <= most


def test_a_long_text_is_not_held_out_of_a_few_short_ones(nights: Nights) -> None:
    [long] = add_texts(nights.store, "long " * 5000)
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
    plain = new_texts(*(f"{number} two" for number in range(30)))
    job = nights.start(tuning={}, texts=plain)
    assert nights.held_out(job) == {text_id(text) for text in plain if is_held_out(text)}


def test_an_undecided_jobs_texts_stay_new_and_the_next_job_goes_on_from_it(nights: Nights) -> None:
    first_texts = set(nights.write(8))
    first = nights.start()
    candidate = nights.end(first, Outcome.TOO_LITTLE)
    assert served(nights.store) is None
    assert all(row.learned_in is None for row in all_texts(nights.store))
    assert nights.store.jobs.events(first.id)[-1].message == (
        f"too little text to tell yet; adapter {candidate.id} is kept, not served: its texts stay new; newer text "
        "judges it again, and the next job starts from it"
    )
    second_texts = set(nights.write(8, first=8))
    second = nights.start()
    assert (second.parent, second.compared_with) == (candidate.id, BASE)
    assert nights.trained(second) | nights.held_out(second) == first_texts | second_texts
    newest = nights.end(second, Outcome.LEARNED)
    assert served(nights.store) == newest.id
    assert {row.learned_in for row in all_texts(nights.store)} == {second.id}
    assert nights.start().parent == newest.id


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
    alone = next(text for text in new_texts(*(f"{number} alone" for number in range(99))) if is_held_out(text))
    [single] = add_texts(nights.store, alone.text)
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
    known = {row.id for row in all_texts(nights.store)}
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
        aside = nights.start(tuning={}, texts=new_texts("own"), start_from=BASE)
        nights.end(aside, Outcome.NO_PROOF)
        assert nights.new_words == 0


def undecided(nights: Nights) -> tuple[Adapter, Adapter, Job]:
    """A served adapter, a candidate that started from it, and its job."""
    nights.write(8)
    old = nights.end(nights.start(), Outcome.LEARNED)
    nights.write(8, first=8)
    job = nights.start()
    return old, nights.end(job, Outcome.TOO_LITTLE), job


class TestStartingFromWhatIsServed:
    """Where the candidate is no longer what the next job should go on from."""

    def test_after_another_adapter_is_served(self, nights: Nights) -> None:
        undecided(nights)
        roll_back(nights.store, now=nights.now)
        assert nights.start().parent is None
        assert nights.new_words == 8 * WORDS

    def test_after_the_owner_has_rolled_the_candidate_back(self, nights: Nights) -> None:
        old, candidate, _ = undecided(nights)
        serve(nights.store, candidate.id, now=nights.now)
        roll_back(nights.store, now=nights.now)
        assert nights.start().parent == old.id

    def test_after_one_of_its_texts_was_deleted(self, nights: Nights) -> None:
        old, _, job = undecided(nights)
        nights.store.deletions.texts([min(nights.held_out(job))], now=nights.now)
        assert nights.start().parent in (old.id, None)  # the base, if the served one has seen the text as well

    def test_after_a_job_from_it_failed(self, nights: Nights) -> None:
        old, candidate, _ = undecided(nights)
        failed = nights.start()
        assert failed.parent == candidate.id
        nights.store.jobs.fail(failed.id, error="its files are gone", now=nights.now)
        assert nights.start().parent == old.id

    def test_by_name_or_for_another_mode(self, nights: Nights) -> None:
        old, _, _ = undecided(nights)
        assert nights.start(tuning={}, start_from=old.id).parent == old.id
        assert nights.start(mode="full").parent is None


class TestJudgedAgain:
    """A candidate is judged on all text that it has never seen; nothing else comes of that text."""

    def look(self, nights: Nights, candidate: Adapter, outcome: Outcome) -> Job:
        job = nights.start(start_from=CANDIDATE, method=CANDIDATE)
        assert (job.parent, job.compared_with) == (candidate.id, BASE)
        row: dict[str, Any] = {
            "id": candidate.id,
            "job_id": job.id,
            "model": job.model,
            "outcome": outcome,
            "created_at": nights.now,
        }
        row |= {"held_out_loss_before": 4.0, "held_out_loss_now": 3.5}
        learned = outcome is Outcome.LEARNED
        nights.store.jobs.succeed(job.id, adapter=Adapter(**row), publish=learned, now=nights.now)
        return nights.store.jobs.get(job.id)

    def test_until_it_has_proved_better(self, nights: Nights) -> None:
        nights.write(8)
        first = nights.start()
        candidate, seen = nights.end(first, Outcome.TOO_LITTLE), nights.trained(first)
        for number in (1, 2):
            newer = set(nights.write(2, first=8 * number))
            look = self.look(nights, candidate, Outcome.TOO_LITTLE)
            assert look.link == 1 + number and newer < nights.held_out(look)
            assert nights.held_out(look) == {row.id for row in all_texts(nights.store)} - seen
            assert nights.trained(look) == seen and served(nights.store) is None
            assert nights.store.jobs.last_look() == look
        assert nights.new_words == 4 * WORDS  # which count towards the next job
        self.look(nights, candidate, Outcome.LEARNED)
        assert served(nights.store) == candidate.id and nights.store.adapters.get(candidate.id).job_id == first.id
        learned = {row.id for row in all_texts(nights.store) if row.learned_in == first.id}
        assert learned == nights.trained(first) | nights.held_out(first) and nights.new_words == 4 * WORDS
        assert nights.store.jobs.last_look() is None
        following = nights.start()
        assert (following.parent, following.compared_with, following.link) == (candidate.id, candidate.id, 1)
        roll_back(nights.store, now=nights.now)
        assert served(nights.store) is None and nights.new_words == 4 * WORDS

    @pytest.mark.parametrize("outcome", [Outcome.WORSE, Outcome.NO_PROOF])
    def test_until_it_is_known_not_to_be(self, nights: Nights, outcome: Outcome) -> None:
        nights.write(8)
        first = nights.start()
        candidate = nights.end(first, Outcome.TOO_LITTLE)
        nights.write(2, first=8)
        self.look(nights, candidate, outcome)
        assert served(nights.store) is None and nights.store.jobs.last_look() is None
        assert nights.new_words == 2 * WORDS and nights.start().parent is None

    def test_what_has_judged_it_is_training_text_from_then_on(self, nights: Nights) -> None:
        nights.write(8)
        first = nights.start()
        candidate = nights.end(first, Outcome.TOO_LITTLE)
        newer = set(nights.write(40, first=8))
        look = self.look(nights, candidate, Outcome.TOO_LITTLE)
        nights.write(1, first=99)
        job = nights.start()
        assert (job.parent, job.link) == (candidate.id, look.link + 1)
        assert newer & nights.trained(job) and not nights.held_out(job) & nights.trained(first)

    def test_a_text_that_only_judged_it_may_be_deleted(self, nights: Nights) -> None:
        nights.write(8)
        candidate = nights.end(nights.start(), Outcome.TOO_LITTLE)
        [newer] = nights.write(1, first=8)
        self.look(nights, candidate, Outcome.LEARNED)
        nights.store.deletions.texts([newer], now=nights.now)
        assert served(nights.store) == candidate.id


def test_rolling_back_leaves_out_what_was_never_served(nights: Nights) -> None:
    old, candidate, _ = undecided(nights)
    nights.write(8, first=16)
    second = nights.start()
    assert second.parent == candidate.id
    newest = nights.end(second, Outcome.LEARNED)
    change = roll_back(nights.store, now=nights.now)
    assert (change.was, change.serving) == (newest.id, old.id)


def test_a_named_jobs_texts_are_learned_whatever_it_tells(nights: Nights) -> None:
    [own] = new_texts("own words")
    job = nights.start(tuning={}, texts=[own], start_from=BASE)
    nights.end(job, Outcome.TOO_LITTLE)
    assert nights.store.texts.get(text_id(own)).learned_in == job.id
