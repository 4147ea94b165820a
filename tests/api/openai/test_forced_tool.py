"""One function that has to be called: OpenAI's client and pydantic-ai, unmodified, against a real daemon.

The model is SmolLM2, by llama.cpp.
"""

import asyncio
import json
from collections.abc import Iterator
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider

from pocketllm.api.openai.answers import ChatAnswer
from pocketllm.api.openai.schemas import ChatMessage, ChatRequest
from pocketllm.engine.formats.importer import default_source, import_model
from tests.support.daemon.real_daemon import Daemon, running

BASE, QUESTION = "pocketllm:base", "The wind comes from the north and is strong."
MESSAGES: list[Any] = [{"role": "user", "content": QUESTION}]


class Wind(BaseModel):
    """The wind."""

    direction: Literal["north", "south"]
    strong: bool


def tool(name: str) -> Any:
    return {"type": "function", "function": {"name": name, "parameters": Wind.model_json_schema()}}


def choice(name: str) -> Any:
    return {"type": "function", "function": {"name": name}}


ASKED: dict[str, Any] = {"model": BASE, "messages": MESSAGES, "tools": [tool("wind")], "tool_choice": "required"}


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    folder = tmp_path_factory.mktemp("tools") / "data"
    import_model(default_source(), folder / "models", name="smollm2")
    with running(folder, MODEL="smollm2", TRAINING__NEW_WORDS="100000") as made:
        yield made


@pytest.fixture
def client(daemon: Daemon) -> Iterator[openai.OpenAI]:
    url = f"{daemon.url}/v1"
    with openai.OpenAI(base_url=url, api_key=daemon.token, _strict_response_validation=True) as made:
        yield made


@pytest.mark.slow
def test_the_answer_is_a_call(client: openai.OpenAI, daemon: Daemon) -> None:
    for each in ("required", choice("wind")):
        answer = client.chat.completions.create(
            model=BASE, messages=MESSAGES, tools=[tool("wind")], tool_choice=each, n=2, seed=3
        )
        for one in answer.choices:
            assert (one.finish_reason, one.message.content) == ("tool_calls", None)
            [call] = one.message.tool_calls or []
            assert call.type == "function" and call.function.name == "wind"
            Wind.model_validate_json(call.function.arguments)
        assert "warnings" not in answer.to_dict()
    whole = daemon.client.post("/v1/chat/completions", json=ASKED).json()
    assert ChatAnswer.model_validate(whole).choices[0].message.tool_calls
    cut = daemon.client.post("/v1/chat/completions", json=ASKED | {"max_tokens": 2}).json()["choices"][0]
    assert cut["finish_reason"] == "length", "half a call is none"


@pytest.mark.slow
def test_a_streamed_call_says_the_same(client: openai.OpenAI) -> None:
    whole = client.chat.completions.create(**ASKED, seed=3).choices[0].message.tool_calls[0].function
    chunks = list(client.chat.completions.create(**ASKED, seed=3, stream=True))
    deltas = [chunk.choices[0].delta for chunk in chunks]
    calls = [call for delta in deltas for call in delta.tool_calls or []]
    assert (deltas[0].role, calls[0].type, calls[0].function.name) == ("assistant", "function", whole.name)
    assert calls[0].id and {call.id for call in calls[1:]} == {None}
    assert "".join(call.function.arguments for call in calls) == whole.arguments
    assert chunks[-1].choices[0].finish_reason == "tool_calls" and not any(delta.content for delta in deltas)


@pytest.mark.slow
def test_pydantic_ai(daemon: Daemon) -> None:
    """As it asks by default; once more where its first answer is refused, and again in the same conversation."""
    seen: list[Wind] = []

    def refuse_the_first(found: Wind) -> Wind:
        seen.append(found)
        if len(seen) == 1:
            raise ModelRetry("Look again.")
        return found

    async def talk() -> None:
        async with openai.AsyncOpenAI(base_url=f"{daemon.url}/v1", api_key=daemon.token) as plain:
            model = OpenAIChatModel(BASE, provider=OpenAIProvider(openai_client=plain))
            agent = Agent(model, output_type=Wind)
            agent.output_validator(refuse_the_first)
            first = await agent.run(QUESTION)
            assert isinstance(first.output, Wind) and len(seen) == 2
            again = await agent.run("And now?", message_history=first.all_messages())
            assert isinstance(again.output, Wind)

    asyncio.run(talk())


def test_calls_in_the_history_are_read_as_they_were_written() -> None:
    """What instructor and pydantic-ai send where they ask once more."""
    call = {"id": "call_1", "type": "function", "function": {"name": "wind", "arguments": '{"strong": true}'}}
    said = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert ChatMessage.model_validate(said).plain() == {"role": "assistant", "content": '{"strong": true}'}
    told = {"role": "tool", "tool_call_id": "call_1", "name": "wind", "content": "Look again."}
    assert ChatMessage.model_validate(told).plain() == {"role": "user", "content": "Look again."}


@pytest.mark.parametrize(
    ("tools", "chosen", "named"),
    [
        ([tool("wind")], None, "tools"),
        ([tool("wind")], "auto", "tools"),
        ([tool("wind")], "none", "tools"),
        ([tool("wind")], choice("rain"), "tools"),
        ([tool("wind"), tool("rain")], "required", "tools"),
        ([tool("wind"), tool("rain")], choice("rain"), "tools"),
        ([{"type": "custom", "custom": {"name": "wind"}}], "required", "tools"),
        ([], "required", "tool_choice"),
        (None, choice("wind"), "tool_choice"),
        (None, "auto", None),
        ([tool("wind")], "required", None),
        ([tool("wind")], choice("wind"), None),
    ],
)
def test_only_one_function_that_is_forced(tools: Any, chosen: Any, named: str | None) -> None:
    asked = {"model": BASE, "messages": MESSAGES, "tools": tools, "tool_choice": chosen}
    request = ChatRequest.model_validate_json(json.dumps(asked))
    assert (request.unsupported(), request.warnings) == (named, [])
