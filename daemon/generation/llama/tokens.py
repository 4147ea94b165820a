"""Answers by llama.cpp: a server that has the right adapter, and another source of tokens where it fails."""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from pocketllm.daemon.generation.backend import Backend, LlamaCpp
from pocketllm.daemon.generation.llama.files import files_for
from pocketllm.daemon.generation.llama.server import LlamaFailed, LlamaServer, Patience, ServerPlan
from pocketllm.engine.errors import MezoError
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.generate.streaming_text import Sampling, Scored, TokenSource

log = logging.getLogger(__name__)

#: A server takes memory for its whole context at once (SmolLM2-135M: 47 MB for this), so it is no wider than needed.
_MIN_CONTEXT = 2048
#: After a failure this long nothing is tried, after each further one twice as long.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 600.0


class NotByLlama(Exception):
    """llama.cpp is not tried; LlamaDecoder.backend says why."""


class LlamaDecoder:
    """llama.cpp with one model: it starts a server when one is needed, and another for another adapter."""

    def __init__(
        self,
        model_folder: ModelFolder,
        found: LlamaCpp,
        *,
        address: Path,
        threads: int,
        encode: Callable[[str], list[int]],
        patience: Patience | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """address: where the server's socket shall be. encode: a text's tokens."""
        self._model_folder, self._found, self._address, self._threads = model_folder, found, address, threads
        self._encode, self._patience, self._clock = encode, patience or Patience(), clock
        self._server: LlamaServer | None = None
        self._failures, self._not_before = 0, 0.0
        self.backend = Backend(name="llamacpp")  #: of the last answer

    def source(self, adapter: Path | None, otherwise: Callable[[], TokenSource]) -> TokenSource:
        """The model with the adapter in this folder, or without one. `otherwise` does what llama.cpp cannot do."""
        return _Source(self, adapter, otherwise)

    def tokens(self, adapter: Path | None, prompt: Sequence[int], sampling: Sampling) -> Generator[Scored]:
        """Tokens to go on with. Raises NotByLlama, or LlamaFailed, after which nothing is tried for a while."""
        if self._clock() < self._not_before:
            raise NotByLlama
        lora, base = self._files(adapter)
        try:
            server = self._serving(lora, base, len(prompt) + sampling.max_tokens)
            self.backend = Backend(name="llamacpp")
            yield from server.tokens(prompt, sampling, personal=lora is not None)
        except LlamaFailed as error:
            self._note(error)
            raise
        except GeneratorExit:  # whoever reads has had enough
            self._failures = 0
            raise
        self._failures = 0

    def close(self) -> None:
        """End the server, if one runs. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _note(self, error: LlamaFailed) -> None:
        self.close()
        pause = min(_FIRST_PAUSE_SECONDS * 2**self._failures, _LONGEST_PAUSE_SECONDS)
        self._failures, self._not_before = self._failures + 1, self._clock() + pause
        self.backend = Backend(name="transformers", reason=str(error))
        log.warning("%s; transformers answers, for %g s at least", error, pause)

    def _files(self, adapter: Path | None) -> tuple[Path | None, Path]:
        """The adapter, if any, and its base as llama.cpp reads them. Raises NotByLlama."""
        if adapter is None:
            return None, self._found.base
        try:
            return files_for(adapter, self._model_folder, self._found.base)
        except (MezoError, OSError) as error:
            self.backend = Backend(name="transformers", reason=str(error))
            raise NotByLlama from error

    def _serving(self, lora: Path | None, base: Path, tokens: int) -> LlamaServer:
        """A server that has this adapter, if any, and room for so many tokens."""
        if self._server is not None and self._server.alive and self._fits(self._server.plan, lora, tokens):
            return self._server
        self.close()
        plan = ServerPlan(
            program=self._found.program,
            base=base,
            lora=lora,
            context=max(_MIN_CONTEXT, 1 << (tokens - 1).bit_length()),
            threads=self._threads,
        )
        self._server = LlamaServer(plan, self._address, self._encode, self._patience)
        return self._server

    def _fits(self, plan: ServerPlan, lora: Path | None, tokens: int) -> bool:
        return plan.context >= tokens and (lora is None or plan.lora == lora)


class _Source:
    """Tokens by llama.cpp for as long as it gives any, then from elsewhere: the text goes on where it was."""

    def __init__(self, decoder: LlamaDecoder, adapter: Path | None, otherwise: Callable[[], TokenSource]) -> None:
        self._decoder, self._adapter, self._otherwise = decoder, adapter, otherwise

    def tokens(self, prompt: Sequence[int], sampling: Sampling) -> Generator[Scored]:
        """See TokenSource."""
        given: list[int] = []
        try:
            with closing(self._decoder.tokens(self._adapter, prompt, sampling)) as tokens:
                for scored in tokens:
                    given.append(scored.token)
                    yield scored
        except (NotByLlama, LlamaFailed):
            rest = replace(sampling, max_tokens=sampling.max_tokens - len(given))
            yield from self._otherwise().tokens([*prompt, *given], rest)
