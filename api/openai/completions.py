"""/v1/chat/completions and /v1/completions: text, as programs written for OpenAI's API ask for it."""

import json
import secrets
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from http import HTTPStatus
from typing import Any

from fastapi import APIRouter, Depends, Request
from fastapi.responses import Response, StreamingResponse
from starlette.concurrency import run_in_threadpool

from pocketllm.api.bodies import JSONRoute
from pocketllm.api.dependencies import ServicesDep, json_only
from pocketllm.api.errors import Problem, code_of, problem_body, status_of
from pocketllm.api.native.recall import before_question, described, recall
from pocketllm.api.openai.answers import ChatAnswer, TextAnswer, documented
from pocketllm.api.openai.models import resolve
from pocketllm.api.openai.schemas import (
    AnswerBuilder,
    ChatBuilder,
    ChatRequest,
    CompletionRequest,
    SharedRequest,
    TextBuilder,
    usage,
)
from pocketllm.api.responses import PrettyJSONResponse
from pocketllm.daemon.errors import DaemonError
from pocketllm.daemon.generation.service import Done, GenerationRequest, Generator, Piece
from pocketllm.daemon.services import Services
from pocketllm.storage.repositories.passages import Passage

router = APIRouter(prefix="/v1", tags=["openai"], route_class=JSONRoute)

_DEFAULTS = GenerationRequest()


@router.post("/chat/completions", dependencies=[Depends(json_only)], responses=documented(ChatAnswer))
async def chat(request: Request, body: ChatRequest, services: ServicesDep) -> Response:
    """Answer a chat. With `stream`, send chunks as server-sent events, then `[DONE]`."""
    messages = [message.plain() for message in body.messages]
    passages = list[Passage]()
    if body.context:
        passages = await run_in_threadpool(recall, request, services, messages[-1]["content"])
        messages = before_question(passages, messages)
    requests, about = await _requests(services, body, [{"messages": messages}])
    builder = ChatBuilder(id=f"chatcmpl-{_id()}", **about, recalled=described(passages))
    return await _answered(request, services.generator, requests, builder, body)


@router.post("/completions", dependencies=[Depends(json_only)], responses=documented(TextAnswer))
async def complete(request: Request, body: CompletionRequest, services: ServicesDep) -> Response:
    """Continue one or several texts. With `stream`, send chunks as server-sent events, then `[DONE]`."""
    requests, about = await _requests(services, body, [one | {"echo": bool(body.echo)} for one in body.inputs])
    return await _answered(request, services.generator, requests, TextBuilder(id=f"cmpl-{_id()}", **about), body)


def _id() -> str:
    return secrets.token_hex(12)


async def _requests(
    services: Services, body: ChatRequest | CompletionRequest, inputs: Sequence[dict[str, Any]]
) -> tuple[list[GenerationRequest], dict[str, Any]]:
    """What to generate, one request a choice, and what the documents of the answer share. Raises Problem."""
    if (name := body.unsupported()) is not None:
        detail = f"{name} is not supported: the model reads and writes plain text only. Leave it out."
        raise Problem(HTTPStatus.BAD_REQUEST, detail, param=name, code="unsupported_parameter")
    json_schema = None if body.response_format is None else body.response_format.schema_wanted
    backend = None if json_schema is None else await run_in_threadpool(lambda: services.generator.backend)
    if backend is not None and backend.name != "llamacpp":
        detail = f"{backend.refusal_of_json} Leave response_format out."
        raise Problem(HTTPStatus.BAD_REQUEST, detail, param="response_format", code="unsupported_parameter")
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
    scored = body.alternatives is not None
    about = {
        "created": int(services.now().timestamp()),
        "model": body.model,
        "fingerprint": f"fp_{services.settings.model}_{adapter or 'base'}",
        "warnings": [*body.warnings, *(["logprobs is ignored in a stream"] if scored and body.stream else [])],
    }
    return requests, about


async def _answered(
    request: Request,
    generator: Generator,
    requests: list[GenerationRequest],
    builder: AnswerBuilder,
    body: SharedRequest,
) -> Response:
    if body.stream:
        events = _chunks(generator, requests, builder, usage_wanted=body.usage_wanted)
        first = await anext(events)  # before it there is no answer at all: an error still has its status
        return StreamingResponse(_stream(first | builder.remarks(), events), media_type="text/event-stream")
    answers: list[Done] = []
    for one in requests:
        async with aclosing(generator.generate(one)) as pieces:
            async for event in pieces:
                if isinstance(event, Done):
                    answers.append(event)
                elif await request.is_disconnected():
                    return Response(status_code=499)  # nobody reads it
    return PrettyJSONResponse(builder.whole(answers))


async def _chunks(
    generator: Generator, requests: list[GenerationRequest], builder: AnswerBuilder, *, usage_wanted: bool
) -> AsyncGenerator[dict[str, Any]]:
    """The documents of a stream. Raises DaemonError."""
    answers: list[Done] = []
    for index, one in enumerate(requests):
        begun = False
        async with aclosing(generator.generate(one)) as pieces:
            async for event in pieces:
                if not begun and (opening := builder.first(index)):
                    yield builder.chunk(opening)
                begun = True
                if isinstance(event, Piece):
                    yield builder.chunk([builder.piece(index, event.text)])
                else:
                    answers.append(event)
                    yield builder.chunk([builder.last(index, event.summary["finish_reason"])])
    if usage_wanted:
        yield builder.chunk([]) | {"usage": usage(answers)}


async def _stream(first: dict[str, Any], rest: AsyncGenerator[dict[str, Any]]) -> AsyncGenerator[bytes]:
    """As it comes. Starlette closes this when the client goes away, which stops the generation."""
    async with aclosing(rest):
        yield _event(first)
        try:
            async for document in rest:
                yield _event(document)
            yield b"data: [DONE]\n\n"
        except DaemonError as error:
            yield _event(problem_body(status_of(error), str(error), code=code_of(error)))


def _event(document: dict[str, Any]) -> bytes:
    return f"data: {json.dumps(document, ensure_ascii=False)}\n\n".encode()
