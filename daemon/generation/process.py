"""The generator: answers requests for text, one at a time, from one model in memory.

JSON lines in, JSON lines out (`python -m pocketllm.daemon.generation.process`). In: a request, `{"cancel": ID}`, or
the end of input, at which the process ends. Out: `{"ready": true}` or `{"fatal": REASON}`. Then for each request any
number of `{"id", "event": TEXT}`, and last `{"id", "event": {...}}`, `{"id", "error": REASON}`, or
`{"id", "too_large": true}`.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, fields
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pocketllm.daemon import process_memory
from pocketllm.daemon.generation.backend import Backend, BackendPreference, LlamaCpp, find_llamacpp
from pocketllm.daemon.generation.llama.decoder import LlamaDecoder
from pocketllm.daemon.generation.llama.server import ServerPlan
from pocketllm.daemon.generation.owners_words import OwnersWords
from pocketllm.daemon.logs import describe_uncaught
from pocketllm.daemon.paths import DataFolder
from pocketllm.engine.data.chats import chat_prompt
from pocketllm.engine.errors import BadRequest, EngineError, UnsupportedModel
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.formats.tokenizer import eos_id, open_tokenizer, start_ids
from pocketllm.engine.generate.streaming_text import Generation, Sampling, TokenSource, generate

if TYPE_CHECKING:
    from pocketllm.daemon.generation.torch_models import TorchModels
    from pocketllm.engine.generate.sampling import Scored

#: Text is sent at most this often.
PIECE_SECONDS = 0.05
#: Free memory is given back after a pause, since between two keys that costs 3 ms; and now and then without one: while
#: 400 keys were typed without a pause, 14 MB came together.
_PAUSE_SECONDS, _LONGEST_SECONDS = 0.5, 10.0
#: For an answer of some words.
_LEAST_BYTES = 64 * 10**6


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer requests until the input ends."""
    parser = argparse.ArgumentParser(description="Answers a PocketLLM daemon's requests for text.")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--backend", choices=get_args(BackendPreference), required=True)
    parser.add_argument("--memory-bytes", type=int, required=True, help="Maximum anonymous memory, with llama.cpp's.")
    options = parser.parse_args(arguments)
    # oneDNN generates code for each number of tokens, and by itself keeps 1,024 of these: a megabyte each.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
    # Whatever else prints must not end up between our lines.
    answers, sys.stdout = sys.stdout, sys.stderr
    describe_uncaught()

    def say(**line: Any) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    requests = Requests()
    try:
        answerer = Answerer(DataFolder(options.data_dir), options.model, options.backend, options.memory_bytes)
    except EngineError as error:
        say(fatal=str(error))
        return os.EX_DATAERR
    say(ready=True)
    while True:
        request = requests.next()
        cancelled = partial(requests.cancelled, request["id"])
        if cancelled():
            continue
        try:
            for event in answerer.answer(request, cancelled):
                say(id=request["id"], event=event)
        except EngineError as error:
            say(id=request["id"], error=str(error))
        except (MemoryError, RuntimeError) as error:
            if not process_memory.out_of_memory(error):
                raise
            say(id=request["id"], too_large=True)


class Requests:
    """Reads the input in a thread, so that a cancellation is noticed during generation."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._last_cancelled = 0
        self._gave_back_at = time.monotonic()
        threading.Thread(target=self._read, daemon=True, name="requests").start()

    def next(self) -> dict[str, Any]:
        """The next request; waits for one, and soon gives back free memory, which a job may need."""
        if time.monotonic() < self._gave_back_at + _LONGEST_SECONDS:
            with suppress(queue.Empty):
                return self._queue.get(timeout=_PAUSE_SECONDS)
        process_memory.give_back_free_memory()
        self._gave_back_at = time.monotonic()
        return self._queue.get()

    def cancelled(self, request_id: int) -> bool:
        """Whether this request was cancelled. Earlier ones have ended, or were cancelled, too."""
        return request_id <= self._last_cancelled

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "cancel" in message:
                self._last_cancelled = message["cancel"]
            else:
                self._queue.put(message)
        os._exit(os.EX_OK)  # the daemon is gone, or unloads the generator


class Answerer:
    """Answers requests with llama.cpp where possible, else with torch."""

    def __init__(self, folder: DataFolder, model: Path, preference: BackendPreference, memory_bytes: int) -> None:
        """memory_bytes: anonymous memory of this process and llama.cpp's, at most.

        Raises UnsupportedModel or ModelFileError.
        """
        model_folder = open_model_folder(model)
        self._words = OwnersWords(folder.database)
        if model_folder.manifest.is_mlm:
            raise UnsupportedModel(
                f"{model_folder.manifest.name} fills in masks and cannot continue a text. Use another model."
            )
        self._model_folder = model_folder
        self._torch: TorchModels | None = None
        self._tokenizer, self._decoding = open_tokenizer(model_folder)
        self._start, self._eos = start_ids(self._tokenizer), eos_id(self._tokenizer)
        #: Of the last contexts: with each letter of a word the same one is asked about.
        self._tokens_of = lru_cache(maxsize=4)(self._encoded)
        self._llama: LlamaDecoder | None = None
        self._memory_bytes = memory_bytes  #: of this process
        found = find_llamacpp(model_folder, preference)
        if isinstance(found, LlamaCpp):
            self._memory_bytes = memory_bytes // 2
            plan = ServerPlan(
                program=found.program,
                base=found.base,
                socket=folder.llama_socket,
                encode=self._plain,
                threads=len(os.sched_getaffinity(0)),
                memory_bytes=self._memory_bytes,
            )
            self._llama = LlamaDecoder(model_folder, plan)
            self._limit_memory()
        elif preference == "llamacpp":
            raise UnsupportedModel(f"The setting backend is llamacpp, but {found.reason}.")
        else:
            self._without = found
            self._models()  # errors in them show before the first request

    @property
    def backend(self) -> Backend:
        """The decoder of the last answer that llama.cpp could have made."""
        return self._without if self._llama is None else self._llama.backend

    def answer(self, request: dict[str, Any], cancelled: Callable[[], bool]) -> Iterator[str | dict[str, Any]]:
        """Yield pieces of text, and last how the request ended. Raises EngineError."""
        adapter = Path(request["adapter"]) if request["adapter"] else None
        if request["task"] == "suggest":
            yield self._suggest(request, adapter, cancelled)
        elif request["task"] == "classify":
            yield self._classify(request, adapter)
        else:
            yield from self._generate(request, adapter, cancelled)

    def _generate(
        self, request: dict[str, Any], adapter: Path | None, cancelled: Callable[[], bool]
    ) -> Iterator[str | dict[str, Any]]:
        sampling = Sampling(**{field.name: request[field.name] for field in fields(Sampling)})
        before, asked = self._prompt(request)
        prompt = [*before, *asked]
        started = time.monotonic()
        generation = self._generation(adapter, prompt, sampling, cancelled)
        echo = asked if request["echo"] else []
        echoed = str(self._tokenizer.decode(echo))
        if echoed:
            yield echoed
        yield from merged(generation.pieces)
        seconds = time.monotonic() - started
        scored = None
        if (alternatives := request["alternatives"]) is not None:
            of_all = self._models().score(adapter, [*prompt, *generation.tokens], alternatives)
            scored = [self._shown(one) for one in of_all[len(prompt) - len(echo) :]]
        yield {
            "text": echoed + generation.text,
            "finish_reason": generation.finish_reason,
            "prompt_tokens": generation.prompt_tokens,
            "completion_tokens": generation.completion_tokens,
            "tokens_per_second": round(generation.completion_tokens / seconds, 2) if seconds else None,
            "scored": scored,
            "backend": asdict(self.backend),
        }

    def _generation(
        self, adapter: Path | None, prompt: list[int], sampling: Sampling, cancelled: Callable[[], bool]
    ) -> Generation:
        def by_torch() -> TokenSource:
            if sampling.json_schema is not None:
                raise BadRequest(self.backend.refusal_of_json)
            return self._models().tokens(adapter)

        source = by_torch() if self._llama is None else partial(self._llama.tokens, adapter, by_torch)
        return generate(source, self._decoding, prompt, sampling, cancelled=cancelled)

    def _suggest(self, request: dict[str, Any], adapter: Path | None, cancelled: Callable[[], bool]) -> dict[str, Any]:
        """The likeliest words behind a text, by torch: llama.cpp does not look at several at once."""
        ends = time.monotonic() + request["timeout_seconds"]
        suggester = self._models().suggester(adapter)
        from pocketllm.engine.generate.suggestions import MAX_CHARACTERS, Typed, cut

        typed = Typed.of(request["context"], request["prefix"])
        counts = self._words.counts() if request["counts"] else None
        recent = typed.context[cut(len(typed.context), MAX_CHARACTERS) :]
        found, complete = suggester.suggest(
            self._tokens_of(recent),
            typed,
            n=request["n"],
            late=lambda: time.monotonic() > ends or cancelled(),
            counts=counts,
        )
        replaces = 0 if found and found[0].text.startswith(" ") else len(typed.beginning.lstrip())
        return {"suggestions": [asdict(one) for one in found], "replaces": replaces, "complete": complete}

    def _classify(self, request: dict[str, Any], adapter: Path | None) -> dict[str, Any]:
        """The probability of each label, as the examples say."""
        texts, labels = zip(*request["examples"], strict=True)
        *examples, asked = self._models().features(adapter, [*texts, request["text"]], self._encoded)
        import torch

        from pocketllm.engine.generate.label_probe import LabelProbe

        probe = LabelProbe(torch.stack(examples), labels)
        return {"probabilities": probe.probabilities(asked), "accuracy": probe.accuracy, "threshold": probe.threshold}

    def _prompt(self, request: dict[str, Any]) -> tuple[Sequence[int], list[int]]:
        """What is put before the tokens to continue, and these: the given ones, a chat's in the model's template, or a
        text's, which begins as in training.

        Without `begins_text` a text has no `eos` before it, unless it is empty. Raises BadRequest for tokens outside
        the vocabulary, a model without a chat template, or messages that its template refuses.
        """
        if (given := request["tokens"]) is not None:
            vocabulary = len(self._tokenizer)
            if wrong := [token for token in given if not 0 <= token < vocabulary]:
                raise BadRequest(f"{wrong[0]} is not a token of this model; its tokens are 0 to {vocabulary - 1}.")
            return (), list(given)
        is_chat = request["messages"] is not None
        text = chat_prompt(self._tokenizer, request["messages"]) if is_chat else request["prompt"]
        tokens = self._plain(text)
        if is_chat:
            return (), tokens
        begins = request["begins_text"] or not tokens
        return self._start or ((self._eos,) if begins else ()), tokens

    def _encoded(self, text: str) -> list[int]:
        """Its tokens, behind what every text begins with."""
        return [*(self._start or (self._eos,)), *self._plain(text)]

    def _plain(self, text: str) -> list[int]:
        """Its tokens alone."""
        tokens: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def _models(self) -> TorchModels:
        """The models in torch, imported when needed, since that takes seconds and hundreds of MB. To be called before
        anything else that imports torch.
        """
        if self._torch is None:
            process_memory.lift_cap()  # a torch with CUDA maps 770 MB of private data, most of it untouched
            try:
                from pocketllm.daemon.generation.torch_models import TorchModels

                self._torch = TorchModels(self._model_folder, self._decoding)
            finally:
                self._limit_memory()
        return self._torch

    def _limit_memory(self) -> None:
        """Allow what is left of this process's share, and enough for short answers, however little that is."""
        more = self._memory_bytes - (process_memory.anonymous_bytes(os.getpid()) or 0)
        process_memory.cap_anonymous_memory(max(_LEAST_BYTES, more))

    def _shown(self, scored: Scored) -> dict[str, Any]:
        process_memory.check_room()
        return {
            "token": self._tokenizer.decode([scored.token]),
            "logprob": scored.logprob,
            "likeliest": [[self._tokenizer.decode([token]), logprob] for token, logprob in scored.likeliest],
        }


def merged(pieces: Iterator[str], *, clock: Callable[[], float] = time.monotonic) -> Iterator[str]:
    """The pieces, joined to at most one per PIECE_SECONDS: each wakes the daemon, which costs time."""
    kept, last = "", -math.inf
    for piece in pieces:
        kept += piece
        if (now := clock()) - last >= PIECE_SECONDS:
            yield kept
            kept, last = "", now
    if kept:
        yield kept


if __name__ == "__main__":
    sys.exit(main())
