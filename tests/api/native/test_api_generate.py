"""Text over HTTP: what is refused at once, and what the generator's process answers."""

import json
import os
import shutil
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from math import inf
from pathlib import Path
from typing import Any

import httpx
import pytest

from pocketllm.api.native.generate import seconds_of
from tests.support.daemon.in_process_app import InProcessApp, assert_problem
from tests.support.daemon.real_daemon import Daemon, Document, is_running, running
from tests.support.models.tiny_models import edit_json

PROMPT = "The wind"
#: More than a test waits for: a stream of so many tokens runs until it is broken off.
ENDLESS = 8000
#: The model's context, wide enough for that.
CONTEXT = 16_384


def test_how_long_the_model_is_kept() -> None:
    asked = (None, 0, 300, 0.5, -1)
    assert [seconds_of(keep_alive) for keep_alive in asked] == [None, 0, 300, 0.5, inf]


def test_either_a_prompt_or_messages(bare: InProcessApp) -> None:
    both = {"prompt": "a", "messages": [{"role": "user", "content": "b"}]}
    for requested in ({}, both):
        document = assert_problem(bare.post("/generate", json=requested), 422, "invalid_value")
        assert document["error"]["param"] is None and "send either prompt or messages" in document["detail"]


def test_without_a_model(bare: InProcessApp) -> None:
    for stream in (False, True):
        response = bare.post("/generate", json={"prompt": "a", "stream": stream})
        assert "`pocketllm models add`" in assert_problem(response, 503, "model_not_ready")["detail"]


def test_an_adapter_of_another_model(api: InProcessApp) -> None:
    api.learn("adapter-1", model="other")
    response = api.post("/generate", json={"prompt": "a", "adapter": "adapter-1"})
    document = assert_problem(response, 409, "conflict")
    assert "belongs to the model other" in document["detail"]
    assert document["error"]["param"] == "adapter"


# With a generator.


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, models: Path) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("generate")
    shutil.copytree(models, folder / "models")
    edit_json(folder / "models" / "tiny" / "config.json", max_position_embeddings=CONTEXT)
    with running(folder, MODEL="tiny", MAX_WAITING="1") as started:
        yield started


def generate(daemon: Daemon, **requested: Any) -> Document:
    response = daemon.client.post("/generate", json={"max_tokens": 12, **requested})
    assert response.status_code == 200, response.text
    assert response.text.endswith("\n}\n")
    document: Document = response.json()
    return document


def events(response: httpx.Response) -> Iterator[tuple[str, Document]]:
    """The server-sent events of a response, as they come."""
    name = ""
    for line in response.iter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))


def stream(daemon: Daemon, **requested: Any) -> list[tuple[str, Document]]:
    with daemon.client.stream("POST", "/generate", json={"max_tokens": 12, "stream": True, **requested}) as response:
        assert response.status_code == 200
        assert response.headers["content-type"].startswith("text/event-stream")
        return list(events(response))


def test_a_prompt_is_continued(daemon: Daemon) -> None:
    document = generate(daemon, prompt=PROMPT, seed=3)
    fields = "text model adapter finish_reason prompt_tokens completion_tokens tokens_per_second seed recalled"
    assert set(document) == set(fields.split())
    assert (document["model"], document["adapter"], document["seed"]) == ("tiny", None, 3)
    assert document["prompt_tokens"] == len(PROMPT) + 1  # a token a byte, behind the separator
    assert 0 < document["completion_tokens"] <= 12
    assert document["tokens_per_second"] > 0
    assert document["text"]


def test_the_seed_that_was_drawn_gives_the_same_text_again(daemon: Daemon) -> None:
    drawn = generate(daemon, prompt=PROMPT, temperature=1.5)
    again = generate(daemon, prompt=PROMPT, temperature=1.5, seed=drawn["seed"])
    assert (again["seed"], again["text"]) == (drawn["seed"], drawn["text"])
    assert generate(daemon, prompt=PROMPT, temperature=1.5)["seed"] != drawn["seed"]


def test_a_stream_ends_with_the_whole(daemon: Daemon) -> None:
    options: list[Document] = [{"temperature": 0}, {"temperature": 1.2, "seed": 4}, {"max_tokens": 1}]
    for option in options:
        requested = {"prompt": PROMPT, "max_tokens": 60, "seed": 1, **option}
        *tokens, (last, done) = stream(daemon, **requested)
        assert last == "done"
        assert all(name == "token" and set(data) == {"text"} and data["text"] for name, data in tokens)
        assert "".join(data["text"] for _, data in tokens) == done["text"]
        whole = generate(daemon, **requested)
        assert done | {"tokens_per_second": 0} == whole | {"tokens_per_second": 0}


def test_more_than_the_context_is_refused(daemon: Daemon) -> None:
    prompt = {"prompt": "a" * (CONTEXT + 10), "max_tokens": 1}
    chat = {"messages": [{"role": "user", "content": "a" * CONTEXT}]}
    for requested in (prompt, chat | {"stream": True}):
        document = assert_problem(daemon.client.post("/generate", json=requested), 422, "bad_request")
        assert f"context of {CONTEXT} tokens" in document["detail"] and "Shorten the prompt" in document["detail"]


def test_an_unknown_adapter(daemon: Daemon) -> None:
    for name in ("adapter-none", "../../etc", ""):
        response = daemon.client.post("/generate", json={"prompt": PROMPT, "adapter": name})
        document = assert_problem(response, 404, "not_found")
        assert repr(name) in document["detail"] and "GET /adapters" in document["detail"]


def test_a_client_that_goes_away_lets_the_next_one_in(daemon: Daemon) -> None:
    with daemon.client.stream(
        "POST", "/generate", json={"prompt": PROMPT, "temperature": 0, "max_tokens": ENDLESS, "stream": True}
    ) as response:
        assert next(events(response))[0] == "token"
    after, again = (generate(daemon, prompt=PROMPT, temperature=0)["text"] for _ in range(2))
    assert after == again  # nothing of the answer that was broken off got into the next one


def test_a_full_queue_says_when_to_come_back(daemon: Daemon) -> None:
    requested = {"prompt": PROMPT, "temperature": 0, "max_tokens": 4}
    with ThreadPoolExecutor() as threads:
        with daemon.client.stream(
            "POST", "/generate", json={**requested, "max_tokens": ENDLESS, "stream": True}
        ) as first:
            arriving = events(first)  # kept, since the connection ends with it
            assert next(arriving)[0] == "token"
            # One may wait, so of two more the one that comes last is refused, at once.
            more = [threads.submit(daemon.client.post, "/generate", json=requested) for _ in range(2)]
            refused = next(as_completed(more))
            document = assert_problem(refused.result(), 503, "generator_busy")
            assert "Try again" in document["detail"]
            assert int(refused.result().headers["retry-after"]) > 0
            [waiting] = set(more) - {refused}
            assert not waiting.done()
        assert waiting.result().status_code == 200


def test_the_process_is_shown_and_is_started_again_when_it_dies(daemon: Daemon) -> None:
    generate(daemon, prompt=PROMPT)
    before = daemon.status()["generator"]
    assert before["running"] and is_running(before["pid"])
    assert 0 < before["unloads_in_seconds"] <= 300

    requested = {"prompt": PROMPT, "temperature": 0, "max_tokens": ENDLESS, "stream": True}
    with daemon.client.stream("POST", "/generate", json=requested) as response:
        arriving = events(response)
        assert next(arriving)[0] == "token"
        os.kill(before["pid"], signal.SIGKILL)
        name, data = list(arriving)[-1]
    assert name == "error"
    assert (data["status"], data["error"]["code"]) == (503, "generator_failed")
    assert "Try again" in data["detail"]

    assert generate(daemon, prompt=PROMPT, temperature=0)["text"]
    assert daemon.status()["generator"]["pid"] != before["pid"]
