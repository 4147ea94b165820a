"""The parts of bench.nights: what is won, and what a kill leaves."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bench.nights.device import Device, Known, Lesson
from bench.nights.worker import Attempt
from pocketllm.storage.tables import Job, Requester, Text

#: Words of a text -> the part of what the whole diary wins that 300 steps win (bench.passes, both diaries' mean).
WON = {1000: 0.38, 4000: 0.63, 16_000: 0.83}
NOW = datetime(2026, 3, 1, 22, tzinfo=UTC)


def lesson(words: int) -> Lesson:
    device = Device("135M", 60)
    return Lesson(Known(), [(str(note), 50) for note in range(words // 50)], device.words_a_step)


@pytest.mark.parametrize("words", WON)
def test_a_text_wins_what_it_did_on_the_diaries(words: int) -> None:
    assert lesson(words).won(300) == pytest.approx(WON[words], abs=0.03)


def test_a_chain_wins_about_as_much_as_one_job() -> None:
    long, notes = lesson(8000), lesson(8000).texts
    known = long.after(20)
    for first in (60, 120):  # another order, as another seed has
        known = Lesson(known, [*notes[first:], *notes[:first]], long.words_a_step).after(20)
    assert known.words == 8000
    assert 0.94 * long.won(60) < known.won <= long.won(60)


def test_a_start_after_a_kill_ends_as_one_without() -> None:
    device = Device("360M", 25)
    texts = [
        Text(id=f"text-{n}", number=n, source="s", text="w", words=50, held_out=n % 10 == 0, created_at=NOW)
        for n in range(100)
    ]
    job = Job(requested_by=Requester.OWNER, model="m", seed=1, settings={"steps": "auto"}, words=5000, created_at=NOW)
    whole = Attempt(device, job, texts, Known(), None, 0)
    ended = whole.work(4 * 3600.0)
    killed = [moment for moment in whole.log if moment.safe_at < moment.at <= whole.at / 2][-1]
    again = Attempt(device, job, texts, Known(), killed.saved, killed.samples)
    assert killed.safe_at < killed.at < whole.at
    assert again.work(1.0) == ended and again.at < whole.at
    assert whole.saved and again.saved and replace(again.saved, checkpoints=whole.saved.checkpoints) == whole.saved
