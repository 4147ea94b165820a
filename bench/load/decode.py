"""How fast the daemon's generator writes, beside transformers' own `generate` on the same prompt, and how soon.

python -m bench.load.decode FOLDER DTYPE --tokens N

is the peer: it loads the model as transformers does, writes greedily after each line of its input, and says each time
how many tokens and seconds that were.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx

from bench.child import write_line
from bench.harness import ROOT, as_by_itself, progress
from pocketllm.cli.child import running_daemon

if TYPE_CHECKING:
    from pocketllm.client import Client

#: Short enough for the tiny model's context.
PROMPT = "Wind west, glass rising. I walked down to the harbour before breakfast and found"
#: transformers loads the same weights as either; the faster one here is the peer.
DTYPES = ("bfloat16", "float32")
#: The backend that is always there, and the one that needs a program and the model's GGUF file.
TRANSFORMERS, LLAMACPP = "transformers", "llamacpp"
#: Settings for each; llama.cpp is chosen by itself where it can be had.
_BACKENDS = {TRANSFORMERS: {"BACKEND": "transformers"}, LLAMACPP: {"BACKEND": "auto"}}
_LONGEST_SECONDS = 600.0
_LOOK_SECONDS = 0.05
#: So that an unwanted generator goes soon.
_IDLE_TICK_SECONDS = 0.5

#: Writes the answer once; tokens a second.
Speaker = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What was measured: tokens a second by who wrote, round by round, and seconds to the first words by backend."""

    rates: dict[str, list[float]]
    peer: str  #: the dtype that is faster in transformers' `generate`
    warm: dict[str, list[float]]
    cold: dict[str, list[float]]

    def over_peer(self, backend: str) -> float | None:
        """The median of the rounds' own ratios; None for a backend that is not there."""
        if backend not in self.rates:
            return None
        rounds = zip(self.rates[backend], self.rates[self.peer], strict=True)
        return median(ours / theirs for ours, theirs in rounds)

    @property
    def used(self) -> str:
        """The backend that a daemon takes by itself."""
        return LLAMACPP if LLAMACPP in self.rates else TRANSFORMERS


def decodes_with(client: Client) -> str:
    """The backend that the last answer came from."""
    return str(client.status()["generator"].get("backend") or TRANSFORMERS)


def measure(scratch: Path, model: Path, *, rounds: int, tokens: int, chats: bool) -> Decoding:
    """Let all write in turns; then see how soon each backend begins. chats: the model has a template for it."""
    with ExitStack() as stack:
        speakers: dict[str, Speaker] = {
            dtype: stack.enter_context(transformers_speaker(model, dtype, tokens)) for dtype in DTYPES
        }
        clients = {
            backend: stack.enter_context(_daemon(scratch / backend, model, settings))
            for backend, settings in _BACKENDS.items()
        }
        speakers |= {backend: _daemon_speaker(client, tokens) for backend, client in clients.items()}
        for name, speak in speakers.items():  # the first time is slower
            progress(f"{name}: {speak():.1f} tokens/s at first")
        for name in [name for name, client in clients.items() if decodes_with(client) != name]:
            progress(f"{name}: not to be had here")
            del clients[name], speakers[name]
        rates: dict[str, list[float]] = {name: [] for name in speakers}
        for number in range(rounds):
            for name, speak in speakers.items():
                rates[name].append(speak())
            progress(f"round {number + 1}: " + ", ".join(f"{name} {found[-1]:.1f}" for name, found in rates.items()))
        warm = {name: [first_token(client, chats=chats) for _ in range(rounds)] for name, client in clients.items()}
        cold = {name: [_cold(client, chats=chats) for _ in range(rounds)] for name, client in clients.items()}
    return Decoding(rates=rates, peer=max(DTYPES, key=lambda dtype: median(rates[dtype])), warm=warm, cold=cold)


@contextmanager
def _daemon(folder: Path, model: Path, settings: dict[str, str]) -> Iterator[Client]:
    (folder / "models").mkdir(parents=True)
    (folder / "models" / model.name).symlink_to(model)
    command = [sys.executable, "-m", "pocketllm", "serve", "--model", model.name]
    looks = {"IDLE_TICK_SECONDS": str(_IDLE_TICK_SECONDS)}
    with running_daemon(folder, command, settings=settings | looks) as client:
        yield client


def _daemon_speaker(client: Client, tokens: int) -> Speaker:
    def speak() -> float:
        began = time.perf_counter()
        answer = client.generate({"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "adapter": "base"})
        return float(answer["completion_tokens"]) / (time.perf_counter() - began)

    return speak


@contextmanager
def transformers_speaker(model: Path, dtype: str, tokens: int) -> Iterator[Speaker]:
    """The peer in a process of its own, ended with the block."""
    command = [sys.executable, "-m", "bench.load.decode", str(model), dtype, "--tokens", str(tokens)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=as_by_itself(), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None and process.stdout is not None
    asked, said = process.stdin, process.stdout

    def speak() -> float:
        asked.write("\n")
        asked.flush()
        line = said.readline()
        if not line:
            raise SystemExit("transformers' generate has failed; what it says stands above.")
        answer = json.loads(line)
        return float(answer["tokens"]) / float(answer["seconds"])

    try:
        yield speak
    finally:
        process.kill()
        process.wait()
        asked.close()
        said.close()


def first_token(client: Client, *, chats: bool) -> float:
    """Seconds from sending a streamed request as OpenAI's clients do to the first words of the answer."""
    asked = {"messages": [{"role": "user", "content": PROMPT}]} if chats else {"prompt": PROMPT}
    # Bytes of a tiny model that knows nothing may make no character for long.
    body = {"model": "base", "stream": True, "temperature": 0, "max_tokens": 8, **asked}
    headers = {"Authorization": f"Bearer {client.target.token}"}
    path = "/v1/chat/completions" if chats else "/v1/completions"
    with httpx.Client(base_url=client.target.url, headers=headers, timeout=_LONGEST_SECONDS, trust_env=False) as http:
        http.get("/health")  # the connection is there
        began = time.perf_counter()
        with http.stream("POST", path, json=body) as answer:
            for line in answer.iter_lines():
                if _has_words(line):
                    return time.perf_counter() - began
    raise SystemExit(f"The streamed answer ({answer.status_code}) held no words.")


def _has_words(line: str) -> bool:
    """Whether a line of a stream of server-sent events brings text."""
    data = line.removeprefix("data: ")
    if data == line or data == "[DONE]":
        return False
    choices: list[dict[str, Any]] = json.loads(data).get("choices") or []
    return any(choice.get("text") or choice.get("delta", {}).get("content") for choice in choices)


def _cold(client: Client, *, chats: bool) -> float:
    """The same, while no generator runs; the weights are still in the page cache."""
    client.generate({"prompt": PROMPT, "max_tokens": 1, "keep_alive": 0})
    deadline = time.monotonic() + _LONGEST_SECONDS
    while client.status()["generator"]["running"]:
        if time.monotonic() > deadline:
            raise SystemExit("The generator does not go.")
        time.sleep(_LOOK_SECONDS)
    return first_token(client, chats=chats)


def main(arguments: Sequence[str] | None = None) -> int:
    """Be the peer."""
    parser = argparse.ArgumentParser(prog="python -m bench.load.decode", description="transformers' own generate.")
    parser.add_argument("folder", type=Path, help="a model folder stored as floats")
    parser.add_argument("dtype", choices=DTYPES)
    parser.add_argument("--tokens", type=int, required=True)
    options = parser.parse_args(arguments)
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as the daemon's generator does
    tokenizer: Any = AutoTokenizer.from_pretrained(options.folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(
        options.folder, dtype=getattr(torch, options.dtype), local_files_only=True
    )
    for _ in sys.stdin:
        began = time.perf_counter()
        inputs = tokenizer(PROMPT, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=options.tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=tokenizer.eos_token_id,
            )[0]
        new = ids[inputs["input_ids"].shape[1] :]
        tokenizer.decode(new, skip_special_tokens=True)
        write_line({"tokens": len(new), "seconds": time.perf_counter() - began})
    return 0


if __name__ == "__main__":
    sys.exit(main())
