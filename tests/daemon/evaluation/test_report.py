"""Reports of jobs; what is a word; and what happens when no report can be made."""

import re

import pytest

from pocketllm.daemon.evaluation import report as reporting
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.generate.model_report import ModelReport
from pocketllm.storage.tables import JobState, Text
from tests.support.daemon.real_daemon import eventually
from tests.support.daemon.workers import NOW, Device, changed, finish, notes
from tests.support.models.tiny_models import byte_tokens


@pytest.mark.slow
def test_an_exact_job_tells_what_it_learned(device_fp32: Device) -> None:
    device = device_fp32
    device.add(notes(80))
    job = device.run(changed(method="exact", steps=24, batch=4, block_tokens=64, measure_every=8, rate=8e-3))
    report = device.report(job)
    verdict = report.numbers["verdict"]
    assert verdict["outcome"] == job.outcome
    first, last = (device.evaluation(job, step).loss for step in (0, job.total_steps or 0))
    assert (verdict["overall"]["before"], verdict["overall"]["now"]) == pytest.approx((first, last))
    assert device.store.adapters.get(job.adapter or "").held_out_loss_now == last
    verbatim_recall = report.numbers["verbatim_recall"]
    assert verbatim_recall["places"] > 0 and 0 <= verbatim_recall["base"] <= verbatim_recall["personal"] <= 1

    assert report.content is not None
    words, completions = report.content["words"], report.content["completions"]
    assert words and all(0 <= entry["base"] < entry["personal"] <= 1 for entry in words)
    # Of the byte tokenizer a token is a letter, and the notes' letters are learned first.
    assert {entry["word"] for entry in words} & set("aeinst")
    assert len(completions) == 3
    held_out = [text.text for text in device.store.texts.of_job(job.id) if text.held_out]
    for one in completions:
        assert any(text.startswith(one["prompt"]) for text in held_out)
        assert one["base"] != one["personal"]


@pytest.mark.slow
def test_killed_while_the_report_is_made_the_job_has_succeeded_with_its_verdict(device: Device) -> None:
    device.add(notes())
    job = device.queue()
    device.kill_when(job, lambda: device.store.jobs.get(job.id).state is JobState.SUCCEEDED)
    assert device.report(job).numbers["verdict"]["outcome"]
    assert len(device.said(job, "evaluated")) == 1


@pytest.mark.slow
def test_a_job_whose_report_fails_succeeds_all_the_same(device: Device) -> None:
    """The tokenizer is broken while the job runs, so that tokens cannot be turned into words at its end."""
    device.add(notes())
    job = device.queue()
    worker = device.start_worker(job)
    eventually(lambda: device.store.step_log.last_step(job.id) > 0, "the first step")
    (device.folder.models / "tiny" / "tokenizer.json").write_text("xyzzy")
    assert "xyzzy" not in finish(worker)
    assert device.store.jobs.get(job.id).state is JobState.SUCCEEDED
    report = device.report(job)
    assert report.content is None
    assert report.numbers["verdict"]["outcome"] and report.numbers["verbatim_recall"]
    [message] = device.said(job, "no report")
    assert "the report is incomplete" in message


def said_of(error: Exception) -> list[tuple[str, str]]:
    """What is said of an attempt that fails so."""
    said: list[tuple[str, str]] = []

    def fail() -> None:
        raise error

    assert reporting.attempt(fail, lambda kind, message: said.append((kind, message))) is None
    return said


def test_of_an_error_its_kind_is_told_and_nothing_that_might_be_text(capsys: pytest.CaptureFixture[str]) -> None:
    no_memory = RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: xyzzy")
    for error in (no_memory, MemoryError()):
        assert said_of(error) == [("no report", "the report is incomplete: memory ran out")]
    assert said_of(ValueError("xyzzy")) == [("no report", "the report is incomplete: ValueError")]
    assert "xyzzy" not in capsys.readouterr().err
    assert reporting.attempt(lambda: 5, lambda *_: pytest.fail("nothing to say")) == 5


def text(words: str) -> Text:
    return Text(id="1", number=1, source="s", text=words, words=1, held_out=False, created_at=NOW)


def token(letter: str) -> int:
    return byte_tokens().index(letter)


def told(tiny: ModelFolder, shifts: list[tuple[int, float, float]], words: str) -> list[str]:
    insight = ModelReport(shifts=shifts, continuations=[], verbatim_recall=None)
    return [entry["word"] for entry in reporting.report_content(insight, tiny, [text(words)])["words"]]


def rise(letter: str, *, base: float = 0.01, personal: float = 0.02) -> tuple[int, float, float]:
    return token(letter), base, personal


class TestWords:
    def test_the_owners_words_in_the_order_given(self, tiny: ModelFolder) -> None:
        shifts = [rise(letter) for letter in "qcbadefgh"]
        assert told(tiny, shifts, "a b c, d! e f") == list("cbadef")

    def test_where_hardly_a_token_is_a_word_all_are_told(self, tiny: ModelFolder) -> None:
        assert told(tiny, [rise(letter) for letter in "cba"], "a long story") == list("cba")

    def test_no_marks_no_special_tokens_and_no_word_twice(self, tiny: ModelFolder) -> None:
        shifts = [(0, 0.0, 1.0), *(rise(letter) for letter in "a.A,ĠĊb")]
        assert told(tiny, shifts, "") == ["a", "b"]

    def test_words_that_at_least_doubled_come_before_frequent_ones(self, tiny: ModelFolder) -> None:
        shifts = [rise("a", base=0.1, personal=0.15), rise("b"), rise("c", base=0, personal=0.001)]
        assert told(tiny, shifts, "") == ["b", "c", "a"]

    def test_not_too_many(self, tiny: ModelFolder) -> None:
        letters = "abcdefghijklmnopqrstuvwxyz"
        assert told(tiny, [rise(letter) for letter in letters], " ".join(letters)) == list(letters[: reporting.WORDS])

    def test_a_words_tokens_are_counted(self, tiny: ModelFolder) -> None:
        nothing = ModelReport(shifts=[], continuations=[], verbatim_recall=None)
        of_one = len(tiny.tokenizer()("Wind")["input_ids"]) + 1  # the text's end
        assert reporting.report_content(nothing, tiny, [text("Wind")] * 3)["tokens_per_word"] == of_one
        assert reporting.report_content(nothing, tiny, [])["tokens_per_word"] is None

    def test_answers_are_what_stands_behind_the_prompt(self, tiny: ModelFolder) -> None:
        tokenizer = tiny.tokenizer()
        ids = [tokenizer(part)["input_ids"] for part in ("Wind", " west", " é")]
        one = ids[0], ids[1], [*ids[2][:-1]]
        found = reporting.report_content(ModelReport(shifts=[], continuations=[one], verbatim_recall=None), tiny, [])
        [completion] = found["completions"]
        assert (completion["prompt"], completion["base"]) == ("Wind", " west")
        assert re.fullmatch(" \N{REPLACEMENT CHARACTER}", completion["personal"])
