"""The daemon's side of the generator: a child process that is started on demand and unloaded when idle."""

import asyncio
import json
import logging
import sys
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from math import inf, isinf
from pathlib import Path
from typing import Any, ClassVar

from pocketllm.daemon.child import child_environment
from pocketllm.daemon.errors import ClientGone, GenerationTooLarge, GeneratorBusy, GeneratorFailed, ModelNotReady
from pocketllm.daemon.generation.backend import Backend, expected_backend
from pocketllm.daemon.paths import DataFolder
from pocketllm.daemon.process_memory import anonymous_bytes
from pocketllm.daemon.processes import StallWatch, session_cpu_seconds, session_pids
from pocketllm.daemon.settings import Settings
from pocketllm.engine.errors import BadRequest, ModelFileError
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.generate.streaming_text import Sampling

log = logging.getLogger(__name__)

#: The longest line of the protocol, which holds a whole answer.
_LINE_BYTES = 16 * 2**20
_EXIT_SECONDS = 5.0
#: A process that has used no processor for so long, while an answer is due, is killed; and the time between looks.
_STALL_SECONDS, _LOOK_SECONDS = 60.0, 5.0
#: The time between looks at whether anybody still waits for an answer.
_GONE_SECONDS = 0.05
#: Expected memory of the process at its start (measured with SmolLM2: 227 MB).
_START_BYTES = 250_000_000


@dataclass(frozen=True, kw_only=True)
class GenerationRequest(Sampling):
    """A prompt, tokens or chat messages to continue, with an adapter (its folder) or the base model."""

    task: ClassVar = "generate"
    prompt: str | None = None
    begins_text: bool = True  #: put before the prompt what separates texts in training
    tokens: list[int] | None = None  #: in place of a prompt; used as they are
    messages: list[dict[str, str]] | None = None
    adapter: Path | None = None
    echo: bool = False  #: begin the answer with the prompt, and score it too if the answer is scored
    alternatives: int | None = None  #: score each token and this many of the likeliest alternatives; None: no scores
    keep_alive_seconds: float | None = None  #: time until the idle process is unloaded; None: the setting


@dataclass(frozen=True, kw_only=True)
class SuggestionRequest:
    """The likeliest words behind a text. The answer is a dict of `suggestions`, `replaces` and `complete`."""

    task: ClassVar = "suggest"
    context: str
    prefix: str | None  #: see engine/generate/suggestions.py
    n: int
    timeout_seconds: float  #: after which the search ends with what it has
    counts: bool = False  #: weigh the owner's own words, by how often they were written
    adapter: Path | None = None
    keep_alive_seconds: float | None = None


@dataclass(frozen=True, kw_only=True)
class ClassifyRequest:
    """The probability of each label of a text. The answer is a dict of `probabilities`, `accuracy` and `threshold`."""

    task: ClassVar = "classify"
    text: str
    examples: list[tuple[str, str]]  #: texts and their labels
    adapter: Path | None = None
    keep_alive_seconds: float | None = None


Request = GenerationRequest | SuggestionRequest | ClassifyRequest
#: What a request yields: pieces of text, and last a summary of the whole answer.
Event = str | dict[str, Any]


class Generator:
    """Starts the process on demand, passes it one request at a time, and unloads it when idle. One event loop."""

    def __init__(
        self, folder: DataFolder, settings: Settings, *, memory_bytes: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """memory_bytes: private memory of the process and llama.cpp, at most."""
        self._folder, self._settings, self._memory_bytes, self._clock = folder, settings, memory_bytes, clock
        #: What answers. Set another one: an answer under way is finished, and those that wait raise ModelNotReady.
        self.model = self._loaded = folder.models / settings.model
        self._backend: Backend | None = None  # of the last answer
        self._keep_alive = settings.keep_alive_seconds  # of the last request
        self._process: Process | None = None
        self._lock = asyncio.Lock()
        self._waiting = 0
        self._last_id = 0
        self._last_used = 0.0
        self._starting = False
        #: The longest keep-alive in seconds, whatever a request asked for; set while a job needs the memory.
        self.max_keep_alive = inf
        #: Called in a thread before the process is started, so that the scheduler can pause a job.
        self.before_start: Callable[[], object] = lambda: None

    @property
    def pid(self) -> int | None:
        """The process id while it runs."""
        process = self._process
        return process.pid if process is not None and process.returncode is None else None

    @property
    def held_bytes(self) -> int:
        """Anonymous memory of it and llama.cpp, also while it starts. Mapped weights are shared with the worker."""
        if self.pid is None:
            return _START_BYTES if self._starting else 0
        return max(_START_BYTES, sum(anonymous_bytes(pid) or 0 for pid in session_pids(self.pid)))

    @property
    def backend(self) -> Backend | None:
        """The decoder of the last answer while the process runs, else the expected one; None without a model."""
        if self.pid is not None and self._backend is not None:
            return self._backend
        try:
            return expected_backend(open_model_folder(self.model), self._settings.backend)
        except ModelFileError:
            return None

    @property
    def idle_seconds_left(self) -> float | None:
        """Seconds until it is unloaded; None while it does not run, is busy, or stays loaded for ever."""
        keep_alive = min(self._keep_alive, self.max_keep_alive) if self._loaded == self.model else 0.0
        if self.pid is None or self._waiting or isinf(keep_alive):
            return None
        return max(0.0, self._last_used + keep_alive - self._clock())

    async def generate(self, request: Request) -> AsyncGenerator[Event]:
        """Yield pieces of text, and last a summary. Closing the iterator early cancels the generation.

        Raises GeneratorBusy, GeneratorFailed, ModelNotReady, or BadRequest.
        """
        if self._waiting > self._settings.max_waiting:
            raise GeneratorBusy
        self._waiting += 1
        model = self.model  # that its adapter is of
        try:
            async with self._lock:
                process = await self._running()
                if model != self._loaded:
                    raise ModelNotReady(f"{self.model.name} has become the model meanwhile. Send the request again.")
                # aclosing: when the caller goes away, the inner iterator is closed now, and cancels.
                async with aclosing(self._answers(process, request)) as events:
                    async for event in events:
                        yield event
        finally:
            self._waiting -= 1
            self._last_used = self._clock()
            seconds = request.keep_alive_seconds
            self._keep_alive = self._settings.keep_alive_seconds if seconds is None else seconds

    async def ask(self, request: Request, *, is_gone: Callable[[], Awaitable[bool]]) -> dict[str, Any]:
        """The summary of a complete answer. is_gone: whether nobody waits for it any more.

        Raises as `generate` does, and ClientGone.
        """
        asking = asyncio.create_task(self._summary(request))
        try:
            while not (await asyncio.wait({asking}, timeout=_GONE_SECONDS))[0]:
                if await is_gone():
                    raise ClientGone
            return asking.result()
        finally:
            asking.cancel()  # it gives up its place in the queue

    async def _summary(self, request: Request) -> dict[str, Any]:
        async with aclosing(self.generate(request)) as events:
            return await anext(event async for event in events if not isinstance(event, str))

    async def unload_if_idle(self) -> bool:
        """Unload the process after the keep-alive time without use; returns whether it did."""
        left = self.idle_seconds_left
        if left is None or left > 0:
            return False
        async with self._lock:  # else a request would start the next one, whose socket this one's end removes
            await self.close()
        log.info("unloaded the idle generator")
        return True

    async def close(self) -> None:
        """End the process and wait until it is gone. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        _kill(process)  # it has no state
        with suppress(TimeoutError):  # it waits for a device, and dies when that answers
            await asyncio.wait_for(process.wait(), _EXIT_SECONDS)
        self._folder.llama_socket.unlink(missing_ok=True)  # a killed server leaves it

    async def _running(self) -> Process:
        if self._process is not None and self.pid is not None and self._loaded == self.model:
            return self._process
        await self.close()
        self._starting, self._backend = True, None
        try:
            await asyncio.to_thread(self.before_start)
            self._loaded = self.model
            command = [sys.executable, "-m", "pocketllm.daemon.generation.process"]
            command += ["--data-dir", str(self._folder.root), "--model", str(self._loaded)]
            command += ["--backend", self._settings.backend, "--memory-bytes", str(self._memory_bytes)]
            self._process = process = await asyncio.create_subprocess_exec(
                *command, stdin=PIPE, stdout=PIPE, env=child_environment(), limit=_LINE_BYTES, start_new_session=True
            )
            first = await self._line(process)
        finally:
            self._starting = False
        if "fatal" in first:
            await self.close()
            raise ModelNotReady(first["fatal"])
        return process

    async def _answers(self, process: Process, request: Request) -> AsyncGenerator[Event]:
        self._last_id += 1
        number = self._last_id
        await self._send(process, {**asdict(request), "id": number, "task": request.task})
        event: Event = ""
        try:
            while isinstance(event, str):
                line = await self._line(process)
                if line.get("id") != number:
                    continue  # the rest of a cancelled answer
                event = line.get("event", {})
                if "error" in line:
                    raise BadRequest(line["error"])
                if "too_large" in line:
                    await self.close()  # what is left of its memory is full of holes
                    raise GenerationTooLarge
                if isinstance(event, dict) and "backend" in event:
                    self._backend = Backend(**event["backend"])
                yield event
        finally:
            if isinstance(event, str) and process.returncode is None:
                with suppress(GeneratorFailed):
                    await self._send(process, {"cancel": number})

    async def _send(self, process: Process, message: dict[str, Any]) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(json.dumps(message, default=str).encode() + b"\n")
            await process.stdin.drain()
        except (BrokenPipeError, ConnectionResetError) as error:
            raise GeneratorFailed from error

    async def _line(self, process: Process) -> dict[str, Any]:
        """The next line. Kills a process that hangs. Raises GeneratorFailed or ModelNotReady where the process died."""
        assert process.stdout is not None
        reading = asyncio.ensure_future(process.stdout.readline())
        watch = StallWatch(self._clock)
        try:
            while not (await asyncio.wait({reading}, timeout=_LOOK_SECONDS))[0]:
                if watch.idle_seconds(session_cpu_seconds(process.pid)) >= _STALL_SECONDS:
                    log.warning("killed the generator, which hung")
                    _kill(process)
                    break
            line = await reading
        finally:
            reading.cancel()
        if not line.endswith(b"\n"):
            await self.close()
            try:  # weights that are not what was imported may kill a process, too
                await asyncio.to_thread(open_model_folder, self._loaded, verify=True)
            except ModelFileError as error:
                raise ModelNotReady(str(error)) from error
            raise GeneratorFailed
        parsed: dict[str, Any] = json.loads(line)
        return parsed


def _kill(process: Process) -> None:
    """Kill it, and with it its llama.cpp, by the kernel."""
    with suppress(ProcessLookupError):
        process.kill()
