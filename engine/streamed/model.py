"""The language model: losses of a batch at several perturbations at once, and logits for decoding.

Where products use the stored weights without a copy, each core takes its own blocks of a batch through the layers (a
replica). Splitting each operation over the cores instead makes them wait for each other thousands of times a step.
"""

import ctypes
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from queue import SimpleQueue
from threading import Barrier
from typing import TypeVar

import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.import_shim import lean_transformers
from pocketllm.engine.noise import Perturbation
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.layers import LayerPages
from pocketllm.engine.streamed.loss import power_of_two
from pocketllm.engine.streamed.network import Network
from pocketllm.engine.streamed.weights import open_weights

with lean_transformers():
    from transformers import DynamicCache

#: Rows of the output head that are made dense together for the logits of one token.
HEAD_ROWS = 8192
#: As many tokens behind a cache are decoded: see ForwardContext.decoding.
DECODED_TOKENS = 16
#: Blocks in a micro-batch when a loss is measured, by default.
MEASURE_BLOCKS = 8
#: How long a replica may hold Python's lock while another one waits.
SWITCH_SECONDS = 50e-6

#: The library's names under Termux and Debian.
_OPENBLAS = ("libopenblas.so", "libopenblas.so.0")

Part = TypeVar("Part")
Result = TypeVar("Result")


class LanguageModel:
    """A language model on streamed weights."""

    def __init__(
        self,
        model_folder: ModelFolder,
        *,
        dtype: torch.dtype | None = None,
        release_pages: bool = False,
        replicas: int = 1,
    ) -> None:
        """Build the model on the folder's weights. Raises UnsupportedModel or ModelFileError.

        dtype: the compute dtype; by default the fastest one, measured at import. release_pages: release each layer's
        pages of the weights file after use and prefetch the next layer's; for training. replicas: threads that each
        take some blocks of a batch; with one, torch's threads share each operation.
        """
        self.folder = model_folder
        self.weights = open_weights(model_folder.weights)
        self._pages = LayerPages() if release_pages else None
        dtype = dtype or getattr(torch, model_folder.manifest.compute_dtype)
        self._replicas = [
            Network(model_folder, self.weights, dtype=dtype, pages=self._pages, share=replicas) for _ in range(replicas)
        ]
        self._pool = _threads(replicas) if replicas > 1 else None
        first = self.first_replica = self._replicas[0]
        self.context, self.network, self.head, self.linears = first.context, first.module, first.head, first.linears
        self.stack = first.stack
        self._by_perturbation = False

    def set_parameters(self, trainable: Adapter | FullWeights | None) -> None:
        """Run with this adapter or these weights from now on, following their changes in place; None: the base model.

        Raises AdapterError when the adapter names a module that this model does not have.
        """
        for replica in self._replicas:
            replica.set_parameters(trainable)
        self._by_perturbation = isinstance(trainable, FullWeights)

    def full(self, dtype: torch.dtype | None = None) -> FullWeights:
        """Load all weights into memory for training; call `set_parameters` next. Raises BadRequest for packed weights.

        dtype: of the copy; by default that of the file.
        """
        names = dict.fromkeys(self._replicas[0].parameters.values())
        return FullWeights.load({name: self.weights[name] for name in names}, dtype)

    def losses_at(self, perturbations: Sequence[Perturbation], batch: Batch, micro_batch: int) -> list[float]:
        """The batch's mean loss, in nats per target, at each perturbation of the current parameters.

        micro_batch: the most rows that pass through the layers together, over all replicas; a row is a block at one
        perturbation. The result does not depend on it.
        """
        at_once = min(len(perturbations), max(2, micro_batch - micro_batch % 2))  # both sides of a direction together
        parts: list[tuple[slice, Batch]] = []
        for first in range(0, len(perturbations), at_once):
            some = slice(first, min(first + at_once, len(perturbations)))
            for blocks in batch.split(max(1, micro_batch // (some.stop - some.start))):
                parts += self._shares(some, blocks)
        sums = torch.zeros(len(perturbations), dtype=torch.float64)
        measured = self.map_replicas(lambda replica, part: replica.block_sums(part[1], perturbations[part[0]]), parts)
        for (some, _), of_blocks in zip(parts, measured, strict=True):
            sums[some] += of_blocks.double().sum(1)
        return (sums / max(1, batch.tokens)).tolist()

    def block_losses(self, blocks: Batch, micro_batch: int = MEASURE_BLOCKS) -> list[float]:
        """Each block's mean loss, in nats per target."""
        parts = blocks.split(power_of_two(micro_batch // len(self._replicas)))
        sums = self.map_replicas(lambda replica, part: replica.block_sums(part.rounded(), ())[0, : len(part)], parts)
        counts = blocks.target_counts.clamp(min=1)
        return (torch.cat(sums) / counts).tolist() if sums else []

    def mean_loss(self, batches: Iterable[Batch], micro_batch: int = MEASURE_BLOCKS) -> float:
        """The mean loss over all these blocks, in nats per target."""
        total, targets = 0.0, 0
        for blocks in batches:
            losses = torch.tensor(self.block_losses(blocks, micro_batch), dtype=torch.float64)
            total += float((losses * blocks.target_counts).sum())
            targets += blocks.tokens
        return total / max(1, targets)

    def hidden(self, blocks: Batch) -> torch.Tensor:
        """(blocks, tokens, width): the input of the output head."""
        return self._replicas[0].hidden(blocks)

    def map_replicas(self, work: Callable[[Network, Part], Result], parts: Iterable[Part]) -> list[Result]:
        """Run `work` on each part, on whichever replica is free; returns the results in order.

        Waits for all of them, then raises the first error, if any.
        """
        if self._pages is not None:
            self._pages.reset()
        if self._pool is None:
            return [work(self._replicas[0], part) for part in parts]
        free: SimpleQueue[Network] = SimpleQueue()
        for replica in self._replicas:
            free.put(replica)
        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()  # both are thread-local

        def in_some_replica(part: Part) -> Result:
            replica = free.get()
            try:
                with torch.inference_mode(inference), torch.set_grad_enabled(grad):
                    return work(replica, part)
            finally:
                free.put(replica)

        futures = [self._pool.submit(in_some_replica, part) for part in parts]
        wait(futures)
        return [future.result() for future in futures]

    def next_logits(self, inputs: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """(rows, tokens) token ids that follow the cache -> (rows, vocabulary) fp32 logits of the next token."""
        return self.logits(self._head_input(inputs, cache, last=1))

    def all_logits(self, inputs: torch.Tensor, cache: DynamicCache, **places: torch.Tensor) -> torch.Tensor:
        """(1, tokens) token ids that follow the cache -> (tokens, vocabulary) fp32 logits of the token after each.

        places: `position_ids` (1, tokens), and `attention_mask` (1, 1, tokens, all tokens), which is added to the
        scores; where the tokens are no plain continuation.
        """
        return self.logits(self._head_input(inputs, cache, last=inputs.shape[1], **places))

    def _head_input(
        self, inputs: torch.Tensor, cache: DynamicCache, *, last: int, **places: torch.Tensor
    ) -> torch.Tensor:
        """(rows * last, width): the input of the output head at the last tokens."""
        self.context.perturbations = ()
        self.context.decoding = inputs.numel() <= DECODED_TOKENS
        try:
            output = self.network(input_ids=inputs, cache=cache, use_cache=True, logits_to_keep=last, **places)
        finally:
            self.context.decoding = False
        return self._replicas[0].head_input(output)[:, -last:].flatten(0, 1)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, width) -> (tokens, vocabulary), fp32."""
        head = self.head.at(None)
        logits = head.of_tokens(hidden)
        if logits is None:
            starts = range(0, head.vocabulary, HEAD_ROWS)
            states = hidden.t()
            parts = [head.rows(start, min(start + HEAD_ROWS, head.vocabulary)) @ states for start in starts]
            logits = torch.cat(parts).t().float()
        return logits if head.bias is None else logits + head.bias.float()

    def _shares(self, perturbations: slice, blocks: Batch) -> list[tuple[slice, Batch]]:
        """Split a micro-batch into parts for the replicas: some perturbations, and some blocks.

        With an adapter, a replica takes some blocks at all perturbations. It takes some perturbations instead where all
        weights are trained, since perturbing them is expensive, or where there are fewer blocks than replicas.
        """
        replicas, count = len(self._replicas), perturbations.stop - perturbations.start
        by_perturbation = min(replicas, count) if self._by_perturbation or len(blocks) < replicas else 1
        size = -(-count // by_perturbation)
        some = [
            slice(first, min(first + size, perturbations.stop))
            for first in range(perturbations.start, perturbations.stop, size)
        ]
        return [(group, part) for group in some for part in blocks.split(-(-len(blocks) * len(some) // replicas))]


def _threads(count: int) -> ThreadPoolExecutor:
    """A pool of `count` threads without threads of torch's own, started now: later the memory limit may prevent it."""
    # Replicas hold Python's lock for microseconds; with its default of 5 ms a step takes 2 % longer.
    sys.setswitchinterval(SWITCH_SECONDS)
    _one_openblas_thread()
    pool = ThreadPoolExecutor(count, thread_name_prefix="replica", initializer=torch.set_num_threads, initargs=(1,))
    ready = Barrier(count)
    wait([pool.submit(ready.wait) for _ in range(count)])
    return pool


def _one_openblas_thread() -> None:
    """Have an OpenBLAS that torch was linked to, as Termux's is, multiply in the thread that calls it.

    One with threads of its own runs a single call at a time, so replicas would wait for each other.
    """
    for name in _OPENBLAS:
        with suppress(OSError, AttributeError):  # not loaded, which is the rule; or an OpenBLAS without threads
            ctypes.CDLL(name, mode=os.RTLD_NOLOAD | os.RTLD_NOW).openblas_set_num_threads(1)
