"""How fast the daemon's generator writes with an adapter, beside the peers on the same prompt, and how soon.

One peer is transformers' own `generate`, in a process of its own (`prepare_step`): it loads model and adapter, merges
the two, which is its fastest, and writes greedily. The other one is llama.cpp's server itself, on the GGUF files of
model and adapter that the daemon's llama.cpp reads.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import httpx

from bench.common.child import command
from bench.common.harness import as_by_itself, progress
from bench.common.turns import started
from bench.common.world import daemon_on, until
from bench.common.writers import ended
from pocketllm.cli.demo import sample_notes
from pocketllm.daemon.generation.backend import LlamaCpp, find_llamacpp
from pocketllm.daemon.generation.llama.server import LlamaServer, ServerPlan
from pocketllm.engine.formats.model_folder import open_model_folder

if TYPE_CHECKING:
    from pocketllm.client import Client

#: Short enough for the tiny model's context.
PROMPT = "Wind west, glass rising. I walked down to the harbour before breakfast and found"
#: transformers loads the same weights as either; the faster one here is the peer.
DTYPES = ("bfloat16", "float32")
#: The backend that is always there, and the one that needs a program and the model's GGUF file.
TRANSFORMERS, LLAMACPP = "transformers", "llamacpp"
#: llama.cpp's own server.
LLAMA_SERVER = "llama-server"
#: Settings for each; llama.cpp is chosen by itself where it can be had.
_BACKENDS = {TRANSFORMERS: {"BACKEND": "transformers"}, LLAMACPP: {"BACKEND": "auto"}}
#: Of the job that makes the adapter: how good it is makes no difference to the time.
_STEPS = 4
#: As the daemon has it: room for the prompt and the answer.
_CONTEXT = 2048
_LONGEST_SECONDS = 600.0
_LOOK_SECONDS = 0.05

#: Writes the answer once; tokens a second.
Speaker = Callable[[], float]


@dataclass(frozen=True, kw_only=True)
class Decoding:
    """What was measured: tokens a second by who wrote, round by round, and seconds to the first words by backend."""

    rates: dict[str, list[float]]
    peer: str  #: the dtype that is faster in transformers' `generate`
    warm: dict[str, list[float]]
    cold: dict[str, list[float]]

    def over_peer(self, backend: str, peer: str | None = None) -> float | None:
        """The median of the rounds' own ratios to a peer, by default transformers; None where one is not there."""
        peer = peer or self.peer
        if backend not in self.rates or peer not in self.rates:
            return None
        return median(ours / theirs for ours, theirs in zip(self.rates[backend], self.rates[peer], strict=True))

    @property
    def used(self) -> str:
        """The backend that a daemon takes by itself."""
        return LLAMACPP if LLAMACPP in self.rates else TRANSFORMERS


def decodes_with(client: Client) -> str:
    """The backend that the last answer came from."""
    return str(client.get("status")["generator"].get("backend") or TRANSFORMERS)


def measure(scratch: Path, model: Path, *, rounds: int, tokens: int, chats: bool) -> Decoding:
    """Let all write in turns; then see how soon each backend begins. chats: the model has a template for it."""
    adapter = _learned(scratch / TRANSFORMERS, model)
    shutil.copytree(scratch / TRANSFORMERS, scratch / LLAMACPP, symlinks=True)
    with ExitStack() as stack:
        speakers: dict[str, Speaker] = {
            dtype: stack.enter_context(transformers_speaker(model, scratch / TRANSFORMERS / adapter, dtype, tokens))
            for dtype in DTYPES
        }
        clients = {
            backend: stack.enter_context(daemon_on(scratch / backend, model, **settings))
            for backend, settings in _BACKENDS.items()
        }
        speakers |= {backend: _daemon_speaker(client, tokens) for backend, client in clients.items()}
        for name, speak in speakers.items():  # the first time is slower
            progress(f"{name}: {speak():.1f} tokens/s at first")
        for name in [name for name, client in clients.items() if decodes_with(client) != name]:
            progress(f"{name}: not to be had here")
            del clients[name], speakers[name]
        if LLAMACPP in clients:  # which has made the adapter's GGUF file by now
            lora = scratch / LLAMACPP / adapter / "adapter_model.gguf"
            speakers[LLAMA_SERVER] = stack.enter_context(llama_speaker(model, lora, scratch, tokens))
            progress(f"{LLAMA_SERVER}: {speakers[LLAMA_SERVER]():.1f} tokens/s at first")
        rates: dict[str, list[float]] = {name: [] for name in speakers}
        for number in range(rounds):
            for name, speak in speakers.items():
                rates[name].append(speak())
            progress(f"round {number + 1}: " + ", ".join(f"{name} {found[-1]:.1f}" for name, found in rates.items()))
        warm = {name: [first_token(client, chats=chats) for _ in range(rounds)] for name, client in clients.items()}
        cold = {name: [_cold(client, chats=chats) for _ in range(rounds)] for name, client in clients.items()}
    return Decoding(rates=rates, peer=max(DTYPES, key=lambda dtype: median(rates[dtype])), warm=warm, cold=cold)


def _learned(folder: Path, model: Path) -> Path:
    """An adapter that is served on a new data folder, by its path in there."""
    with daemon_on(folder, model) as client:
        client.post("texts", body=[{"text": text, "source": "notes"} for text in sample_notes()])
        adapter = str(ended(client, str(client.post("jobs", body={"steps": _STEPS, "seed": 1})["id"]))["adapter"])
        client.post("adapters", adapter, "serve")
        return Path("adapters") / adapter


def _daemon_speaker(client: Client, tokens: int) -> Speaker:
    def speak() -> float:
        began = time.perf_counter()
        answer = client.post("generate", body={"prompt": PROMPT, "max_tokens": tokens, "temperature": 0})
        return float(answer["completion_tokens"]) / (time.perf_counter() - began)

    return speak


@contextmanager
def llama_speaker(model: Path, lora: Path, scratch: Path, tokens: int) -> Iterator[Speaker]:
    """llama.cpp's server, started as the daemon starts it, and asked as its users ask it; ended with the block."""
    found = find_llamacpp(open_model_folder(model), "auto")
    assert isinstance(found, LlamaCpp)
    threads, socket = len(os.sched_getaffinity(0)), scratch / "llama.sock"
    plan = ServerPlan(
        program=found.program,
        base=found.base,
        socket=socket,
        encode=lambda _: [],
        lora=lora,
        context=_CONTEXT,
        threads=threads,
        memory_bytes=10**9,
    )
    with (
        closing(LlamaServer(plan)),
        httpx.Client(transport=httpx.HTTPTransport(uds=str(socket)), timeout=_LONGEST_SECONDS) as http,
    ):

        def speak() -> float:
            began = time.perf_counter()
            asked = {"prompt": PROMPT, "n_predict": tokens, "temperature": 0}
            answer = http.post("http://localhost/completion", json=asked).raise_for_status().json()
            return float(answer["tokens_predicted"]) / (time.perf_counter() - began)

        yield speak


@contextmanager
def transformers_speaker(model: Path, adapter: Path, dtype: str, tokens: int) -> Iterator[Speaker]:
    """The peer in a process of its own, ended with the block."""
    work = {"folder": model, "adapter": adapter, "dtype": dtype, "tokens": tokens}
    with started(command(__name__, "prepare_step", "--turns", **work), as_by_itself()) as turn:

        def speak() -> float:
            answer = turn()
            if answer is None:
                raise SystemExit("transformers' generate has failed; what it says stands above.")
            return float(answer["tokens"]) / float(answer["seconds"])

        yield speak


def first_token(client: Client, *, chats: bool) -> float:
    """Seconds from sending a streamed request as OpenAI's clients do to the first words of the answer."""
    asked = {"messages": [{"role": "user", "content": PROMPT}]} if chats else {"prompt": PROMPT}
    # Bytes of a tiny model that knows nothing may make no character for long.
    body = {"model": "pocketllm:latest", "stream": True, "temperature": 0, "max_tokens": 8, **asked}
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
    client.post("generate", body={"prompt": PROMPT, "max_tokens": 1, "keep_alive": 0})
    until(
        lambda: not client.get("status")["generator"]["running"], "the generator's end", between_seconds=_LOOK_SECONDS
    )
    return first_token(client, chats=chats)


def prepare_step(folder: str, *, adapter: str, dtype: str, tokens: int) -> Callable[[], dict[str, float]]:
    """Be the peer. folder: of a model stored as floats; adapter: in peft's format."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))  # as the daemon's generator does
    tokenizer: Any = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=getattr(torch, dtype), local_files_only=True)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()

    def step() -> dict[str, float]:
        began = time.perf_counter()
        inputs = tokenizer(PROMPT, return_tensors="pt")
        with torch.inference_mode():
            ids = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                max_new_tokens=tokens,
                do_sample=False,
                use_cache=True,
                pad_token_id=tokenizer.eos_token_id,
            )[0]
        new = ids[inputs["input_ids"].shape[1] :]
        tokenizer.decode(new, skip_special_tokens=True)
        return {"tokens": len(new), "seconds": time.perf_counter() - began}

    return step
