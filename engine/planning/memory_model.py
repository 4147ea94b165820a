"""Predicts a job's memory and time from the model's shapes, and reduces a plan until it fits the memory limit.

Torch-free: the daemon predicts before it starts a worker. A step's memory is one dense weight, the activations of a
micro-batch, a chunk of logits, and the adapter; the speed of matrix products was measured at import
(engine/planning/calibration.py). `bench.memory` compares predictions with measurements.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

from pocketllm.engine.errors import BadRequest, DoesNotFit
from pocketllm.engine.planning.shapes import DENSE_LAYER_BYTES, ITEMSIZE, Shapes, adapted, layer_of

Mode = Literal["lora", "full"]
#: A job's training method: exact gradients, a layer at a time (pocketllm.backprop), or MeZO.
Method = Literal["exact", "mezo"]

MB = 10**6
#: Anonymous and file-backed memory of a worker between steps, if not measured at import.
LIBRARY_ANONYMOUS_BYTES, LIBRARY_FILE_BYTES = 200 * MB, 95 * MB
#: Speed of matrix products if not measured at import: a slow phone's.
GEMM_FLOPS = 20e9
#: A forward pass's time over that of its matrix products, if not measured at import.
OVERHEAD = 1.4
#: Peak memory while a tokenizer is read, over the size of its file (Gemma 3's: 11.1, SmolLM2's: 12).
TOKENIZER_READ = 11.5
#: Seconds to unpack one weight.
UNPACK_SECONDS = 0.4e-9
#: Seconds to perturb one weight along one direction, when all weights are trained.
PERTURB_SECONDS = 1.5e-9
#: Three copies of a chunk of logits (engine/streamed/loss.py) and two of the attention scores.
CHUNK_BYTES = 40 * MB
#: When all weights are trained: perturbed rows of the head with their z, and the random bits of an update.
PERTURBED_BYTES = 20 * MB
#: Fragmentation: memory of activations over their size.
SLACK = 1.1
#: A weight that needs a dense copy is copied in chunks of this size (twice: once in fp32), or of this number of rows if
#: that is larger (engine/streamed/weights.py).
DENSE_BYTES, MIN_DENSE_ROWS = 5 * MB, 512
#: Memory of a layer's graph and backward pass for each position: in outputs of its linear maps, and in fp32 vectors of
#: the hidden width for its norms.
GRAPH_OUTPUTS, GRAPH_HIDDENS = 5, 12
#: Time of an exact step over that of a forward pass: forward, forward again, and backward; and what is saved where
#: all layers keep their activations.
EXACT_PASSES, KEPT_PASSES = 3.4, 0.65
#: What each further micro-batch of an exact step costs, in positions: a layer's weights pass through the cache again
#: (SmolLM2, bf16, all layers kept: 1.30 s for 512 positions at once, 1.56 s for twice 256, 2.04 s for four times 128).
VISIT_POSITIONS = 100
#: Oversampling columns of the activation PCA (mezo/activation_pca.py), which make it converge faster.
SPARE_COLUMNS = 4
#: Tokens of a sample for rehearsal; and copies of its logits, in fp32, while its next token is drawn.
SAMPLE_TOKENS, DRAWN_LOGITS = 64, 5
#: The shortest blocks that a plan is reduced to.
MIN_TOKENS = 16
#: From this number of probes on they share the loss at theta (mezo/estimator.py).
MIN_SHARED = 3
#: The smallest micro-batch in rows: one block; or one block at both perturbations of a probe.
MIN_ROWS: dict[Method, int] = {"exact": 1, "mezo": 2}

_SLOWER = "slower, with the same result"
#: The fields of a plan that may be reduced -> their description, and the consequence.
_REDUCED = {
    "micro_batch": ("the number of rows that pass through the layers together", _SLOWER),
    "pass_blocks": ("the number of a step's blocks that pass through all layers together", _SLOWER),
    "block_tokens": ("training.block_tokens", "the model learns from shorter blocks"),
}


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """How a job runs: the request, reduced to what fits in memory."""

    mode: Mode
    steps: int
    batch: int  #: blocks a step
    block_tokens: int
    probes: int
    rank: int
    targets: tuple[str, ...]
    micro_batch: int  #: rows that pass through the layers together; for MeZO a row is a block at one perturbation
    compute_dtype: str  #: of the layers; fixed by the plan, so that a resumed run computes the same
    method: Method = "mezo"
    pass_blocks: int = 0  #: exact: blocks whose states are stored at a time
    kept_layers: int = 0  #: exact: layers, from the top, whose activations are kept


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """A plan's memory and time."""

    library_bytes: int  #: resident memory of the worker between steps
    working_bytes: int  #: anonymous memory on top of that, which `memory_bytes` limits
    anonymous_bytes: int  #: including libraries
    file_bytes: int  #: file-backed pages: libraries and the current layer; the kernel can drop them
    peak_bytes: int  #: resident memory
    seconds_per_step: float
    seconds: float  #: all steps
    kept_bytes: int = 0  #: of working_bytes: the activations that are kept
    kept_seconds: float = 0.0  #: that these save in a step


def predict(shapes: Shapes, plan: JobPlan) -> Prediction:
    """The plan's memory and time on this machine."""
    working = int(_working_bytes(shapes, plan))
    anonymous = int(shapes.calibration.get("library_anonymous_bytes", LIBRARY_ANONYMOUS_BYTES))
    files = int(shapes.calibration.get("library_file_bytes", LIBRARY_FILE_BYTES))
    window = 0 if plan.mode == "full" else shapes.window_bytes
    seconds = _seconds(shapes, plan)
    return Prediction(
        library_bytes=anonymous + files,
        working_bytes=working,
        anonymous_bytes=anonymous + working,
        file_bytes=files + window,
        # The tokenizer is read and dropped before the first step.
        peak_bytes=anonymous + files + max(working + window, int(TOKENIZER_READ * shapes.tokenizer_bytes)),
        seconds_per_step=seconds,
        seconds=seconds * plan.steps,
        kept_bytes=_kept_bytes(shapes, plan),
        kept_seconds=_seconds(shapes, replace(plan, kept_layers=0)) - seconds,
    )


def fit(shapes: Shapes, requested: JobPlan, limit_bytes: int) -> tuple[JobPlan, list[str]]:
    """The requested plan, reduced until its working memory fits the limit; and a sentence for each reduction.

    Reduces the micro-batch first, which only costs speed; then the length of the blocks. What memory is left keeps
    activations, of fewer blocks at a time where that is faster. Raises DoesNotFit, naming the smallest sufficient
    limit; and BadRequest for a request that cannot be trained at all.
    """
    _check_trainable(shapes, requested)
    fewest = replace(
        requested,
        micro_batch=min(requested.micro_batch, MIN_ROWS[requested.method]),
        pass_blocks=min(requested.pass_blocks, 1),
        block_tokens=min(requested.block_tokens, MIN_TOKENS),
    )
    if (least := predict(shapes, fewest).working_bytes) > limit_bytes:
        smallest = math.ceil(least / MB)
        raise DoesNotFit(
            f"The job needs at least {smallest} MB beyond the libraries, but training.memory_bytes allows "
            f"{limit_bytes // MB} MB. Set it to {smallest * MB} or more, or "
            f"{'train an adapter (mode lora)' if requested.mode == 'full' else 'choose a smaller model'}."
        )

    # In this order, each as far as necessary.
    less: tuple[tuple[str, Callable[[JobPlan], int]], ...] = (
        ("pass_blocks", lambda plan: max(plan.micro_batch, plan.pass_blocks // 2)),
        ("micro_batch", lambda plan: max(fewest.micro_batch, plan.micro_batch // 4 * 2)),
        ("pass_blocks", lambda plan: max(fewest.pass_blocks, plan.pass_blocks // 2)),
        ("block_tokens", lambda plan: max(MIN_TOKENS, plan.block_tokens // 2)),
    )
    plan = requested
    for name, value in less:
        while value(plan) < getattr(plan, name) and predict(shapes, plan).working_bytes > limit_bytes:
            change: dict[str, Any] = {name: value(plan)}
            plan = replace(plan, **change)
    sentences = [
        f"To fit into training.memory_bytes ({limit_bytes // MB} MB), {what} was reduced from "
        f"{getattr(requested, name)} to {getattr(plan, name)}: {then}."
        for name, (what, then) in _REDUCED.items()
        if getattr(plan, name) < getattr(requested, name)
    ]
    return _keeping(shapes, plan, limit_bytes) if plan.method == "exact" else plan, sentences


def _keeping(shapes: Shapes, plan: JobPlan, limit_bytes: int) -> JobPlan:
    """The plan with as many layers' activations as fit: of all its blocks, or of half as many at a time, and so on."""
    found = []
    for blocks in (plan.pass_blocks >> halvings for halvings in range(plan.pass_blocks.bit_length())):
        smaller = replace(plan, pass_blocks=blocks, micro_batch=min(plan.micro_batch, blocks))
        of_layer = _kept_bytes(shapes, replace(smaller, kept_layers=1))
        free = limit_bytes - int(_working_bytes(shapes, smaller))
        found.append(replace(smaller, kept_layers=max(0, min(shapes.layers, free // max(1, of_layer)))))
    return min(found, key=lambda plan: _seconds(shapes, plan)) if shapes.kept_bytes else plan


def samples_at_once(shapes: Shapes, most: int, limit_bytes: int) -> int:
    """The number of samples to draw together: `most`, halved until their memory fits the limit; at least one."""
    while most > 1 and _drawing_bytes(shapes, most) > limit_bytes:
        most //= 2
    return most


def exact_passes(shapes: Shapes, plan: JobPlan) -> float:
    """The time of an exact step over that of a forward pass."""
    return EXACT_PASSES - KEPT_PASSES * plan.kept_layers / max(1, shapes.layers)


def points_of(probes: int) -> int:
    """The number of perturbations at which a step of MeZO measures the loss (mezo/estimator.py)."""
    return 2 * probes if probes < MIN_SHARED else probes + 1


def _check_trainable(shapes: Shapes, requested: JobPlan) -> None:
    if requested.mode == "full" and shapes.dtype not in ITEMSIZE:
        raise BadRequest(
            f"Mode full requires weights that are stored as floats, but {shapes.name} is stored as {shapes.dtype}. "
            "Import it as bfloat16, or train an adapter (mode lora)."
        )
    if requested.method == "exact" and requested.mode == "full":
        raise BadRequest("Exact gradients train an adapter only (mode lora). Use training.method = mezo, or auto.")
    if requested.method == "exact" and not shapes.layers:
        raise BadRequest(
            f"{shapes.name} has no list of layers, as exact gradients require. Use training.method = mezo, or auto."
        )
    if requested.mode == "lora" and requested.method == "mezo" and not adapted(shapes, requested.targets):
        there = ", ".join(sorted({path.rpartition(".")[2] for path in shapes.linears})) or "none"
        raise BadRequest(
            f"None of training.targets ({', '.join(requested.targets)}) is a linear map of {shapes.name}. Name some of "
            f"these: {there}."
        )


def _working_bytes(shapes: Shapes, plan: JobPlan) -> float:
    """The peak of anonymous memory, during the activation PCA or a step."""
    size = ITEMSIZE[shapes.compute_dtype]
    activations = SLACK * plan.micro_batch * plan.block_tokens * shapes.position_bytes
    chunk = max(DENSE_BYTES, MIN_DENSE_ROWS * size * max(inputs for _, inputs in shapes.linears.values()))
    made = (2 if shapes.packed else 0) + (
        min(points_of(plan.probes), plan.micro_batch) + 1 if plan.mode == "full" else 0
    )
    dense = made * min(chunk, size * shapes.largest)
    if plan.method == "exact":
        layer = size * shapes.multiplied // max(1, shapes.layers) if shapes.packed else 0
        in_step = dense + (layer if layer <= DENSE_LAYER_BYTES else 0) + _exact_bytes(shapes, plan)
        return max(in_step, _drawing_bytes(shapes, 1))
    in_step = _theta_bytes(shapes, plan) + CHUNK_BYTES
    return activations + dense + max(in_step, _preparing_bytes(shapes, plan))


def _exact_bytes(shapes: Shapes, plan: JobPlan) -> float:
    """A and B with their gradients and NAdam's two moments; the states; and a layer's graph, or the output error."""
    size = ITEMSIZE[shapes.compute_dtype]
    factors = sum(4 * plan.rank * (out + inputs) for path, (out, inputs) in shapes.linears.items() if layer_of(path))
    positions = plan.pass_blocks * plan.block_tokens
    states = positions * size * shapes.hidden * (shapes.layers + 1)
    at_once = plan.micro_batch * plan.block_tokens
    graph, error = at_once * graph_bytes(shapes), CHUNK_BYTES + at_once * 12 * shapes.hidden
    return 4 * factors + states + _kept_bytes(shapes, plan) + SLACK * max(graph, error)


def _drawing_bytes(shapes: Shapes, rows: int) -> float:
    """Samples that are drawn together: their KV cache and logits."""
    cached = sum(out for path, (out, _) in shapes.linears.items() if path.endswith(("k_proj", "v_proj")))
    # Maps of other names make keys and values of the hidden width at most.
    cache = SLACK * SAMPLE_TOKENS * ITEMSIZE[shapes.compute_dtype] * (cached or 2 * shapes.hidden * shapes.layers)
    return CHUNK_BYTES + rows * (cache + DRAWN_LOGITS * 4 * shapes.head[0])


def _kept_bytes(shapes: Shapes, plan: JobPlan) -> int:
    """The activations that are kept."""
    return plan.kept_layers * plan.pass_blocks * plan.block_tokens * shapes.kept_bytes


def graph_bytes(shapes: Shapes) -> int:
    """The memory of one position in a layer's graph and backward pass."""
    return GRAPH_OUTPUTS * ITEMSIZE[shapes.compute_dtype] * shapes.layer_outputs + GRAPH_HIDDENS * 4 * shapes.hidden


def _theta_bytes(shapes: Shapes, plan: JobPlan) -> int:
    """A and B in fp32; or all weights, and their perturbed rows."""
    if plan.mode == "full":
        return shapes.weights_bytes + PERTURBED_BYTES
    return sum(4 * plan.rank * (out + inputs) for out, inputs in adapted(shapes, plan.targets).values())


def _preparing_bytes(shapes: Shapes, plan: JobPlan) -> int:
    """The activation PCA: two sketches for each map, somewhat wider than A; and A and B themselves."""
    if plan.mode == "full":
        return 0
    inputs = sum(inputs for _, inputs in adapted(shapes, plan.targets).values())
    return _theta_bytes(shapes, plan) + 8 * (plan.rank + SPARE_COLUMNS) * inputs


def _seconds(shapes: Shapes, plan: JobPlan) -> float:
    """The time of a step."""
    if plan.method == "exact":
        return _exact_seconds(shapes, plan)
    rows = plan.batch * points_of(plan.probes)
    passes = math.ceil(rows / plan.micro_batch)
    unpacking = shapes.multiplied * UNPACK_SECONDS if shapes.packed else 0.0  # in a pass
    computing = rows * plan.block_tokens * _seconds_per_token(shapes, unpacking)
    # Each pass generates its directions again, and the update all of the step's.
    directions = passes * min(plan.probes, plan.micro_batch) + plan.probes
    weights = shapes.multiplied + math.prod(shapes.head)
    perturbing = directions * weights * PERTURB_SECONDS if plan.mode == "full" else 0.0
    return computing + passes * unpacking + perturbing


def _exact_seconds(shapes: Shapes, plan: JobPlan) -> float:
    """The time of a step: forward, forward again where nothing is kept, and backward."""
    unpacking = shapes.multiplied * UNPACK_SECONDS if shapes.packed else 0.0  # for a micro-batch, in all layers
    micro_batches = math.ceil(plan.batch / plan.micro_batch)
    positions = plan.batch * plan.block_tokens + (micro_batches - 1) * VISIT_POSITIONS
    computing = positions * _seconds_per_token(shapes, unpacking)
    return exact_passes(shapes, plan) * computing + 3 * micro_batches * unpacking


def _seconds_per_token(shapes: Shapes, unpacking: float) -> float:
    """The time of a forward pass per token, without unpacking, which does not depend on the number of tokens."""
    rate = float(shapes.calibration.get("gemm_flops", GEMM_FLOPS))
    products = 2.0 * (shapes.multiplied + math.prod(shapes.head)) / rate
    if not (tokens := shapes.calibration.get("forward_tokens")):
        return OVERHEAD * products
    seconds = float(shapes.calibration["forward_seconds"])
    return max(products, (seconds - unpacking) / int(tokens))
