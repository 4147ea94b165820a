"""Polls slow sources in a background thread, so that readers never wait; runs commands with a time limit.

termux-battery-status usually takes a second, seven on some phones, and hangs where its app is missing or frozen.
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

#: The most output of a command.
MAX_BYTES = 256 * 1024
#: The waits after the first failures in a row; the last one from then on.
RETRY_SECONDS = (60.0, 120.0, 300.0, 900.0)


class ProbeFailed(Exception):
    """A source did not answer, or its answer cannot be parsed."""


def run(command: Sequence[str], *, timeout_seconds: float) -> str:
    """The command's standard output. Raises ProbeFailed.

    It runs in its own session, so that its children are killed with it: a hung termux-api leaves one.
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
        raise ProbeFailed(f"{command[0]} did not answer within {timeout_seconds:g} s") from error
    finally:
        _end(process)
    if code:
        raise ProbeFailed(f"{command[0]} exited with code {code}")
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
            raise ProbeFailed(f"{process.args!r} sends too much output")


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill its session and close its pipe, without reading to the end: a descendant may hold it open."""
    with suppress(ProcessLookupError, PermissionError):  # gone; some systems do not let a zombie's group be signalled
        os.killpg(process.pid, signal.SIGKILL)
    assert process.stdout is not None
    process.stdout.close()
    process.wait()


@dataclass
class Pace:
    """How often sources are polled: more often while a job runs."""

    training: bool = False
    asked_anew: datetime | None = None  #: polls that began before this are made again at once


@dataclass(frozen=True, kw_only=True)
class Asked(Generic[Heard]):
    """A source's answer."""

    at: datetime  #: when the poll began
    answer: Heard | None
    problem: str | None  #: why there is no answer


class Answers(Protocol[Heard]):
    """A sensor's access to its source's answers."""

    def latest(self, now: datetime) -> Asked[Heard] | None:
        """The last answer; None before the first."""


class Background(Generic[Answer]):
    """Polls a slow source in its own thread; readers get the last answer at once.

    After failures the interval grows (RETRY_SECONDS).
    """

    def __init__(
        self,
        ask: Callable[[], Answer],
        pace: Pace,
        *,
        idle_seconds: float,
        training_seconds: float,
    ) -> None:
        """ask: raises ProbeFailed. The intervals are between the starts of two polls."""
        self._ask, self._pace = ask, pace
        self._idle, self._training = timedelta(seconds=idle_seconds), timedelta(seconds=training_seconds)
        self._last: Asked[Answer] | None = None
        self._asked_at: datetime | None = None
        self._failures = 0
        self._thread: threading.Thread | None = None

    def latest(self, now: datetime) -> Asked[Answer] | None:
        """The last answer; None before the first. Starts the next poll if it is due, without waiting for it."""
        last = self._last  # read first, so that it does not depend on how soon the new one comes
        if not self.busy and self._due(now):
            self._asked_at = now
            self._thread = threading.Thread(target=self._work, args=(now,), name="probe", daemon=True)
            self._thread.start()
        return last

    @property
    def busy(self) -> bool:
        """Whether a poll is running."""
        return self._thread is not None and self._thread.is_alive()

    def _due(self, now: datetime) -> bool:
        anew = self._pace.asked_anew
        if self._asked_at is None or (anew is not None and self._asked_at < anew):
            return True
        wait = self._training if self._pace.training else self._idle
        if self._failures:
            wait = max(wait, timedelta(seconds=RETRY_SECONDS[min(self._failures, len(RETRY_SECONDS)) - 1]))
        return not timedelta(0) <= now - self._asked_at < wait  # a negative age means that the clock was set back

    def _work(self, at: datetime) -> None:
        try:
            self._last = Asked(at=at, answer=self._ask(), problem=None)
            self._failures = 0
        except ProbeFailed as error:
            self._last = Asked(at=at, answer=None, problem=str(error))
            self._failures += 1
