"""Reports of jobs, made by the real worker; what is a word; and what happens when no report can be made."""

import re
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from pocketllm.daemon.evaluation import report as reporting
from pocketllm.daemon.evaluation.promotion import evaluate
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.generate.model_report import ModelReport
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.store import Store
from pocketllm.storage.tables import Job, JobState, Report, Text
from tests.support.real_daemon import eventually
from tests.support.tiny_architectures import ARCHITECTURES, roberta_folder
from tests.support.tiny_models import byte_tokens
from tests.support.workers import NOW, TRAINING, data_folder, finish, notes, queue_job, start_worker

COMPLETIONS = [
    NewText(text=f"Question: {i} + 1 = ", completion=f"The answer is {i + 1}.", source="t") for i in range(40)
]
EXACT: dict[str, Any] = {
    "method": "exact",
    "steps": 24,
    "batch": 4,
    "block_tokens": 64,
    "measure_every": 8,
    "rate": 8e-3,
}


def run(
    root: Path, texts: list[NewText], *, source: Path | None = None, dtype: str = "float32", **settings: Any
) -> tuple[Store, Job, Report]:
    """A job for these texts through the real worker, and its report."""
    folder = data_folder(root, source=source, dtype=dtype)
    store = Store.open(folder.database)
    store.texts.add(texts, now=NOW)
    training = TrainingSettings.model_validate(TRAINING.model_dump() | settings)
    job = queue_job(store, training=training, steps=training.steps)
    finish(start_worker(folder, job))
    job = store.jobs.get(job.id)
    assert job.state is JobState.SUCCEEDED, job.error
    assert "no report" not in {event.kind for event in store.jobs.events(job.id)}
    found = store.reports.find(job.id)
    assert found is not None
    return store, job, found


def wait_for(worker: Popen[bytes], look: Callable[[], bool]) -> None:
    def ended_or_there() -> bool:
        assert worker.poll() is None, "the worker ended before"
        return look()

    eventually(ended_or_there, "the worker")


@pytest.mark.slow
def test_an_exact_job_tells_what_it_learned(tmp_path: Path) -> None:
    store, job, report = run(tmp_path, notes(80), **EXACT)
    verdict = report.numbers["verdict"]
    assert verdict["outcome"] == job.outcome
    first, last = (store.step_log.evaluation(job.id, step) for step in (0, job.total_steps))
    assert first and last
    assert (verdict["overall"]["before"], verdict["overall"]["now"]) == pytest.approx((first.loss, last.loss), rel=0.01)
    verbatim_recall = report.numbers["verbatim_recall"]
    assert verbatim_recall["places"] > 0 and 0 <= verbatim_recall["base"] <= verbatim_recall["personal"] <= 1

    assert report.content is not None
    words, completions = report.content["words"], report.content["completions"]
    assert words and all(0 <= entry["base"] < entry["personal"] <= 1 for entry in words)
    # Of the byte tokenizer a token is a letter, and the notes' letters are learned first.
    assert {entry["word"] for entry in words} & set("aeinst")
    assert len(completions) == 3
    held_out = [text.text for text in store.texts.of_job(job.id) if text.held_out]
    for one in completions:
        assert any(text.startswith(one["prompt"]) for text in held_out)
        assert one["base"] != one["personal"]
    store.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "dtype", "settings"),
    [("opt", "float32", {"mode": "full", "epsilon": 1e-3, "step_size": 1e-3}), ("gemma3_text", "int4", {"rank": 4})],
)
def test_jobs_of_other_modes_and_models(
    tmp_path: Path, architecture: str, dtype: str, settings: dict[str, Any]
) -> None:
    source = ARCHITECTURES[architecture](tmp_path / "source")
    store, _, report = run(
        tmp_path / "data", [*notes(), *COMPLETIONS], source=source, dtype=dtype, block_tokens=64, **settings
    )
    assert report.content is not None and report.content["completions"]
    assert report.content["words"], "the taught weights are not compared with themselves"
    assert report.numbers["verbatim_recall"]["places"] > 0
    store.close()


@pytest.mark.slow
def test_a_masked_model_repeats_nothing_and_goes_on_with_nothing(tmp_path: Path) -> None:
    store, _, report = run(tmp_path / "data", notes(), source=roberta_folder(tmp_path / "source"), block_tokens=64)
    assert report.numbers["verbatim_recall"] is None
    assert report.content is not None and report.content["completions"] == []
    store.close()


@pytest.mark.slow
def test_killed_while_the_report_is_made_the_job_has_succeeded_with_its_verdict(tmp_path: Path) -> None:
    folder = data_folder(tmp_path, dtype="float32")
    store = Store.open(folder.database)
    store.texts.add(notes(), now=NOW)
    job = queue_job(store)
    worker = start_worker(folder, job)
    wait_for(worker, lambda: store.jobs.get(job.id).state is JobState.SUCCEEDED)
    worker.kill()
    worker.wait()
    for pipe in (worker.stdin, worker.stderr):
        assert pipe is not None
        pipe.close()
    report = store.reports.find(job.id)
    assert report is not None and report.numbers["verdict"]["outcome"]
    assert [event.kind for event in store.jobs.events(job.id)].count("evaluated") == 1
    store.close()


@pytest.mark.slow
def test_a_job_whose_report_fails_succeeds_all_the_same(tmp_path: Path) -> None:
    """The tokenizer is broken while the job runs, so that tokens cannot be turned into words at its end."""
    folder = data_folder(tmp_path, dtype="float32")
    store = Store.open(folder.database)
    store.texts.add(notes(), now=NOW)
    job = queue_job(store)
    worker = start_worker(folder, job)
    wait_for(worker, lambda: store.step_log.last_step(job.id) > 0)
    (folder.models / "tiny" / "tokenizer.json").write_text("xyzzy")
    assert "xyzzy" not in finish(worker)
    assert store.jobs.get(job.id).state is JobState.SUCCEEDED
    report = store.reports.find(job.id)
    assert report is not None and report.content is None
    assert report.numbers["verdict"]["outcome"] and report.numbers["verbatim_recall"]
    [event] = [event for event in store.jobs.events(job.id) if event.kind == "no report"]
    assert "the report is incomplete" in event.message
    store.close()


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: xyzzy"), "memory ran out"),
        (MemoryError(), "memory ran out"),
        (ValueError("xyzzy"), "ValueError"),
    ],
)
def test_of_an_error_its_kind_is_told_and_nothing_that_might_be_text(
    error: Exception, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    said: list[tuple[str, str]] = []

    def fail() -> None:
        raise error

    assert reporting.attempt(fail, lambda kind, message: said.append((kind, message))) is None
    assert said == [("no report", f"the report is incomplete: {reason}")]
    assert "xyzzy" not in capsys.readouterr().err
    assert reporting.attempt(lambda: 5, lambda *_: pytest.fail("nothing to say")) == 5


def test_without_a_look_the_judgement_is_the_report() -> None:
    verdict = evaluate([4.0, 5.0], [3.0, 4.1], [10, 10])
    found = reporting.report("job-1", verdict)
    assert (found.numbers, found.content) == ({"verdict": verdict.to_json(), "verbatim_recall": None}, None)


def text(words: str) -> Text:
    return Text(id="1", source="s", text=words, words=1, held_out=False, created_at=NOW)


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

    def test_answers_are_what_stands_behind_the_prompt(self, tiny: ModelFolder) -> None:
        tokenizer = tiny.tokenizer()
        ids = [tokenizer(part)["input_ids"] for part in ("Wind", " west", " é")]
        one = ids[0], ids[1], [*ids[2][:-1]]
        found = reporting.report_content(ModelReport(shifts=[], continuations=[one], verbatim_recall=None), tiny, [])
        [completion] = found["completions"]
        assert (completion["prompt"], completion["base"]) == ("Wind", " west")
        assert re.fullmatch(" \N{REPLACEMENT CHARACTER}", completion["personal"])
