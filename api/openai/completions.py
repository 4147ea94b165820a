"""/v1/chat/completions and /v1/completions: text, as programs written for OpenAI's API ask for it."""

import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import JSONRoute
from pocketllm.api.dependencies import ServicesDep, needs
from pocketllm.api.errors import Problem, problem_of
from pocketllm.api.native.recall import before_question, described, recall
from pocketllm.api.openai.answers import ChatAnswer, ChatChoice, Summary, TextAnswer, TextChoice, Usage, as_call, part
from pocketllm.api.openai.models import resolve
from pocketllm.api.openai.schemas import ChatRequest, CompletionRequest
from pocketllm.api.responses import PrettyJSONResponse
from pocketllm.daemon.errors import DaemonError
from pocketllm.daemon.generation.generator import GenerationRequest, Generator
from pocketllm.daemon.services import Services

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JSONRoute)

_DEFAULTS = GenerationRequest()
#: For OpenAPI: beside the whole answer there may be a stream of its parts.
_STREAM: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, its chunks as server-sent events, then `[DONE]`",
        "content": {"text/event-stream": {}},
    }
}


@router.post("/chat/completions", response_model=ChatAnswer, responses=_STREAM, openapi_extra=needs("generate"))
async def chat(request: Request, body: ChatRequest, services: ServicesDep) -> Response:
    """Answer a chat. With `stream`, send chunks as server-sent events, then `[DONE]`."""
    messages, remarks = [message.plain() for message in body.messages], dict[str, Any]()
    if body.context:
        passages = await run_in_threadpool(recall, request, services, messages[-1]["content"])
        messages, remarks = before_question(passages, messages), {"recalled": described(passages)}
    return await _answered(request, services, body, [{"messages": messages}], remarks)


@router.post("/completions", response_model=TextAnswer, responses=_STREAM, openapi_extra=needs("generate"))
async def complete(request: Request, body: CompletionRequest, services: ServicesDep) -> Response:
    """Continue one or several texts. With `stream`, send chunks as server-sent events, then `[DONE]`."""
    return await _answered(request, services, body, [one | {"echo": bool(body.echo)} for one in body.inputs], {})


async def _answered(
    request: Request,
    services: Services,
    body: ChatRequest | CompletionRequest,
    inputs: Sequence[dict[str, Any]],
    remarks: dict[str, Any],
) -> Response:
    """The answer to these inputs. remarks: what is said once, by a whole answer or by the first chunk of a stream."""
    requests, about = await _requests(services, body, inputs)
    unscored = ["logprobs is ignored in a stream"] if body.stream and body.alternatives is not None else []
    remarks = {name: said for name, said in {"warnings": body.warnings + unscored, **remarks}.items() if said}
    if body.stream:
        events = _chunks(services.generator, requests, body, about)
        first = await anext(events)  # before it there is no answer at all: an error still has its status
        return StreamingResponse(_stream(first | remarks, events), media_type="text/event-stream")
    answers = [await services.generator.ask(one, is_gone=request.is_disconnected) for one in requests]
    common = {**about, "usage": Usage.of(answers), **remarks}
    whole: ChatAnswer | TextAnswer
    if isinstance(body, ChatRequest):
        choices = [ChatChoice.of(index, answer, body.forced) for index, answer in enumerate(answers)]
        whole = ChatAnswer(object="chat.completion", choices=choices, **common)
    else:
        texts = [TextChoice.of(index, answer) for index, answer in enumerate(answers)]
        whole = TextAnswer(object="text_completion", choices=texts, **common)
    return PrettyJSONResponse(whole.model_dump(exclude_unset=True))


async def _requests(
    services: Services, body: ChatRequest | CompletionRequest, inputs: Sequence[dict[str, Any]]
) -> tuple[list[GenerationRequest], dict[str, Any]]:
    """What to generate, one request a choice, and what the documents of the answer share. Raises Problem."""
    if (name := body.unsupported()) is not None:
        detail = f"{name} is not supported: the model writes plain text, or calls one forced function. Leave it out."
        raise Problem(HTTPStatus.BAD_REQUEST, detail, param=name, code="unsupported_parameter")
    forced = body.forced if isinstance(body, ChatRequest) else None
    by, json_schema = "response_format", body.response_format.schema_wanted if body.response_format else None
    if forced:  # with no other arguments than it has, of which a small model finds no end
        by, json_schema = "tools", {"additionalProperties": False} | forced.parameters
    backend = None if json_schema is None else await run_in_threadpool(lambda: services.generator.backend)
    if backend is not None and backend.name != "llamacpp":
        detail = f"{backend.refusal_of_json} Leave {by} out."
        raise Problem(HTTPStatus.BAD_REQUEST, detail, param=by, code="unsupported_parameter")
    adapter, folder = await run_in_threadpool(resolve, services, body.model)
    first = secrets.randbits(31) if body.seed is None else body.seed
    requests = [
        GenerationRequest(
            **given,
            adapter=folder,
            temperature=_DEFAULTS.temperature if body.temperature is None else body.temperature,
            top_p=_DEFAULTS.top_p if body.top_p is None else body.top_p,
            max_tokens=body.most_tokens,
            stop=tuple(body.stop or ()),
            seed=seed,
            alternatives=None if body.stream else body.alternatives,
            json_schema=json_schema,
        )
        for given in inputs
        for seed in body.seeds(first)
    ]
    about = {
        "id": f"{'chatcmpl' if isinstance(body, ChatRequest) else 'cmpl'}-{secrets.token_hex(12)}",
        "created": int(services.now().timestamp()),
        "model": body.model,
        "system_fingerprint": f"fp_{services.settings.model}_{adapter or 'base'}",
    }
    return requests, about


async def _chunks(
    generator: Generator,
    requests: list[GenerationRequest],
    body: ChatRequest | CompletionRequest,
    about: dict[str, Any],
) -> AsyncGenerator[dict[str, Any]]:
    """The documents of a stream. Raises DaemonError."""
    is_chat = isinstance(body, ChatRequest)
    forced = body.forced if isinstance(body, ChatRequest) else None
    about = {**about, "object": "chat.completion.chunk" if is_chat else "text_completion"}
    answers = list[Summary]()
    for index, one in enumerate(requests):
        begun = not is_chat
        async with aclosing(generator.generate(one)) as pieces:
            async for event in pieces:
                if not begun:
                    yield {**about, "choices": [as_call(part(is_chat, index, "", role="assistant"), forced)]}
                begun = True
                if isinstance(event, str):
                    choice = part(is_chat, index, event)
                else:
                    answers.append(event)
                    choice = part(is_chat, index, "", event["finish_reason"])
                yield {**about, "choices": [as_call(choice, forced)]}
    if body.usage_wanted:
        yield {**about, "choices": [], "usage": Usage.of(answers).model_dump()}


async def _stream(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    """As it comes. Starlette closes this when the client goes away, which stops the generation."""
    async with aclosing(rest):
        yield _event(first)
        try:
            async for document in rest:
                yield _event(document)
            yield b"data: [DONE]\n\n"
        except DaemonError as error:
            yield _event(problem_of(error).body())


def _event(document: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()
