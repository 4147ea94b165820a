"""What we compare with, each written as its users would write it, on the same work: random tokens, bf16 weights.

A model that was calibrated computes, like ours, in the dtype that is fastest here, or in the one that is named.

A causal model learns to continue the text, its loss over every token. A RoBERTa gets a head of two classes, as people
who fine-tune it on labelled text do; that is its best: the whole logits over the vocabulary would cost it gigabytes.
`chunks` and `int8` are for causal models.
"""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from transformers.utils.logging import disable_progress_bar

from bench.common import int8
from bench.common.child import memory_of
from bench.common.shapes import config_of
from pocketllm.engine.formats.architectures import MASKED_FAMILIES
from pocketllm.engine.formats.model_folder import open_model_folder

EPSILON = 1e-3
LEARNING_RATE = 1e-6
LORA_RANK = 8
_SEED = 0
#: Ids below are special tokens; padding among them would be masked out.
_FIRST_ID = 3
_GB = 1e9
#: How the libraries word it when the kernel refuses them memory.
_REFUSALS = ("alloc", "memory", "could not create a primitive")

#: A model's arguments: token ids and labels.
Batch = dict[str, torch.Tensor]
#: One whole step; returns the loss.
Step = Callable[[], float]


def build(source: str | Path, dtype: str | None = None) -> Any:
    """transformers' model: of a shape's name with random weights in bf16, or of a model folder stored as floats.

    dtype: of a folder's weights in memory, by default what our layers compute in.
    """
    if isinstance(source, Path):
        disable_progress_bar()
        chosen = getattr(torch, dtype or open_model_folder(source).manifest.compute_dtype)
        return AutoModelForCausalLM.from_pretrained(source, dtype=chosen, local_files_only=True)
    config = config_of(source)
    if config.model_type in MASKED_FAMILIES:
        config.num_labels = 2
        return AutoModelForSequenceClassification.from_config(config, dtype=torch.bfloat16)
    return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)


def random_batch(model: Any, *, batch: int, tokens: int) -> Batch:
    """(batch, tokens) random ids, with the ids themselves or, for a classifier, random classes as labels."""
    generator = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(_FIRST_ID, model.config.vocab_size, (batch, tokens), generator=generator)
    classifies = type(model).__name__.endswith("ForSequenceClassification")
    labels = torch.randint(0, 2, (batch,), generator=generator) if classifies else ids
    return {"input_ids": ids, "labels": labels}


def forward_step(model: Any, batch: Batch, micro_batch: int) -> Step:
    """Two plain forwards with labels: the least that a zeroth-order step could be thought to cost."""
    model.eval()

    def step() -> float:
        _loss(model, batch, micro_batch)
        return _loss(model, batch, micro_batch)

    return step


def mezo_step(
    perturb: Callable[[float], None], loss: Callable[[], float], *, epsilon: float, rate: float
) -> tuple[float, float]:
    """One step of Algorithm 1 of MeZO (arXiv 2305.17333) in four passes over the parameters; returns L+ and L-.

    perturb: adds z to the parameters, so many times.
    """
    perturb(epsilon)
    plus = loss()
    perturb(-2 * epsilon)
    minus = loss()
    perturb(epsilon)
    perturb(-rate * (plus - minus) / (2 * epsilon))
    return plus, minus


def textbook_step(model: Any, batch: Batch, micro_batch: int) -> Step:
    """MeZO over all parameters; each pass draws z anew from the step's seed.

    In place, unlike the published code, which allocates a new tensor a parameter in each pass.
    """
    model.eval()
    parameters = list(model.parameters())
    seeds = iter(range(_SEED, sys.maxsize))

    @torch.inference_mode()
    def step() -> float:
        seed = next(seeds)

        def perturb(scale: float) -> None:
            generator = torch.Generator().manual_seed(seed)
            for parameter in parameters:
                z = torch.normal(0.0, 1.0, parameter.shape, dtype=parameter.dtype, generator=generator)
                parameter.add_(z, alpha=scale)

        losses = mezo_step(perturb, lambda: _loss(model, batch, micro_batch), epsilon=EPSILON, rate=LEARNING_RATE)
        return sum(losses) / 2

    return step


def lora_step(model: Any, batch: Batch, micro_batch: int) -> Step:
    """Exact backpropagation into low-rank factors of every linear layer (peft), AdamW."""
    return _descent(_adapted(model), batch, micro_batch)


def _adapted(model: Any) -> Any:
    from peft import LoraConfig, get_peft_model

    settings: dict[str, Any] = {} if "ForCausalLM" in type(model).__name__ else {"task_type": "SEQ_CLS"}
    config = LoraConfig(r=LORA_RANK, lora_alpha=2 * LORA_RANK, target_modules="all-linear", **settings)
    # Without the cast, the factors stay in bf16 and nothing is converted on the way: smaller and faster.
    return get_peft_model(model, config, autocast_adapter_dtype=False)


def adam_step(model: Any, batch: Batch, micro_batch: int) -> Step:
    """Exact backpropagation into all parameters, AdamW; both moments in bf16 like the parameters."""
    return _descent(model, batch, micro_batch)


def chunks_step(model: Any, batch: Batch, micro_batch: int) -> Step:
    """The same as `lora_step` with the loss in chunks. With frozen maps in int8 (int8.py) it is the peer `int8`."""
    from bench.learn.peers import Peer
    from pocketllm.engine.data.batches import IGNORE_INDEX
    from pocketllm.engine.data.batches import Batch as Blocks

    peer = Peer(model, checkpointing=False, chunks=True)  # checkpointing is the caller's
    peer.add_factors(_SEED)

    def loss(input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # as transformers shifts them
        return peer.loss(Blocks(inputs=input_ids, targets=targets))

    return _descent(model, batch, micro_batch, loss)


PEERS: dict[str, Callable[[Any, Batch, int], Step]] = {
    "forward": forward_step,
    "textbook": textbook_step,
    "lora": lora_step,
    "adam": adam_step,
    "chunks": chunks_step,
    "int8": chunks_step,
}


def _descent(model: Any, batch: Batch, micro_batch: int, loss_of: Callable[..., torch.Tensor] | None = None) -> Step:
    # Gradient checkpointing is for training mode alone. There is no dropout.
    model.train()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Fused: no temporary copies.
    optimizer = torch.optim.AdamW(trained, lr=LEARNING_RATE, fused=True)

    def step() -> float:
        total = 0.0
        for part, share in _micro_batches(batch, micro_batch):
            loss = (loss_of(**part) if loss_of else model(**part).loss) * share
            loss.backward()
            total += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return total

    return step


@torch.inference_mode()
def _loss(model: Any, batch: Batch, micro_batch: int) -> float:
    return sum(float(model(**part).loss) * share for part, share in _micro_batches(batch, micro_batch))


def _micro_batches(batch: Batch, size: int) -> list[tuple[Batch, float]]:
    """The batch in parts, each with its share of the loss; all texts are equally long."""
    rows = len(batch["input_ids"])
    starts = range(0, rows, size)
    return [
        ({name: tensor[start : start + size] for name, tensor in batch.items()}, min(size, rows - start) / rows)
        for start in starts
    ]


def prepare_step(
    peer: str,
    *,
    batch: int,
    tokens: int,
    shape: str = "",
    folder: str | None = None,
    dtype: str | None = None,
    micro_batch: int | None = None,
    checkpointing: bool = False,
) -> Step:
    """Build a peer and its batch.

    shape: random weights of that shape, or folder: a model folder stored as floats. dtype: of a folder's weights, in
    place of the one that ours compute in. micro_batch: texts at a time; gradients or losses are summed. checkpointing:
    activations are computed again.
    """
    model = int8.build(shape) if peer == "int8" else build(Path(folder) if folder else shape, dtype)
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    return PEERS[peer](model, random_batch(model, batch=batch, tokens=tokens), micro_batch or batch)


def _is_refusal(error: Exception) -> bool:
    """Whether the kernel refused memory; torch says so with a RuntimeError."""
    return isinstance(error, MemoryError) or any(word in str(error).lower() for word in _REFUSALS)


def steps(count: int, cap_gb: float, **work: Any) -> dict[str, Any]:
    """Run steps of a peer (see `prepare_step`), which the kernel gives no more memory than the cap.

    `died_bytes` is how large the process was when it was refused more.
    """
    cap = int(cap_gb * _GB)
    resource.setrlimit(resource.RLIMIT_DATA, (cap, cap))
    report: dict[str, Any] = {"died_bytes": None}
    seconds = []
    try:
        step = prepare_step(**work)
        for _ in range(count):
            started = time.perf_counter()
            report["loss"] = step()
            seconds.append(time.perf_counter() - started)
        report["seconds"] = seconds
    except (MemoryError, RuntimeError) as error:
        if not _is_refusal(error):
            raise
        report |= {
            "died_bytes": memory_of().get("VmHWM"),
            "died_because": str(error).partition("\n")[0] or type(error).__name__,
        }
    return report
