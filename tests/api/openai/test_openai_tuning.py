"""OpenAI's own client fine-tunes: uploads, starts, watches, pauses, resumes and uses what comes of it."""

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.support.daemon.real_daemon import Daemon
from tests.support.daemon.tiny_daemon import SMALL_JOB, tiny_daemon

pytestmark = pytest.mark.slow

LATEST, BASE = "pocketllm:latest", "pocketllm:base"
CHATS = [
    {
        "messages": [
            {"role": "system", "content": "You keep a diary."},
            {"role": "user", "content": f"How was day {day}?"},
            {"role": "assistant", "content": f"Wind west, glass rising, mug of tea number {day}."},
        ]
    }
    for day in range(24)
]
LINES = [*CHATS, {"prompt": "Who has the watch?", "completion": " Anna until four."}, {"text": "The shed to myself."}]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with tiny_daemon(tmp_path_factory.mktemp("tuning") / "data", **SMALL_JOB) as made:
        yield made


def lines(documents: list[Any]) -> bytes:
    return "".join(json.dumps(document) + "\n" for document in documents).encode()


async def until(client: Any, job_id: str, status: str, state: str) -> Any:
    """The job, once it is so far."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job = await client.fine_tuning.jobs.retrieve(job_id)
        if (job.status, job.to_dict()["state"]) == (status, state):
            return job
        assert job.status != "failed", job.error
        await asyncio.sleep(0.05)
    raise AssertionError(f"{job_id} is {job.status}, not {status}")


async def the_whole_way(client: Any) -> None:
    file = await client.files.create(file=("diary.jsonl", lines(LINES)), purpose="fine-tune")
    assert (file.bytes, file.filename, file.status) == (len(lines(LINES)), "diary.jsonl", "processed")
    assert (await client.files.wait_for_processing(file.id)).id == file.id

    started = await client.fine_tuning.jobs.create(
        model=BASE,
        training_file=file.id,
        seed=7,
        suffix="diary",
        metadata={"run": "first"},
        method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 12, "batch_size": 2}}},
    )
    assert (started.seed, started.training_file, started.fine_tuned_model) == (7, file.id, None)
    assert started.method.supervised.hyperparameters.n_epochs == 12
    await until(client, started.id, "running", "running")
    paused = await client.fine_tuning.jobs.pause(started.id)
    assert (paused.status, paused.to_dict()["state"]) == ("queued", "paused")
    assert paused.to_dict()["reasons"] == ["paused by the owner"]
    resumed = await client.fine_tuning.jobs.resume(started.id)
    assert resumed.to_dict()["reasons"] == ["resumed; the conditions are checked next"]
    done = await until(client, started.id, "succeeded", "succeeded")
    assert done.fine_tuned_model.startswith("ft:tiny:pocketllm:diary:adapter-")
    assert done.trained_tokens > 0 and done.finished_at >= done.created_at and done.error is None
    assert done.metadata == {"run": "first"} and done.result_files == []

    events = [event async for event in client.fine_tuning.jobs.list_events(started.id, limit=3)]
    kinds = [event.data["kind"] for event in events]
    assert (kinds[0], kinds[-1]) == ("succeeded", "queued")
    assert {"paused", "paused by owner", "resumed by owner"} <= set(kinds)
    assert len({event.id for event in events}) == len(events)
    assert started.id in [job.id async for job in client.fine_tuning.jobs.list(limit=1)]

    asked = {"model": done.fine_tuned_model, "messages": CHATS[0]["messages"][:2], "max_tokens": 6, "seed": 1}
    whole = await client.chat.completions.create(**asked)
    stream = await client.chat.completions.create(**asked, stream=True)
    text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    assert text == whole.choices[0].message.content and whole.model == done.fine_tuned_model

    model = await client.models.retrieve(done.fine_tuned_model)
    assert model.to_dict()["parent"] == BASE
    assert (await client.files.delete(file.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await client.files.retrieve(file.id)


@pytest.mark.smoke
def test_from_a_file_to_a_model_that_answers(daemon: Daemon) -> None:
    """Strict: an answer that differs from the client's types is an error."""
    key = daemon.app_token("diary", "ingest", "generate", "train")  # as README creates one

    async def run() -> None:
        url = f"{daemon.url}/v1"
        async with openai.AsyncOpenAI(base_url=url, api_key=key, _strict_response_validation=True) as client:
            await the_whole_way(client)

    asyncio.run(run())


def test_it_is_the_same_job(daemon: Daemon) -> None:
    """What OpenAI's client started is in GET /jobs, and the other way round."""
    daemon.client.post("/texts", json=[{"text": f"Tide tables, page {page}.", "source": "t"} for page in range(20)])
    job = daemon.wait_for_job(daemon.start_job(steps=2), "succeeded")
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=daemon.token) as client:
        jobs = list(client.fine_tuning.jobs.list())
        assert jobs[0].id == job["id"].replace("job-", "ftjob-")
        assert (jobs[0].model, jobs[0].training_file) == (LATEST, "file-inbox")
        ours = {one["id"].replace("job-", "ftjob-") for one in daemon.client.get("/jobs").json()["data"]}
        assert {one.id for one in jobs} == ours


def test_a_fine_tuned_model_is_deleted(daemon: Daemon) -> None:
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key=daemon.token, max_retries=0) as client:
        names = [model.id for model in client.models.list() if model.id.startswith("ft:tiny:pocketllm:diary")]
        assert client.models.delete(names[0]).deleted
        assert names[0] not in [model.id for model in client.models.list()]
        with pytest.raises(openai.ConflictError, match="not the name of a fine-tuned model"):
            client.models.delete(BASE)
