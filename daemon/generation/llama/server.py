"""A llama.cpp server as a source of tokens: a child process, with HTTP over a Unix socket.

Its API: https://github.com/ggml-org/llama.cpp/blob/master/tools/server/README.md. Only the owner can use the socket; a
port on 127.0.0.1 would be open to every app on a phone.
"""

import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

from pocketllm.daemon.child import last_words
from pocketllm.daemon.generation.llama import child as llama_child
from pocketllm.daemon.process_memory import UNTOUCHED_BYTES
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.generate.streaming_text import Sampling

_POLL_SECONDS = 0.01
_HEALTH_SECONDS = 1.0
_END_SECONDS = 5.0
#: Set by environment variables, since the server ignores those that its version does not know: no cache of old prompts
#: (by default up to 8 GB of memory), no web UI, and a log without texts.
_QUIET = {"LLAMA_ARG_CACHE_RAM": "0", "LLAMA_ARG_WEBUI": "0", "LLAMA_ARG_UI": "0", "LLAMA_LOG_VERBOSITY": "1"}
#: Its threads spin less than torch's (child.py). Tokens a second alone and beside a job: without spinning
#: 49 and 91, with 300 turns 150 and 61, 1,000 150 and 35, 10,000 125 and 5.
_SPIN = {"GOMP_SPINCOUNT": "300"}
#: Switches off sampling options that are on by default in some version.
_NEUTRAL = {"repeat_penalty": 1.0, "min_p": 0.0, "typical_p": 1.0, "dynatemp_range": 0.0, "mirostat": 0}


class LlamaFailed(Exception):
    """llama.cpp did not answer, or not with tokens; see the message."""


@dataclass(frozen=True, kw_only=True)
class ServerPlan:
    """The parameters of a server, and of what is asked of it."""

    program: str  #: see daemon/generation/backend.py
    base: Path
    socket: Path
    encode: Callable[[str], list[int]]  #: tokenizes a text
    threads: int
    memory_bytes: int  #: touched private memory, at most
    lora: Path | None = None  #: the adapter that requests can use
    #: Tokens of prompt and answer together: all are allocated at once (SmolLM2-135M: 47 MB for these).
    context: int = 2048
    start_seconds: float = 60.0  #: for the server to load the model
    token_seconds: float = 120.0  #: for the next token, or the first after a long prompt


class LlamaServer:
    """A running server. Close it after use; if this process is killed, the kernel kills it."""

    def __init__(self, plan: ServerPlan) -> None:
        """Start it and wait until the model is loaded. Raises LlamaFailed."""
        self.plan = plan
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the server
        plan.socket.unlink(missing_ok=True)
        self._process = subprocess.Popen(
            _command(plan),
            cwd=plan.socket.parent,  # a socket's path may have only 107 bytes
            # This process has child_environment's settings; endless spinning is many times slower beside a job.
            env=os.environ | _SPIN | _QUIET,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    @property
    def alive(self) -> bool:
        """Whether its process runs."""
        return self._process.poll() is None

    def tokens(self, prompt: Sequence[int], sampling: Sampling, *, personal: bool = False) -> Generator[int]:
        """Yield tokens that continue the prompt, possibly including the one that ends the text. Raises LlamaFailed.

        personal: with the server's adapter.
        """
        given: list[int] = []
        body = _body(sampling) | {"lora": [{"id": 0, "scale": float(personal)}] if self.plan.lora else []}
        try:
            with closing(self._events(body | {"prompt": list(prompt)})) as events:
                for event in events:
                    for token in self._new(event, len(given)):
                        given.append(token)
                        yield token
                    if event.get("stop"):
                        break
                else:
                    raise LlamaFailed("llama.cpp stopped in the middle of its answer")
            lost = int(event.get("tokens_predicted", 0)) - len(given)
            if event.get("stop_type") == "limit" and lost > 0:
                # Tokens of an incomplete character are not streamed, but a plain request returns them.
                yield from self._whole(body | {"prompt": [*prompt, *given], "n_predict": lost})
        except (OSError, HTTPException, ValueError, TypeError) as error:
            raise LlamaFailed(f"llama.cpp did not answer: {error or type(error).__name__}{self._said()}") from error

    def close(self) -> None:
        """End its process. Idempotent."""
        if self.alive:
            self._process.kill()  # it has no state
        self._process.wait(_END_SECONDS)
        self.plan.socket.unlink(missing_ok=True)
        self._log.close()

    def _wait(self) -> None:
        deadline = time.monotonic() + self.plan.start_seconds
        while True:
            with (
                suppress(OSError, HTTPException),
                closing(_Connection(self.plan.socket, _HEALTH_SECONDS)) as connection,
            ):
                connection.request("GET", "/health")
                if connection.getresponse().status == HTTPStatus.OK:
                    return
            if not self.alive:
                raise LlamaFailed(f"llama.cpp exited at startup with code {self._process.returncode}{self._said()}")
            if time.monotonic() > deadline:
                raise LlamaFailed(f"llama.cpp was not ready within {self.plan.start_seconds:g} s{self._said()}")
            time.sleep(_POLL_SECONDS)

    def _events(self, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """Yield the server's events. Raises LlamaFailed for an error, or after too long a silence."""
        with self._asked(body | {"stream": True}) as response:
            heard = time.monotonic()
            while line := response.readline():
                if time.monotonic() - heard > self.plan.token_seconds:
                    raise LlamaFailed("llama.cpp sends no more tokens")  # only keep-alive lines
                if line.startswith(b"data:"):
                    heard = time.monotonic()
                    yield _event(line.removeprefix(b"data:"))

    def _whole(self, body: dict[str, Any]) -> list[int]:
        with self._asked(body) as response:
            return self._ids(_event(response.read()))

    @contextmanager
    def _asked(self, body: dict[str, Any]) -> Iterator[HTTPResponse]:
        """The response to a completion request. Leaving early cancels it."""
        with closing(_Connection(self.plan.socket, self.plan.token_seconds)) as connection:
            connection.request("POST", "/completion", json.dumps(body), {"Content-Type": "application/json"})
            with connection.getresponse() as response:
                if response.status == HTTPStatus.BAD_REQUEST and "json_schema" in body:
                    raise BadRequest("llama.cpp does not accept this JSON schema. Simplify it.")
                if response.status != HTTPStatus.OK:
                    raise LlamaFailed(f"llama.cpp answered with status {response.status}")
                yield response

    def _new(self, event: dict[str, Any], count: int) -> list[int]:
        """The tokens of an event, after `count` earlier ones.

        Tokens of an incomplete character are not sent; the event that completes it has their text.
        """
        tokens = self._ids(event)
        if tokens and int(event.get("tokens_predicted", 0)) > count + len(tokens):
            return self.plan.encode(str(event.get("content", "")))
        return tokens

    def _ids(self, event: dict[str, Any]) -> list[int]:
        tokens = event.get("tokens")
        if not isinstance(tokens, list) or not all(type(token) is int and token >= 0 for token in tokens):
            raise LlamaFailed("llama.cpp answered without tokens")
        return tokens

    def _said(self) -> str:
        """The last line of its log, after a colon."""
        self._log.seek(0)
        return f": {last_words(self._log.read())}"


class _Connection(HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, address: Path, seconds: float) -> None:
        super().__init__("localhost", timeout=seconds)
        self._address = address

    def connect(self) -> None:
        """Connect through the open folder, since a socket's path may have only 107 bytes."""
        folder = os.open(self._address.parent, os.O_PATH | os.O_DIRECTORY)
        self.sock = socket.socket(socket.AF_UNIX)
        try:
            self.sock.settimeout(self.timeout)
            self.sock.connect(f"/proc/self/fd/{folder}/{self._address.name}")
        except BaseException:
            self.sock.close()
            raise
        finally:
            os.close(folder)


def _command(plan: ServerPlan) -> list[str]:
    limit = plan.memory_bytes + UNTOUCHED_BYTES
    child = [sys.executable, "-P", llama_child.__file__, str(os.getpid()), str(limit), plan.program]
    options = {"--model": plan.base, "--host": plan.socket.name, "--ctx-size": plan.context, "--parallel": 1}
    options |= {"--threads": plan.threads} | ({"--lora": plan.lora} if plan.lora else {})
    return [*child, *(str(part) for option in options.items() for part in option), "--no-warmup"]


def _body(sampling: Sampling) -> dict[str, Any]:
    """The request: temperature, then top_p, as in engine/generate/sampling.py, and no other samplers."""
    greedy = sampling.is_greedy
    return _NEUTRAL | {
        "n_predict": sampling.max_tokens,
        "samplers": ["top_k"] if greedy else ["temperature", "top_p"],
        "top_k": 1 if greedy else 0,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "seed": sampling.seed % (2**32 - 1),  # 2**32 - 1 means a random seed
        "return_tokens": True,
        "cache_prompt": True,
        **({} if sampling.json_schema is None else {"json_schema": sampling.json_schema}),
    }


def _event(data: bytes) -> dict[str, Any]:
    event = json.loads(data)
    if not isinstance(event, dict) or "error" in event:
        raise LlamaFailed("llama.cpp answered with an error")
    return event
