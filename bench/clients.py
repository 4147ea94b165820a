"""What other people's clients get: log-likelihoods as transformers has them, and no prose where they ask for JSON.

python -m bench.clients [--models DIR] [--quick]

Needs, beside what the benches need: pip install "lm-eval[api]" instructor "pydantic-ai-slim[openai]" langchain-openai
litellm. lm-eval scores string prompts and token ids over /v1/completions, held to transformers in fp32. The others ask
for tools and for JSON: right is a valid answer, or an error that names the parameter; prose is counted.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from bench.common.harness import Limit, finish, parser, progress, start
from bench.common.peers import build
from bench.common.shapes import learner, models_folder
from bench.common.world import daemon_on
from pocketllm.engine.formats.model_folder import open_model_folder

LIMITS = {"lm_eval_difference": Limit(at_most=1e-3), "prose_for_tools_or_json": Limit(at_most=0)}
_MODEL = "pocketllm:base"
_QUESTION = "Anna is 31 years old."
_PAIRS = (
    ("The ferry leaves", " at nine in the morning."),
    ("Question: What is the capital of France?\nAnswer:", " Paris"),
    ("She opened the door and", " there was nobody, only the wind and a letter on the floor."),
    ("", "Wind west, glass rising."),
    ("Das Boot liegt", " am Steg, bis morgen früh."),
)


class Person(BaseModel):
    """What is asked for."""

    name: str
    age: int


_TOOL = {"type": "function", "function": {"name": "person", "parameters": Person.model_json_schema()}}


def by_lm_eval(url: str, folder: Path, *, tokenized: bool) -> list[float]:
    """The log-likelihood of each continuation."""
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    model = LocalCompletionsAPI(
        base_url=f"{url}/completions",
        model=_MODEL,
        tokenizer=str(folder),
        tokenizer_backend="huggingface",
        tokenized_requests=tokenized,
        num_concurrent=1,
        max_retries=1,
    )
    requests = [Instance("loglikelihood", {}, pair, place) for place, pair in enumerate(_PAIRS)]
    return [nats for nats, _ in model.loglikelihood(requests, disable_tqdm=True)]


@torch.inference_mode()
def by_transformers(folder: Path) -> list[float]:
    """The same, with lm-eval's own split into tokens: an empty context is the tokenizer's first special token."""
    model = build(folder, "float32").eval()
    tokenizer = open_model_folder(folder).tokenizer()
    first = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    found = []
    for context, text in _PAIRS:
        before = tokenizer(context, add_special_tokens=False)["input_ids"] or [first]
        whole = [*before, *tokenizer(text, add_special_tokens=False)["input_ids"]]
        logprobs = model(torch.tensor([whole])).logits[0].log_softmax(-1)
        found.append(sum(float(logprobs[place - 1, whole[place]]) for place in range(len(before), len(whole))))
    return found


def instructor_with(mode: str) -> Callable[[str, str], Any]:
    """A person from instructor in one of its modes."""

    def ask(url: str, token: str) -> Any:
        import instructor
        from openai import OpenAI

        client = instructor.from_openai(OpenAI(base_url=url, api_key=token), mode=getattr(instructor.Mode, mode))
        messages: Any = [{"role": "user", "content": _QUESTION}]
        return client.chat.completions.create(model=_MODEL, messages=messages, response_model=Person, max_retries=0)

    return ask


def pydantic_ai(url: str, token: str) -> Any:
    """A person from pydantic-ai, which asks with a tool."""
    from pydantic_ai import Agent
    from pydantic_ai.models.openai import OpenAIChatModel
    from pydantic_ai.providers.openai import OpenAIProvider

    model = OpenAIChatModel(_MODEL, provider=OpenAIProvider(base_url=url, api_key=token))
    return Agent(model, output_type=Person).run_sync(_QUESTION).output


def langchain_with(method: str) -> Callable[[str, str], Any]:
    """A person from langchain by one of its methods."""

    def ask(url: str, token: str) -> Any:
        from langchain_openai import ChatOpenAI

        model = ChatOpenAI(model=_MODEL, base_url=url, api_key=token, max_retries=0)
        return model.with_structured_output(Person, method=method).invoke(_QUESTION)

    return ask


def litellm_with(**asked: Any) -> Callable[[str, str], Any]:
    """What litellm answers when it is asked like this."""

    def ask(url: str, token: str) -> Any:
        import litellm

        messages = [{"role": "user", "content": _QUESTION}]
        answer = litellm.completion(
            model=f"openai/{_MODEL}", api_base=url, api_key=token, messages=messages, num_retries=0, **asked
        )
        message = answer.choices[0].message
        return Person.model_validate_json(
            message.tool_calls[0].function.arguments if message.tool_calls else message.content
        )

    return ask


#: Client -> how it asks, and the parameter that the error is to name.
ASKED: Mapping[str, tuple[Callable[[str, str], Any], str]] = {
    "instructor, tools": (instructor_with("TOOLS"), "tools"),
    "instructor, JSON": (instructor_with("JSON"), "response_format"),
    "pydantic-ai": (pydantic_ai, "tools"),
    "langchain, function calling": (langchain_with("function_calling"), "tools"),
    "langchain, JSON schema": (langchain_with("json_schema"), "response_format"),
    "langchain, JSON mode": (langchain_with("json_mode"), "response_format"),
    "litellm, tools": (litellm_with(tools=[_TOOL]), "tools"),
    "litellm, JSON": (litellm_with(response_format={"type": "json_object"}), "response_format"),
}


def outcome(ask: Callable[[str, str], Any], parameter: str, url: str, token: str) -> str:
    """What a client gets: "right", "error" or "prose"."""
    try:
        found = ask(url, token)
    except Exception as error:  # each has its own
        named = (f"{parameter} is not supported", f"Leave {parameter} out")
        return "error" if any(words in str(error) for words in named) else "prose"
    return "right" if isinstance(found, Person) else "prose"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        folder = learner(models, quick=options.quick).absolute()
        with daemon_on(Path(scratch), folder) as client:
            url = f"{client.target.url}/v1"
            token = json.loads((Path(scratch) / "tokens.json").read_text())["owner"]
            os.environ["OPENAI_API_KEY"] = token
            theirs = by_transformers(folder)
            scored = {
                kind: by_lm_eval(url, folder, tokenized=kind == "token ids") for kind in ("string prompts", "token ids")
            }
            got = {}
            for name, (ask, parameter) in ASKED.items():
                got[name] = outcome(ask, parameter, url, token)
                progress(f"{name}: {got[name]}")
    differences = {
        kind: max(abs(one - other) for one, other in zip(found, theirs, strict=True)) for kind, found in scored.items()
    }
    values: dict[str, float | None] = {
        "lm_eval_difference": max(differences.values()),
        "prose_for_tools_or_json": float(list(got.values()).count("prose")),
    }
    raw = {"lm_eval": scored, "transformers": theirs, "clients": got}
    return finish("clients", [], values=values, limits=LIMITS, raw=raw, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.clients", "What other people's clients get.")
    made.add_argument("--models", type=Path, help="keep the model in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
