"""Jobs of every mode and kind of example; and what a job does about too little memory."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from pocketllm.daemon.scheduling.planning import plan_job
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training.data_split import (
    FIRST_HELD_OUT,
    PART_WORDS,
    STRETCHES,
    blocks_between,
    for_first_verdict,
    split,
    with_replay,
)
from pocketllm.engine.data.batches import Batches, pack
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.storage.repositories.texts import NewText
from pocketllm.storage.tables import ADDED, BASE, JobState, Outcome, Text
from tests.support.daemon.workers import NOW, Device, changed, new_device, new_job, notes
from tests.support.models.tiny_architectures import MASKED, architecture_folder

COMPLETIONS = [
    NewText(text=f"Question: {i} + 1 = ", completion=f"The answer is {i + 1}.", source="t") for i in range(40)
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("architecture", "dtype", "texts", "settings"),
    [
        ("llama", "bfloat16", notes(), {"noise": "gaussian", "probes": 3}),
        ("llama", "int4", [*notes(), *COMPLETIONS], {}),
        ("gemma3_text", "int8", notes(), {"rank": 4}),
        ("opt", "float32", [*notes(), *COMPLETIONS], {"mode": "full", "epsilon": 1e-3, "step_size": 1e-3}),
        ("roberta", "int8", notes(), {"method": "mezo"}),
    ],
)
def test_jobs_of_every_kind_end_with_an_adapter_a_step_log_and_a_report(
    tmp_path: Path, architecture: str, dtype: str, texts: list[NewText], settings: dict[str, object]
) -> None:
    source = architecture_folder(architecture, tmp_path / "source")
    with new_device(tmp_path / "data", source=source, dtype=dtype) as device:
        device.add(texts)
        job = device.work(device.queue(changed(block_tokens=64, **settings)))  # under the cap that was predicted
        assert job.adapter and job.plan is not None and job.predicted_bytes
        rows, report = device.store.step_log.steps(job.id), device.report(job)
    assert [row.step for row in rows] == list(range(1, (job.total_steps or 0) + 1))
    assert all(len(row.scalars) == job.plan["probes"] == settings.get("probes", job.plan["probes"]) for row in rows)
    assert any(any(row.scalars) for row in rows) or job.outcome in (Outcome.NO_PROOF, Outcome.TOO_LITTLE)
    assert report.content is not None
    assert report.content["words"] or not rows, "trained weights are not compared with themselves"
    if architecture in MASKED:
        assert report.content["completions"] == [] and report.numbers["verbatim_recall"] is None
    else:
        assert report.content["completions"] and report.numbers["verbatim_recall"]["places"] > 0


@pytest.mark.slow
def test_a_plan_that_is_too_large_is_reduced_and_the_event_says_so(device: Device) -> None:
    device.add(["word " * 3_000])
    job = device.run(changed(probes=1, batch=256, micro_batch=256, block_tokens=256, memory_bytes=80_000_000, steps=1))
    said = " ".join(device.said(job, "reduced"))
    assert "rows that pass through the layers together was reduced from 512 to" in said
    assert job.plan and job.plan["micro_batch"] < 512 and job.plan["block_tokens"] == 256


@pytest.mark.slow
def test_memory_that_runs_out_all_the_same_is_an_event_and_a_smaller_retry(device: Device) -> None:
    """The plan is made to promise too much: what the kernel refuses then must not end the job."""
    device.add(["word " * 30_000])
    job = device.queue(changed(batch=512, block_tokens=256, memory_bytes=100_000_000, steps=1))
    planned = plan_job(open_model_folder(device.folder.models / "tiny"), TrainingSettings.model_validate(job.settings))
    plan = asdict(planned.plan) | {"micro_batch": 1024, "kept_layers": 1}
    device.store.jobs.update(job.id, plan=plan, method=plan["method"], predicted_bytes=0)
    job = device.work(job)
    said = [event.message for event in device.store.jobs.events(job.id)]
    assert job.state is JobState.SUCCEEDED, (job.error, said)
    first, second, *_ = (message for message in said if "memory ran out" in message)
    assert "activations kept; continuing without" in first and "continuing with 512" in second


def texts(*held_out: bool, about: str = "") -> list[Text]:
    """Texts of nine tokens each."""
    return [
        Text(id=f"{about} {i}", number=i, source="s", text=f"{about} {i}".rjust(9), words=1, held_out=h, created_at=NOW)
        for i, h in enumerate(held_out)
    ]


def packed(rows: Sequence[Text], *, apart: bool = False) -> Batches:
    blocks = pack([[3] * len(row.text) for row in rows], length=4, eos=0)
    return blocks[slice(0, 3)], blocks[slice(3, None)]


def count(buckets: Batches) -> int:
    return sum(len(bucket) for bucket in buckets)


def test_the_held_out_texts_are_measured_each_by_itself() -> None:
    rows = texts(False, True, False, True)
    training, (held_out, owners) = split(rows, packed)
    assert [sum(bucket.tokens for bucket in buckets) for buckets in (training, held_out)] == [19, 2 * 9]
    assert sorted(owners) == [rows[1].id] * 3 + [rows[3].id] * 3
    rows[1].text = ""  # has no tokens, and so no block
    training, (held_out, owners) = split(rows, encoded_or_refused)
    assert owners == [rows[3].id] * 3


def test_the_same_words_from_two_sources_are_one_observation() -> None:
    rows = texts(False, True, True, True)
    rows[2].text, rows[2].source = rows[1].text, "another"
    _, (held_out, owners) = split(rows, packed)
    assert count(held_out) == 9 and sorted(owners) == [rows[1].id] * 6 + [rows[3].id] * 3


def encoded_or_refused(rows: Sequence[Text], *, apart: bool = False) -> Batches:
    if not any(row.text for row in rows):
        raise BadRequest
    return packed(rows)


@pytest.mark.parametrize("held_out", [False, True])
def test_the_last_blocks_are_held_out_where_no_text_or_every_text_is(held_out: bool) -> None:
    rows = texts(*[held_out] * 60)
    training, (measured, owners) = split(rows, packed)
    assert count(training) + count(measured) == count(packed(rows)) == 150
    assert count(measured) == len(owners) == 15
    assert [owners.count(str(number)) for number in range(STRETCHES)] == [2, 1] * 5 and owners == sorted(owners)


def test_of_little_text_more_blocks_are_held_out() -> None:
    rows = texts(*[False] * 5)
    training, (measured, owners) = split(rows, packed)
    assert (count(training), count(measured), len(set(owners))) == (7, 6, 6)


def test_a_single_long_text_that_is_held_out_is_measured_by_its_stretches() -> None:
    rows = texts(False, True)
    assert split(rows, packed)[1][1] == [rows[1].id] * 3
    rows[1].text = "x" * 40
    assert split(rows, packed)[1][1] == [str(number) for number in range(STRETCHES)]


def test_divide_refuses_what_is_too_little_for_both() -> None:
    with pytest.raises(BadRequest, match="Add some text"):
        split(texts(False), lambda rows, apart=False: (pack([[3, 3]], length=4, eos=0),))


def test_first_and_last_blocks_together_are_all() -> None:
    buckets = packed(texts(*[False] * 9))
    for wanted in (1, 3, 4, 23):
        first, last = blocks_between(buckets, 0, wanted), blocks_between(buckets, wanted, count(buckets))
        rows = torch.cat([bucket.inputs for bucket in (*first, *last)])
        assert torch.equal(rows, torch.cat([bucket.inputs for bucket in buckets])), wanted
        assert count(first) == wanted


def learned_in(job: str | None, *held_out: bool, words: int = PART_WORDS) -> list[Text]:
    rows = texts(*held_out, about=str(job))
    for row in rows:
        row.learned_in, row.words = job, words
    return rows


def test_old_text_is_measured_job_by_job_and_that_of_small_jobs_together() -> None:
    rows = [
        *learned_in("a", False, True, True, True, True),
        *learned_in("b", True),  # long, and a single text
        *learned_in("c", *[True] * 5, words=9),
        *learned_in("d", True, False, words=9),
        *learned_in(None, False, True, True),
    ]
    training, (held_out, owners), parts = with_replay(rows, packed)
    assert parts == (4 * 3, 7 * 3)
    assert count(held_out) == len(owners) == 2 * 3 + sum(parts)
    assert {len({owners[place] for place in part}) for part in (range(6), range(6, 18), range(18, 39))} == {2, 4, 7}
    assert count(training) == count(packed(texts(False))) + count(packed(texts(False, False)))


def test_of_a_single_old_text_the_blocks_are_measured_that_were_held_out_before() -> None:
    old = texts(False, about="old")
    old[0].text = "x" * 400
    _, (before, _) = split(old, packed)
    old[0].learned_in = "a"
    _, (held_out, _), (part,) = with_replay([*old, *texts(False, True)], packed)
    assert part == count(before) and torch.equal(held_out[-1].inputs, before[-1].inputs)


def test_old_text_that_was_trained_on_is_not_measured() -> None:
    """What is served has memorized it, and would always be better."""
    rows = [*learned_in("a", *[False] * 9), *learned_in(None, False, True)]
    training, _, parts = with_replay(rows, packed)
    assert parts == () and count(training) == count(packed(texts(False))) + count(packed(texts(*[False] * 9)))


def test_held_out_text_is_never_learned_from_even_when_it_is_all_the_old_text_there_is() -> None:
    rows = [*learned_in("a", True, True), *learned_in(None, False, True)]
    training, _, (old,) = with_replay(rows, packed)
    assert (count(training), old) == (count(packed(texts(False))), 2 * 3)


def test_a_first_verdict_is_on_few_texts_but_not_where_somebody_asked_for_one() -> None:
    rows = texts(*[True] * 30, *[False] * 5)
    first = new_job(compared_with=BASE)
    kept = for_first_verdict(first, "exact", rows)
    assert len([text for text in kept if text.held_out]) == FIRST_HELD_OUT and len(kept) == FIRST_HELD_OUT + 5
    others: list[dict[str, Any]] = [{"compared_with": "one"}, {"link": 2}, {"start_from": ADDED}, {"tuning": {}}]
    jobs = [new_job(**{"compared_with": BASE} | other) for other in others]
    assert all(for_first_verdict(job, "exact", rows) == rows for job in jobs)
    assert for_first_verdict(first, "mezo", rows) == rows
