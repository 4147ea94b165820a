"""Asking what may be slow or never answer, without waiting for it: a command with a limit, and a thread that asks.

termux-battery-status takes a second as a rule, seven on some phones, and for ever where its app is missing or frozen.
"""

import os
import select
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Generic, Protocol, TypeVar

Answer = TypeVar("Answer")
Heard = TypeVar("Heard", covariant=True)

#: More than any source here has to say.
MAX_BYTES = 256 * 1024
#: The waits after the first failures in a row; the last one from then on.
RETRY_SECONDS = (60.0, 120.0, 300.0, 900.0)


class ProbeFailed(Exception):
    """A source did not answer, or not in a way that can be understood."""


def run(command: Sequence[str], *, timeout_seconds: float) -> str:
    """What the command writes to its standard output. Raises ProbeFailed.

    It gets a session of its own, so that all it has started can be killed with it: a hung termux-api leaves a child.
    """
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as error:
        raise ProbeFailed(f"{command[0]} cannot be run: {error.strerror}") from error
    deadline = time.monotonic() + timeout_seconds
    try:
        output = _read(process, deadline)
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except (TimeoutError, subprocess.TimeoutExpired) as error:
        raise ProbeFailed(f"{command[0]} has not answered within {timeout_seconds:g} s") from error
    finally:
        _end(process)
    if code:
        raise ProbeFailed(f"{command[0]} ended with code {code}")
    return output.decode(errors="replace")


def _read(process: subprocess.Popen[bytes], deadline: float) -> bytes:
    assert process.stdout is not None
    pipe = process.stdout.fileno()
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    output = b""
    while True:
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(1000 * left):
            raise TimeoutError
        chunk = os.read(pipe, MAX_BYTES)
        if not chunk:
            return output
        output += chunk
        if len(output) > MAX_BYTES:
            raise ProbeFailed(f"{process.args!r} answers without end")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of it. Its pipe is closed, not read to the end: a stray descendant may hold it open."""
    with suppress(ProcessLookupError, PermissionError):  # gone; a zombie's group may not be signalled everywhere
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()
    process.wait()


@dataclass
class Pace:
    """How eagerly sources are asked: while a job runs, what forbids it must be seen soon."""

    training: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked(Generic[Heard]):
    """What a source said when it was asked."""

    at: datetime  #: when the question was put: what is answered may be as old
    answer: Heard | None
    problem: str | None  #: why there is no answer


class Answers(Protocol[Heard]):
    """Where a sensor has its source's answers from."""

    def latest(self, now: datetime) -> Asked[Heard] | None:
        """The last answer; None before the first."""


class Background(Generic[Answer]):
    """A slow source, asked by a thread of its own, one question at a time; whoever reads has the last answer at once.

    After a failure it is asked again only after a while, which grows with each in a row.
    """

    def __init__(
        self,
        ask: Callable[[], Answer],
        pace: Pace,
        *,
        idle_seconds: float,
        training_seconds: float,
    ) -> None:
        """ask: raises ProbeFailed. It is asked again so many seconds after it was last."""
        self._ask, self._pace = ask, pace
        self._idle, self._training = timedelta(seconds=idle_seconds), timedelta(seconds=training_seconds)
        self._last: Asked[Answer] | None = None
        self._asked_at: datetime | None = None
        self._failures = 0
        self._thread: threading.Thread | None = None

    def latest(self, now: datetime) -> Asked[Answer] | None:
        """The last answer; None before the first. Asks again, where it is time, without waiting for it."""
        if not self.busy and self._due(now):
            self._asked_at = now
            self._thread = threading.Thread(target=self._work, args=(now,), name="probe", daemon=True)
            self._thread.start()
        return self._last

    @property
    def busy(self) -> bool:
        """Whether a question is on its way."""
        return self._thread is not None and self._thread.is_alive()

    def _due(self, now: datetime) -> bool:
        if self._asked_at is None:
            return True
        wait = self._training if self._pace.training else self._idle
        if self._failures:
            wait = max(wait, timedelta(seconds=RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS)) - 1]))
        return not timedelta(0) <= now - self._asked_at < wait  # a clock that was set back must not silence it

    def _work(self, at: datetime) -> None:
        try:
            self._last = Asked(at=at, answer=self._ask(), problem=None)
            self._failures = 0
        except ProbeFailed as error:
            self._last = Asked(at=at, answer=None, problem=str(error))
            self._failures += 1
