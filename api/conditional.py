"""Conditional GET: who asks again with the ETag of the last answer gets 304 and no body where nothing has changed.

For pages and apps that ask every few seconds: the answer is made all the same, which is cheap, but not sent.
"""

import hashlib

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

_JSON = "application/json"


class ConditionalGet:
    """ASGI middleware that gives JSON answers to GET an ETag, and compares it with If-None-Match."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http" or scope["method"] != "GET":
            await self._app(scope, receive, send)
            return
        known = Headers(scope=scope).get("if-none-match", "")
        await self._app(scope, receive, _Tagged(send, known))


class _Tagged:
    """Holds a JSON answer back until it is whole; all others pass."""

    def __init__(self, send: Send, known: str) -> None:
        self._send, self._known = send, [tag.strip().removeprefix("W/") for tag in known.split(",")]
        self._start: Message | None = None
        self._body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and self._is_ours(message):
            self._start = message
            return
        if self._start is None:
            await self._send(message)
            return
        self._body += message.get("body", b"")
        if not message.get("more_body", False):
            await self._finish(self._start)

    def _is_ours(self, start: Message) -> bool:
        kind = Headers(raw=start["headers"]).get("content-type", "")
        return start["status"] == 200 and kind.partition(";")[0] == _JSON

    async def _finish(self, start: Message) -> None:
        tag = f'"{hashlib.sha256(self._body).hexdigest()[:32]}"'
        headers = MutableHeaders(raw=start["headers"])
        headers["ETag"] = tag
        # Anyone may keep it, and must ask whether it still holds.
        headers["Cache-Control"] = "private, no-cache"
        if tag in self._known or "*" in self._known:
            for name in ("content-length", "content-type"):
                del headers[name]
            start, self._body = {**start, "status": 304}, b""
        await self._send({**start, "headers": headers.raw})
        await self._send({"type": "http.response.body", "body": self._body})
