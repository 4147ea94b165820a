"""uvicorn's HTTP protocol with deadlines and a bound on connections.

Every app on the device reaches the port. Connections that it opens and leaves, heads and bodies that it never ends, and
answers that it never reads must not keep the owner out.
"""

import asyncio
import socket
from typing import Any, Literal

from uvicorn.protocols.http.h11_impl import H11Protocol

#: For a request's whole head, from the connection's opening or from its first byte on.
HEAD_SECONDS = 10.0
#: Between two pieces of a body; and for the client to make room for more of an answer.
BODY_SECONDS, READER_SECONDS = 30.0, 60.0
#: Connections by TCP. One more closes the oldest that waits for a request.
MAX_CONNECTIONS = 256


class BoundedProtocol(H11Protocol):
    """One connection."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.opened_at = self.loop.time()
        self.by_tcp = False
        #: What closes the connection when the client is late with a request, or with reading an answer.
        self._timers: dict[Literal["request", "reader"], asyncio.TimerHandle] = {}
        self._head_since: float | None = self.opened_at

    @property
    def waiting(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio.Protocol."""
        super().connection_made(transport)
        self.by_tcp = transport.get_extra_info("socket").family != socket.AF_UNIX
        if self.by_tcp:
            others = [one for one in self.connections if isinstance(one, BoundedProtocol) and one.by_tcp]
            if len(others) > MAX_CONNECTIONS:
                idle = [one for one in others if one.waiting and one is not self]
                min(idle, key=lambda one: one.opened_at, default=self).transport.abort()
        self._expect()

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        if self.waiting and self._head_since is None:
            self._head_since = self.loop.time()
        super().data_received(data)
        self._expect()

    def on_response_complete(self) -> None:
        """See H11Protocol, which closes a connection that stays idle."""
        super().on_response_complete()
        self._expect()

    def pause_writing(self) -> None:
        """See asyncio.Protocol."""
        super().pause_writing()
        self._timers["reader"] = self.loop.call_later(READER_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """See asyncio.Protocol."""
        super().resume_writing()
        self._cancel("reader")

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        super().connection_lost(exc)
        self._cancel("request")
        self._cancel("reader")

    def _expect(self) -> None:
        """Set the deadline for what the client is to send next; none while it is to send nothing."""
        self._cancel("request")
        if self.waiting:
            if self._head_since is not None:
                self._timers["request"] = self.loop.call_at(self._head_since + HEAD_SECONDS, self.transport.abort)
            return
        self._head_since = None
        if self.cycle.more_body:
            self._timers["request"] = self.loop.call_later(BODY_SECONDS, self._body_late)

    def _body_late(self) -> None:
        if self.flow.read_paused:  # by us
            self._expect()
        else:
            self.transport.abort()

    def _cancel(self, timer: Literal["request", "reader"]) -> None:
        if timer in self._timers:
            self._timers.pop(timer).cancel()
