"""Idempotency-Key: a request that is sent again with the same key is answered again, and done once.

By the IETF's draft (draft-ietf-httpapi-idempotency-key-header): the same key with another request is 422, and while the
first is still under way 409.
"""

import hashlib
import re
from collections.abc import Callable
from datetime import datetime
from http import HTTPStatus

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pocketllm.api.problems import TOO_LARGE, code_for, problem_response
from pocketllm.storage.answers import AnswerStore
from pocketllm.storage.tables import KeptAnswer

#: What is done twice if it is sent twice. Answers with secrets or with words are not among them: they are kept.
_ROUTES = re.compile("/texts|/jobs")
_KEY = re.compile("[!-~]{1,255}")
_KEPT_HEADERS = ("content-type", "location")


class Idempotent:
    """ASGI middleware. Stands inside of the guard, which notes who calls: each caller's keys are its own."""

    def __init__(self, app: ASGIApp, *, store: AnswerStore, now: Callable[[], datetime]) -> None:
        self._app, self._store, self._now = app, store, now
        self._under_way: set[str] = set()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        given = Headers(scope=scope).get("idempotency-key") if scope["type"] == "http" else None
        if given is None or scope["method"] != "POST" or not _ROUTES.fullmatch(scope["path"]):
            await self._app(scope, receive, send)
            return
        if not _KEY.fullmatch(given):
            detail = "Idempotency-Key is 1 to 255 characters without spaces, best a UUID."
            await _refuse(HTTPStatus.UNPROCESSABLE_ENTITY, detail, "invalid_value")(scope, receive, send)
            return
        # A caller's name holds no such byte.
        key = f"{scope.get('state', {}).get('caller', '')}\0{given}"
        if key in self._under_way:
            detail = "The first request with this Idempotency-Key is still under way. Try again in a second."
            await _refuse(HTTPStatus.CONFLICT, detail, "under_way")(scope, receive, send)
            return
        self._under_way.add(key)
        try:
            await self._once(key, scope, receive, send)
        finally:
            self._under_way.discard(key)

    async def _once(self, key: str, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            body = await _body(receive)
        except HTTPException as error:  # of the limit
            status = HTTPStatus(error.status_code)
            await _refuse(status, TOO_LARGE, code_for(status))(scope, receive, send)
            return
        if body is None:
            return  # who asked has gone
        digest = _digest(scope, body)
        kept = await run_in_threadpool(self._store.find, key, self._now())
        if kept is None:
            answer = _Answer(send)
            await self._app(scope, _again(body), answer)
            if answer.status < HTTPStatus.INTERNAL_SERVER_ERROR:
                await run_in_threadpool(self._store.keep, answer.kept(key, digest, self._now()))
        elif kept.request_digest != digest:
            detail = "This Idempotency-Key was sent with another request. Each request has a key of its own."
            await _refuse(HTTPStatus.UNPROCESSABLE_ENTITY, detail, "key_in_use")(scope, receive, send)
        else:
            headers = {**kept.headers, "idempotency-replayed": "true", "content-length": str(len(kept.body))}
            raw = [(name.encode(), value.encode()) for name, value in headers.items()]
            await send({"type": "http.response.start", "status": kept.status, "headers": raw})
            await send({"type": "http.response.body", "body": kept.body})


class _Answer:
    """Passes an answer on and remembers it."""

    def __init__(self, send: Send) -> None:
        self._send, self.status, self._headers, self._body = send, 0, Headers(), b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self._headers = message["status"], Headers(raw=message["headers"])
        else:
            self._body += message.get("body", b"")
        await self._send(message)

    def kept(self, key: str, digest: str, at: datetime) -> KeptAnswer:
        headers = {name: self._headers[name] for name in _KEPT_HEADERS if name in self._headers}
        return KeptAnswer(key=key, request_digest=digest, status=self.status, headers=headers, body=self._body, at=at)


async def _body(receive: Receive) -> bytes | None:
    """The whole body; None where the client goes away. Raises HTTPException: the limit around `receive` does."""
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        body += message.get("body", b"")
        if not message.get("more_body", False):
            return bytes(body)


def _again(body: bytes) -> Receive:
    """What gives a body that was read already."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Message:
        return messages.pop() if messages else {"type": "http.disconnect"}

    return receive


def _digest(scope: Scope, body: bytes) -> str:
    kind = Headers(scope=scope).get("content-type", "")
    parts = (scope["path"].encode(), scope["query_string"], kind.encode(), body)
    return hashlib.sha256(b"\0".join(parts)).hexdigest()


def _refuse(status: HTTPStatus, detail: str, code: str) -> ASGIApp:
    answer = problem_response(status, detail, code=code)
    if status is HTTPStatus.CONFLICT:
        answer.headers["Retry-After"] = "1"
    return answer
