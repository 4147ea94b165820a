"""The language model: measured at several points in parameter space at once, and run at one.

On weights that are multiplied as they are kept, each core takes its own share of a batch through the layers (a
replica). Sharing each operation between the cores instead makes them wait for each other thousands of times a step,
and one that something else slows down holds up all.
"""

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from queue import SimpleQueue
from threading import Barrier
from typing import TypeVar

import torch

from pocketllm.engine.data.batches import Batch
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.import_shim import lean_transformers
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.params.perturbation import Perturbation
from pocketllm.engine.streamed.layers import LayerPages
from pocketllm.engine.streamed.network import Network
from pocketllm.engine.streamed.weights import open_weights

with lean_transformers():
    from transformers import DynamicCache

#: Rows of the output head that are made dense together for the logits of one token.
HEAD_ROWS = 8192
#: Blocks that pass through the layers together when measuring, unless the caller says otherwise.
MEASURE_BLOCKS = 8
#: How long a replica may keep Python's lock while another waits for it.
SWITCH_SECONDS = 50e-6

Part = TypeVar("Part")
Result = TypeVar("Result")


class LanguageModel:
    """A language model that can be measured at several points in parameter space at once, and run at one."""

    def __init__(
        self,
        model_folder: ModelFolder,
        *,
        dtype: torch.dtype | None = None,
        release_pages: bool = False,
        replicas: int = 1,
    ) -> None:
        """Build the model on the folder's weights. Raises UnsupportedModel or ModelFileError.

        dtype: that the layers compute in; by default what was measured best at import. release_pages: give each
        layer's pages of the weights file back when it has run, and read the next layer's ahead; for training.
        replicas: shares of a batch that are measured at the same time, each by a thread of its own; with one, torch's
        threads share each operation.
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
        self.head_path, self.stack = first.head_path, first.stack
        self._by_points = False

    def use(self, theta: Adapter | FullWeights | None) -> None:
        """Let everything from now on pass through these parameters as they stand; None is the base alone.

        Raises AdapterError when the adapter names a module that this model doesn't have.
        """
        for replica in self._replicas:
            replica.use(theta)
        self._by_points = isinstance(theta, FullWeights)

    def full(self, dtype: torch.dtype | None = None) -> FullWeights:
        """All weights, taken into memory to be trained; `use` them next. Raises BadRequest for packed weights.

        dtype: in which they are kept; by default as they are stored.
        """
        names = dict.fromkeys(self._replicas[0].parameters.values())
        return FullWeights.load({name: self.weights[name] for name in names}, dtype)

    def losses_at(self, points: Sequence[Perturbation], batch: Batch, micro_batch: int) -> list[float]:
        """The batch's mean loss in nats per target at each point around the parameters in use.

        micro_batch: the most rows, a block at a point being one, that pass through the layers together, in all
        replicas; the sums over such parts are exact, so it decides about memory and speed alone.
        """
        at_once = min(len(points), max(2, micro_batch - micro_batch % 2))  # both sides of a direction together
        parts: list[tuple[slice, Batch]] = []
        for first in range(0, len(points), at_once):
            some = slice(first, min(first + at_once, len(points)))
            for blocks in batch.split(max(1, micro_batch // (some.stop - some.start))):
                parts += self._shares(some, blocks)
        sums = torch.zeros(len(points), dtype=torch.float64)
        measured = self.map_replicas(lambda replica, part: replica.block_sums(part[1], points[part[0]]), parts)
        for (some, _), of_blocks in zip(parts, measured, strict=True):
            sums[some] += of_blocks.double().sum(1)
        return (sums / max(1, batch.tokens)).tolist()

    def block_losses(self, blocks: Batch, micro_batch: int = MEASURE_BLOCKS) -> list[float]:
        """Each block's mean loss in nats per target, at the parameters in use."""
        parts = blocks.split(max(1, micro_batch // len(self._replicas)))
        sums = [found[0] for found in self.map_replicas(lambda replica, part: replica.block_sums(part, ()), parts)]
        counts = blocks.target_counts.clamp(min=1)
        return (torch.cat(sums) / counts).tolist() if sums else []

    def mean_loss(self, batches: Iterable[Batch], micro_batch: int = MEASURE_BLOCKS) -> float:
        """The mean loss of all these blocks in nats per target, at the parameters in use."""
        total, targets = 0.0, 0
        for blocks in batches:
            losses = torch.tensor(self.block_losses(blocks, micro_batch), dtype=torch.float64)
            total += float((losses * blocks.target_counts).sum())
            targets += blocks.tokens
        return total / max(1, targets)

    def hidden(self, blocks: Batch) -> torch.Tensor:
        """(blocks, tokens, width): what the output head sees, at the parameters in use."""
        return self._replicas[0].hidden(blocks)

    def map_replicas(self, work: Callable[[Network, Part], Result], parts: Iterable[Part]) -> list[Result]:
        """What `work` makes of each part, in order, whichever replica took it.

        Waits for all of them, also where one raises; then raises the first error.
        """
        if self._pages is not None:
            self._pages.reset()
        if self._pool is None:
            return [work(self._replicas[0], part) for part in parts]
        free: SimpleQueue[Network] = SimpleQueue()
        for replica in self._replicas:
            free.put(replica)
        inference, grad = torch.is_inference_mode_enabled(), torch.is_grad_enabled()  # both are a thread's own affair

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
        """(rows, tokens) new ids behind what the cache holds -> (rows, vocabulary) fp32 logits of those after them."""
        return self._logits(self._seen(inputs, cache, last=1))

    def all_logits(self, inputs: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """(1, tokens) new ids behind what the cache holds -> (tokens, vocabulary) fp32 logits of those after each."""
        return self._logits(self._seen(inputs, cache, last=inputs.shape[1]))

    def _seen(self, inputs: torch.Tensor, cache: DynamicCache, *, last: int) -> torch.Tensor:
        """(rows * last, width): what the output head takes in where the last tokens stand."""
        self.context.points = ()
        output = self.network(input_ids=inputs, cache=cache, use_cache=True, logits_to_keep=last)
        return self._replicas[0].seen(output)[:, -last:].flatten(0, 1)

    def _logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(tokens, width) -> (tokens, vocabulary), fp32."""
        head = self.head.at(None)
        logits = head.of_token(hidden) if len(hidden) == 1 else None
        if logits is None:
            starts = range(0, head.vocabulary, HEAD_ROWS)
            states = head.extended(hidden).t()
            parts = [head.rows(start, min(start + HEAD_ROWS, head.vocabulary)) @ states for start in starts]
            logits = torch.cat(parts).t().float()
        return logits if head.bias is None else logits + head.bias.float()

    def _shares(self, points: slice, blocks: Batch) -> list[tuple[slice, Batch]]:
        """The replicas' shares of what passes through the layers together.

        An adapter's replica takes some blocks at all points. Where all weights are trained, moving them to a point is
        most of the work besides, and where blocks are few there is nothing else to share: then by points first.
        """
        replicas, count = len(self._replicas), points.stop - points.start
        by_points = min(replicas, count) if self._by_points or len(blocks) < replicas else 1
        size = -(-count // by_points)
        some = [slice(first, min(first + size, points.stop)) for first in range(points.start, points.stop, size)]
        return [(chosen, part) for chosen in some for part in blocks.split(-(-len(blocks) * len(some) // replicas))]


def _threads(count: int) -> ThreadPoolExecutor:
    """So many threads, started: later a cap on memory may be in the way of it. Each computes alone."""
    # Replicas need Python's lock for microseconds at a time; with its usual 5 ms of patience a step takes 2 % longer.
    sys.setswitchinterval(SWITCH_SECONDS)
    pool = ThreadPoolExecutor(count, thread_name_prefix="replica", initializer=torch.set_num_threads, initargs=(1,))
    ready = Barrier(count)
    wait([pool.submit(ready.wait) for _ in range(count)])
    return pool
