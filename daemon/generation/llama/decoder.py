"""Tokens by llama.cpp: a server with the right adapter, and another source of tokens if it fails."""

import logging
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from pocketllm.daemon.generation.backend import Backend
from pocketllm.daemon.generation.llama.server import LlamaFailed, LlamaServer, ServerPlan
from pocketllm.engine.errors import EngineError
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.generate.streaming_text import Sampling, TokenSource

log = logging.getLogger(__name__)

#: The adapter as llama.cpp reads it, made when it is first needed, in the adapter's folder.
LORA_NAME = "adapter_model.gguf"
#: The pause after a failure; it doubles with each further one.
_FIRST_PAUSE_SECONDS, _LONGEST_PAUSE_SECONDS = 5.0, 600.0


class LlamaDecoder:
    """llama.cpp with one model: starts a server when needed, and another one for another adapter."""

    def __init__(
        self, model_folder: ModelFolder, plan: ServerPlan, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """plan: of a server without an adapter."""
        self._model_folder, self._plan, self._clock = model_folder, plan, clock
        self._server: LlamaServer | None = None
        self._failures, self._not_before = 0, 0.0
        self.backend = Backend()  #: of the last answer

    def tokens(
        self, adapter: Path | None, otherwise: Callable[[], TokenSource], prompt: Sequence[int], sampling: Sampling
    ) -> Generator[int]:
        """Yield tokens that continue the prompt, with the adapter in this folder or without one.

        Where llama.cpp cannot answer, or fails, the other source continues the text.
        """
        given: list[int] = []
        try:
            with closing(self._tokens(adapter, prompt, sampling)) as tokens:
                for token in tokens:
                    given.append(token)
                    yield token
        except LlamaFailed:
            rest = replace(sampling, max_tokens=sampling.max_tokens - len(given))
            yield from otherwise()([*prompt, *given], rest)

    def close(self) -> None:
        """End the server, if one runs. Idempotent."""
        server, self._server = self._server, None
        if server is not None:
            server.close()

    def _tokens(self, adapter: Path | None, prompt: Sequence[int], sampling: Sampling) -> Generator[int]:
        """By llama.cpp alone. Raises LlamaFailed, and where the server fails, a pause begins."""
        if self._clock() < self._not_before:
            raise LlamaFailed(str(self.backend.reason))
        lora = None if adapter is None else self._lora(adapter)
        try:
            server = self._serving(lora, len(prompt) + sampling.max_tokens)
            self.backend = Backend()
            yield from server.tokens(prompt, sampling, personal=lora is not None)
        except LlamaFailed as error:
            self._note(error)
            raise
        except GeneratorExit:  # cancelled by the caller
            self._failures = 0
            raise
        self._failures = 0

    def _note(self, error: LlamaFailed) -> None:
        self.close()
        pause = min(_FIRST_PAUSE_SECONDS * 2**self._failures, _LONGEST_PAUSE_SECONDS)
        self._failures, self._not_before = self._failures + 1, self._clock() + pause
        self.backend = Backend(str(error))
        log.warning("%s; transformers answers for at least %g s", error, pause)

    def _lora(self, adapter: Path) -> Path:
        """The adapter as llama.cpp reads it, made where it is missing. Raises LlamaFailed."""
        # With what it imports this takes a quarter of a second, which the base model has no need to wait for.
        from pocketllm.engine.formats.gguf_lora import write_gguf_lora

        lora = adapter / LORA_NAME
        try:
            if not lora.exists():
                write_gguf_lora(adapter, self._model_folder, lora)
        except (EngineError, OSError) as error:
            self.backend = Backend(str(error))
            raise LlamaFailed(str(error)) from error
        return lora

    def _serving(self, lora: Path | None, tokens: int) -> LlamaServer:
        """A server with this adapter, if any, and a context for this number of tokens."""
        server = self._server
        if server is not None and server.alive and server.plan.context >= tokens and lora in (None, server.plan.lora):
            return server
        self.close()
        plan = replace(self._plan, lora=lora, context=max(self._plan.context, 1 << (tokens - 1).bit_length()))
        self._server = LlamaServer(plan)
        return self._server
