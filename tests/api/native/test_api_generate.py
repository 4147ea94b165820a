"""Text over HTTP: what is refused at once, and what the generator's process answers."""

import json
import os
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import httpx
import pytest

from pocketllm.storage.tables import Adapter, Outcome
from tests.support.in_process_app import InProcessApp, assert_problem, in_process_app
from tests.support.real_daemon import Daemon, Document, is_running, running
from tests.support.tiny_models import edit_json, tiny_model_folder

PROMPT = "The wind"
#: More than a test waits for: a stream of so many tokens runs until it is broken off.
ENDLESS = 8000
#: The model's context, wide enough for that.
CONTEXT = 16_384


@pytest.fixture
def api(tmp_path: Path) -> Iterator[InProcessApp]:
    with in_process_app(tmp_path / "data") as made:
        yield made


@pytest.mark.parametrize(
    ("requested", "param", "says"),
    [
        ({}, None, "send either prompt or messages"),
        ({"prompt": "a", "messages": [{"role": "user", "content": "b"}]}, None, "send either prompt or messages"),
        ({"prompt": ""}, "prompt", "at least 1 character"),
        ({"prompt": 5}, "prompt", "valid string"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({"messages": [{"role": "user", "content": "a"}] * 1001}, "messages", "at most 1000 items"),
        ({"messages": [{"role": "owner", "content": "a"}]}, "messages.0.role", "'user'"),
        ({"messages": [{"role": "user"}]}, "messages.0.content", "Field required"),
        ({"messages": "a"}, "messages", "valid list"),
        ({"prompt": "a", "temperature": -0.1}, "temperature", "greater than or equal to 0"),
        ({"prompt": "a", "temperature": 5.1}, "temperature", "less than or equal to 5"),
        ({"prompt": "a", "top_p": 0}, "top_p", "greater than 0"),
        ({"prompt": "a", "top_p": 1.1}, "top_p", "less than or equal to 1"),
        ({"prompt": "a", "max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"prompt": "a", "max_tokens": 8193}, "max_tokens", "less than or equal to 8192"),
        ({"prompt": "a", "seed": -1}, "seed", "greater than or equal to 0"),
        ({"prompt": "a", "seed": 2**53}, "seed", "less than or equal to"),
        ({"prompt": "a", "stop": ["b", ""]}, "stop.1", "at least 1 character"),
        ({"prompt": "a", "stop": ""}, "stop.0", "at least 1 character"),
        ({"prompt": "a", "stop": ["b"] * 17}, "stop", "at most 16 items"),
        ({"prompt": "a", "stop": [1]}, "stop.0", "valid string"),
        ({"prompt": "a", "stream": "perhaps"}, "stream", "valid boolean"),
        ({"prompt": "a", "adapter": None}, "adapter", "valid string"),
        ({"prompt": "a", "tokens": 5}, "tokens", "Extra inputs"),
        ({"prompt": "a", "model": "/etc/passwd"}, "model", "Extra inputs"),
    ],
)
def test_a_faulty_wish(api: InProcessApp, requested: Document, param: str | None, says: str) -> None:
    document = assert_problem(api.post("/generate", json=requested), 422, "invalid_value")
    assert document["error"]["param"] == param
    assert says in document["detail"]


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number(api: InProcessApp, number: str) -> None:
    content = f'{{"prompt": "a", "temperature": {number}}}'.encode()
    response = api.post("/generate", content=content, headers={"content-type": "application/json"})
    assert assert_problem(response, 422, "invalid_value")["error"]["param"] == "temperature"


def test_half_of_a_surrogate_pair(api: InProcessApp) -> None:
    headers = {"content-type": "application/json"}
    response = api.post("/generate", content=b'{"prompt": "a\\ud800"}', headers=headers)
    assert "not valid JSON" in assert_problem(response, 422, "invalid_value")["detail"]


def test_only_json_is_taken(api: InProcessApp) -> None:
    response = api.post("/generate", content=b'{"prompt": "a"}', headers={"content-type": "text/plain"})
    assert_problem(response, 415, "unsupported_media_type")


@pytest.mark.parametrize("stream", [False, True])
def test_without_a_model(api: InProcessApp, stream: bool) -> None:
    response = api.post("/generate", json={"prompt": "a", "stream": stream})
    document = assert_problem(response, 503, "model_not_ready")
    assert "`pocketllm models add`" in document["detail"]


def test_an_adapter_of_another_model(api: InProcessApp) -> None:
    tiny_model_folder(api.services.folder.models)
    api.add("Wind west.")
    job = api.post("/jobs").json()["id"]
    api.tick()
    now = api.clock.now
    adapter = Adapter(id="adapter-1", job_id=job, model="other", outcome=Outcome.LEARNED, created_at=now)
    api.services.store.jobs.succeed(job, adapter=adapter, publish=True, now=now)
    document = assert_problem(api.post("/generate", json={"prompt": "a", "adapter": "adapter-1"}), 409, "conflict")
    assert "belongs to the model other" in document["detail"]
    assert document["error"]["param"] == "adapter"


# With a generator.


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("generate") / "data"
    edit_json(tiny_model_folder(folder / "models") / "config.json", max_position_embeddings=CONTEXT)
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
    assert set(document) == {
        "text",
        "model",
        "adapter",
        "finish_reason",
        "prompt_tokens",
        "completion_tokens",
        "tokens_per_second",
        "seed",
        "recalled",
    }
    assert (document["model"], document["adapter"], document["seed"]) == ("tiny", None, 3)
    assert document["prompt_tokens"] == len(PROMPT) + 1  # a token a byte, behind the separator
    assert 0 < document["completion_tokens"] <= 12
    assert document["tokens_per_second"] > 0
    assert document["text"]


def test_a_chat_is_answered_in_the_models_template(daemon: Daemon) -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi!"}]
    document = generate(daemon, messages=messages, temperature=0)
    rendered = "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi!<|im_end|>\n<|im_start|>assistant\n"
    special = "<|im_start|>", "<|im_end|>"
    tokens = len(rendered) - sum((len(token) - 1) * rendered.count(token) for token in special)
    assert document["prompt_tokens"] == tokens
    assert document["text"]


@pytest.mark.parametrize("seed", [0, 5, 2**53 - 1])
def test_the_same_seed_gives_the_same_text(daemon: Daemon, seed: int) -> None:
    first, second = (generate(daemon, prompt=PROMPT, seed=seed, temperature=1.0) for _ in range(2))
    assert first["text"] == second["text"]
    assert first["seed"] == second["seed"] == seed


def test_other_seeds_give_other_texts_and_a_drawn_one_can_be_repeated(daemon: Daemon) -> None:
    assert len({generate(daemon, prompt=PROMPT, seed=seed, temperature=1.5)["text"] for seed in range(4)}) > 1
    drawn = generate(daemon, prompt=PROMPT, temperature=1.5)
    assert generate(daemon, prompt=PROMPT, temperature=1.5, seed=drawn["seed"])["text"] == drawn["text"]


def test_temperature_zero_needs_no_seed(daemon: Daemon) -> None:
    texts = {generate(daemon, prompt=PROMPT, temperature=0, seed=seed)["text"] for seed in (1, 2, None)}
    assert len(texts) == 1


def test_max_tokens_is_the_most_there_is(daemon: Daemon) -> None:
    long = generate(daemon, prompt=PROMPT, temperature=0, max_tokens=40)
    short = generate(daemon, prompt=PROMPT, temperature=0, max_tokens=20)
    assert (short["completion_tokens"], short["finish_reason"]) == (20, "length")
    assert long["text"].startswith(short["text"].rstrip("\N{REPLACEMENT CHARACTER}"))


@pytest.mark.parametrize("as_list", [True, False])
def test_a_stop_string_ends_the_text_before_it(daemon: Daemon, as_list: bool) -> None:
    free = generate(daemon, prompt=PROMPT, temperature=0, max_tokens=40)["text"]
    stop = free[10:12]
    document = generate(
        daemon, prompt=PROMPT, temperature=0, max_tokens=40, stop=["never seen", stop] if as_list else stop
    )
    assert document["finish_reason"] == "stop"
    assert document["text"] == free[: free.index(stop)]


@pytest.mark.parametrize("requested", [{"temperature": 0}, {"temperature": 1.2, "seed": 4}, {"max_tokens": 1}])
def test_a_stream_ends_with_the_whole(daemon: Daemon, requested: Document) -> None:
    requested = {"prompt": PROMPT, "max_tokens": 60, "seed": 1, **requested}
    *tokens, (last, done) = stream(daemon, **requested)
    assert last == "done"
    assert all(name == "token" and set(data) == {"text"} and data["text"] for name, data in tokens)
    assert "".join(data["text"] for _, data in tokens) == done["text"]
    whole = generate(daemon, **requested)
    untimed = [{key: value for key, value in answer.items() if key != "tokens_per_second"} for answer in (done, whole)]
    assert untimed[0] == untimed[1]


@pytest.mark.parametrize("as_stream", [True, False])
@pytest.mark.parametrize(
    "requested",
    [
        {"prompt": "a" * (CONTEXT + 10), "max_tokens": 1},
        {"messages": [{"role": "user", "content": "a" * CONTEXT}]},
    ],
    ids=["prompt", "chat"],
)
def test_more_than_the_context_is_refused(daemon: Daemon, requested: Document, as_stream: bool) -> None:
    response = daemon.client.post("/generate", json={**requested, "stream": as_stream})
    document = assert_problem(response, 422, "bad_generation")
    assert f"context of {CONTEXT} tokens" in document["detail"] and "Shorten the prompt" in document["detail"]


def test_an_answer_ends_where_the_context_does(daemon: Daemon) -> None:
    answer = daemon.client.post("/generate", json={"prompt": "a" * (CONTEXT - 10), "max_tokens": 20}).json()
    assert answer["completion_tokens"] <= CONTEXT - answer["prompt_tokens"] < 20


def test_an_unknown_adapter(daemon: Daemon) -> None:
    for name in ("adapter-none", "../../etc", ""):
        response = daemon.client.post("/generate", json={"prompt": PROMPT, "adapter": name})
        document = assert_problem(response, 404, "not_found")
        assert repr(name) in document["detail"] and "GET /adapters" in document["detail"]


def test_the_base_and_a_serving_adapter_that_there_is_not(daemon: Daemon) -> None:
    base = generate(daemon, prompt=PROMPT, temperature=0, adapter="base")
    serving = generate(daemon, prompt=PROMPT, temperature=0, adapter="serving")
    assert base["adapter"] is serving["adapter"] is None
    assert base["text"] == serving["text"]


def test_a_client_that_goes_away_lets_the_next_one_in(daemon: Daemon) -> None:
    with daemon.client.stream(
        "POST", "/generate", json={"prompt": PROMPT, "temperature": 0, "max_tokens": ENDLESS, "stream": True}
    ) as response:
        assert next(events(response))[0] == "token"
    after, again = (generate(daemon, prompt=PROMPT, temperature=0)["text"] for _ in range(2))
    assert after == again  # nothing of the answer that was broken off got into the next one


def test_a_client_without_patience_lets_the_next_one_in(daemon: Daemon) -> None:
    with pytest.raises(httpx.ReadTimeout):
        daemon.client.post("/generate", json={"prompt": PROMPT, "temperature": 0, "max_tokens": ENDLESS}, timeout=0.5)
    assert generate(daemon, prompt=PROMPT, temperature=0)["text"]


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


def test_the_log_holds_nothing_of_the_texts(daemon: Daemon) -> None:
    generate(daemon, prompt="xyzzy, said the prompt")
    daemon.client.post("/generate", json={"prompt": "xyzzy" * CONTEXT})
    daemon.client.post("/texts", json={"text": "xyzzy, said the text"})
    assert "serving tiny" in daemon.log
    assert "xyzzy" not in daemon.log
