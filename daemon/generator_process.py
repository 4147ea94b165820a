"""The generator: answers requests for text, one at a time, from one model in memory.

JSON lines in, JSON lines out (`python -m pocketllm.daemon.generator_process`). In: a request, `{"cancel": ID}`, or
the end of input, at which the process ends. Out: `{"ready": true}`, then for each request any number of
`{"id", "text"}` and last `{"id", "done": {...}}` or `{"id", "error": {"kind", "message"}}`.
"""

import argparse
import json
import os
import queue
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from pocketllm.daemon.process_memory import out_of_memory
from pocketllm.mezo.adapters import Adapter, load_adapter
from pocketllm.mezo.chats import chat_prompt
from pocketllm.mezo.decoding import Generation, Sampling, Scored, generate, score, separator
from pocketllm.mezo.errors import BadRequest, MezoError, UnsupportedModel
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import MANIFEST_NAME, open_native


def main(arguments: Sequence[str] | None = None) -> int:
    """Answer requests until the input ends."""
    parser = argparse.ArgumentParser(description="Answers a PocketLLM daemon's requests for text.")
    parser.add_argument("--model", type=Path, required=True)
    options = parser.parse_args(arguments)
    # Whatever else prints must not end up between our lines.
    answers, sys.stdout = sys.stdout, sys.stderr

    def say(**line: Any) -> None:
        answers.write(json.dumps(line) + "\n")
        answers.flush()

    requests = Requests()
    try:
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        answerer = Answerer(options.model)
    except MezoError as error:
        say(fatal=str(error))
        return os.EX_DATAERR
    say(ready=True)
    while True:
        request = requests.next()
        try:
            answerer.answer(request, requests, say)
        except MezoError as error:
            say(id=request["id"], error={"kind": type(error).__name__, "message": str(error)})
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            message = "There is not enough memory for this request. Shorten the prompt or lower max_tokens."
            say(id=request["id"], error={"kind": "OutOfMemory", "message": message})


class Requests:
    """Reads the input in a thread of its own, so that a cancellation is seen while an answer is being made."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        threading.Thread(target=self._read, daemon=True, name="requests").start()

    def next(self) -> dict[str, Any]:
        """The next request; waits for one."""
        return self._queue.get()

    def cancelled(self, request_id: int) -> bool:
        """Whether nobody waits for this answer any more."""
        return request_id in self._cancelled

    def _read(self) -> None:
        for line in sys.stdin:
            message = json.loads(line)
            if "cancel" in message:
                self._cancelled.add(message["cancel"])
            else:
                self._queue.put(message)
        os._exit(os.EX_OK)  # the daemon is gone, or wants its memory back


class Answerer:
    """The model, its tokenizer, and the adapter that was used last."""

    def __init__(self, model: Path) -> None:
        native = open_native(model)
        if native.manifest.masked:
            raise UnsupportedModel(
                f"{native.manifest.name} fills in masks; it cannot continue a text. Use another model."
            )
        self._native = native
        self._base = self._model = LanguageModel(native)
        self._in_fp32: LanguageModel | None = None
        self._tokenizer = native.tokenizer()
        self._adapter: tuple[str, Adapter | LanguageModel] | None = None

    def answer(self, request: dict[str, Any], requests: Requests, say: Any) -> None:
        """Make one answer. Raises MezoError."""
        if request["compare"]:
            self._compare(request, requests, say)
            return
        request_id = request["id"]
        options = request["sampling"]
        self._use(request["adapter"], exact=options["alternatives"] is not None)
        sampling = Sampling(**{**options, "stop": tuple(options["stop"])})
        prompt = prompt_tokens(self._tokenizer, request)
        started = time.monotonic()
        generation = generate(
            self._model, self._tokenizer, prompt, sampling, cancelled=lambda: requests.cancelled(request_id)
        )
        before, scored = self._echo(request, prompt, sampling.alternatives) if request["echo"] else ("", [])
        if before:
            say(id=request_id, text=before)
        for piece in generation.pieces:
            say(id=request_id, text=piece)
        seconds = time.monotonic() - started
        scored += generation.scored
        say(
            id=request_id,
            done={
                "text": before + generation.text,
                "finish_reason": generation.finish_reason,
                "prompt_tokens": generation.prompt_tokens,
                "completion_tokens": generation.completion_tokens,
                "tokens_per_second": round(generation.completion_tokens / seconds, 2) if seconds else None,
                "scored": None if sampling.alternatives is None else [self._shown(one) for one in scored],
            },
        )

    def _compare(self, request: dict[str, Any], requests: Requests, say: Any) -> None:
        """Both answers, and by how much likelier the personal model's is to it than to the base model."""
        options = request["sampling"]
        sampling = Sampling(**{**options, "stop": tuple(options["stop"]), "alternatives": 0})
        prompt = prompt_tokens(self._tokenizer, request)
        models = {"personal": request["adapter"], "base": None}
        answers: dict[str, Generation] = {}
        for name, folder in models.items():
            self._use(folder, exact=True)
            answers[name] = generation = generate(
                self._model, self._tokenizer, prompt, sampling, cancelled=lambda: requests.cancelled(request["id"])
            )
            for _ in generation.pieces:
                pass
        # The base model is in use, and says what it thinks of the other's words.
        given = [one.token for one in answers["personal"].scored]
        by_base = score(self._model, [*prompt, *given], 0)[len(prompt) :]
        tokens = [
            {
                "id": ours.token,
                "token": self._tokenizer.decode([ours.token]),
                "personal": ours.logprob,
                "base": theirs.logprob,
            }
            for ours, theirs in zip(answers["personal"].scored, by_base, strict=True)
        ]
        parts = {
            name: {
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "completion_tokens": answer.completion_tokens,
            }
            for name, answer in answers.items()
        }
        say(id=request["id"], done={**parts, "prompt_tokens": len(prompt), "tokens": tokens})

    def _echo(self, request: dict[str, Any], prompt: list[int], alternatives: int | None) -> tuple[str, list[Scored]]:
        """The prompt as text, and its tokens scored; without the separator that stands before a prompt in words."""
        asked = prompt if request["tokens"] is not None else prompt[1:]
        text = self._tokenizer.decode(asked)
        assert isinstance(text, str)
        scored = [] if alternatives is None else score(self._model, prompt, alternatives)
        return text, scored[len(prompt) - len(asked) :]

    def _shown(self, scored: Scored) -> dict[str, Any]:
        return {
            "token": self._tokenizer.decode([scored.token]),
            "logprob": scored.logprob,
            "likeliest": [[self._tokenizer.decode([token]), logprob] for token, logprob in scored.likeliest],
        }

    def _use(self, folder: str | None, *, exact: bool) -> None:
        """Let the next answer come from the base, from it with an adapter, or from weights that were all trained.

        exact: compute in fp32. What is scored shall be the model's, not the rounding's: in bf16 log-probabilities are
        off by some hundredths.
        """
        self._model = self._exact() if exact else self._base
        if folder is None:
            self._model.use(None)
            return
        if self._adapter is None or self._adapter[0] != folder:
            self._adapter = (folder, _load(Path(folder)))
        adapter = self._adapter[1]
        if isinstance(adapter, LanguageModel):
            self._model = LanguageModel(open_native(Path(folder)), dtype=torch.float32) if exact else adapter
        else:
            self._model.use(adapter)

    def _exact(self) -> LanguageModel:
        """The base model in fp32; the weights are mapped from the same file."""
        if self._in_fp32 is None:
            self._in_fp32 = LanguageModel(self._native, dtype=torch.float32)
        return self._in_fp32


def _load(folder: Path) -> Adapter | LanguageModel:
    full = (folder / MANIFEST_NAME).exists()
    return LanguageModel(open_native(folder)) if full else load_adapter(folder)


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, request: dict[str, Any]) -> list[int]:
    """The tokens to continue: those that are given, a chat in the model's own template, or a text from its beginning.

    A plain prompt stands behind the separator, as every text did in training. Raises BadRequest for tokens that
    there are not, a model without a chat template, or messages that its template refuses.
    """
    if (given := request["tokens"]) is not None:
        vocabulary = len(tokenizer)
        if wrong := [token for token in given if not 0 <= token < vocabulary]:
            raise BadRequest(f"{wrong[0]} is no token of this model, which has {vocabulary}: 0 to {vocabulary - 1}.")
        return list(given)
    if request["messages"] is None:
        return [separator(tokenizer), *tokenizer(request["prompt"], add_special_tokens=False)["input_ids"]]
    text = chat_prompt(tokenizer, request["messages"])
    tokens: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return tokens


if __name__ == "__main__":
    sys.exit(main())
