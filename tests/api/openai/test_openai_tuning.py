"""OpenAI's own client fine-tunes: uploads, starts, watches, pauses, resumes and uses what comes of it."""

import asyncio
import inspect
import json
import threading
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


async def settled(answer: Any) -> Any:
    """What either client gives, waited for where it is the asynchronous one's."""
    return await answer if inspect.isawaitable(answer) else answer


async def collected(several: Any) -> list[Any]:
    """All of a list or a stream of either client, page after page."""
    found = several if hasattr(several, "__aiter__") or hasattr(several, "__iter__") else await settled(several)
    return [one async for one in found] if hasattr(found, "__aiter__") else list(found)


async def until(client: Any, job_id: str, status: str, state: str) -> Any:
    """The job, once it is so far."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        job = await settled(client.fine_tuning.jobs.retrieve(job_id))
        if (job.status, job.to_dict()["state"]) == (status, state):
            return job
        assert job.status != "failed", job.error
        await asyncio.to_thread(threading.Event().wait, 0.05)
    raise AssertionError(f"{job_id} is {job.status}, not {status}")


async def the_whole_way(client: Any, name: str) -> None:
    file = await settled(client.files.create(file=(f"{name}.jsonl", lines(LINES)), purpose="fine-tune"))
    assert (file.bytes, file.filename, file.status) == (len(lines(LINES)), f"{name}.jsonl", "processed")
    assert (await settled(client.files.wait_for_processing(file.id))).id == file.id

    started = await settled(
        client.fine_tuning.jobs.create(
            model=BASE,
            training_file=file.id,
            seed=7,
            suffix=name,
            metadata={"run": name},
            method={"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 12, "batch_size": 2}}},
        )
    )
    assert (started.seed, started.training_file, started.fine_tuned_model) == (7, file.id, None)
    assert started.method.supervised.hyperparameters.n_epochs == 12
    await until(client, started.id, "running", "running")
    paused = await settled(client.fine_tuning.jobs.pause(started.id))
    assert (paused.status, paused.to_dict()["state"]) == ("queued", "paused")
    assert paused.to_dict()["reasons"] == ["paused by the owner"]
    resumed = await settled(client.fine_tuning.jobs.resume(started.id))
    assert resumed.to_dict()["reasons"] == ["resumed; the conditions are checked next"]
    done = await until(client, started.id, "succeeded", "succeeded")
    assert done.fine_tuned_model.startswith(f"ft:tiny:pocketllm:{name}:adapter-")
    assert done.trained_tokens > 0 and done.finished_at >= done.created_at and done.error is None

    events = await collected(client.fine_tuning.jobs.list_events(started.id, limit=3))
    kinds = [event.data["kind"] for event in events]
    assert (kinds[0], kinds[-1]) == ("succeeded", "queued")
    assert {"paused", "paused by owner", "resumed by owner"} <= set(kinds)
    assert len({event.id for event in events}) == len(events)

    assert done.metadata == {"run": name} and done.result_files == []

    assert started.id in [job.id for job in await collected(client.fine_tuning.jobs.list(limit=1))]

    asked = {"model": done.fine_tuned_model, "messages": CHATS[0]["messages"][:2], "max_tokens": 6, "seed": 1}
    whole = await settled(client.chat.completions.create(**asked))
    chunks = await collected(await settled(client.chat.completions.create(**asked, stream=True)))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == whole.choices[0].message.content and whole.model == done.fine_tuned_model

    model = await settled(client.models.retrieve(done.fine_tuned_model))
    assert model.to_dict()["parent"] == BASE
    assert (await settled(client.files.delete(file.id))).deleted
    with pytest.raises(openai.NotFoundError):
        await settled(client.files.retrieve(file.id))


@pytest.mark.parametrize("kind", [pytest.param(openai.OpenAI, marks=pytest.mark.smoke), openai.AsyncOpenAI])
def test_from_a_file_to_a_model_that_answers(daemon: Daemon, kind: type) -> None:
    """Strict: an answer that differs from the client's types is an error."""
    name = kind.__name__.lower()
    key = daemon.app_token(name, "ingest", "generate", "train")  # as README creates one

    async def run() -> None:
        client = kind(base_url=f"{daemon.url}/v1", api_key=key, _strict_response_validation=True)
        try:
            await the_whole_way(client, name)
        finally:
            await settled(client.close())

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
        names = [model.id for model in client.models.list() if model.id.startswith("ft:tiny:pocketllm:openai")]
        assert client.models.delete(names[0]).deleted
        assert names[0] not in [model.id for model in client.models.list()]
        with pytest.raises(openai.ConflictError, match="not the name of a fine-tuned model"):
            client.models.delete(BASE)
