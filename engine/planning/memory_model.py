"""What a job will take, before it runs: bytes and seconds, from the model's shapes alone; and how to make it fit.

Nothing here imports torch: the daemon asks before it starts a worker. The memory of a step is one dense weight,
the activations of the rows that pass through together, a chunk of logits, and the adapter; how fast the machine
multiplies was measured at import (engine/planning/calibration.py). `bench.memory` compares.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from pocketllm.engine.errors import BadRequest, DoesNotFit
from pocketllm.engine.planning.shapes import DENSE_LAYER_BYTES, ITEMSIZE, Shapes, adapted, distinct_inputs, layer_of

Mode = Literal["lora", "full"]
#: How a job learns: exact gradients, a layer at a time (pocketllm.backprop), or MeZO.
Method = Literal["exact", "mezo"]

MB = 10**6
#: Anonymous and file-backed memory of a worker before it has a model, where import could not measure it.
LIBRARY_ANONYMOUS_BYTES, LIBRARY_FILE_BYTES = 200 * MB, 95 * MB
#: Products a second where import could not measure it: a slow phone's.
GEMM_FLOPS = 20e9
#: A step's time over that of its matrix products, where import could not measure a forward: norms, attention,
#: activations, the adapter.
OVERHEAD = 1.4
#: Seconds that one packed weight takes to be made dense.
UNPACK_SECONDS = 0.4e-9
#: Seconds that one weight takes to be moved along a direction, when all weights are trained.
MOVE_SECONDS = 1.5e-9
#: A chunk of logits and what its sum takes, three times over (engine/streamed/loss.py), and scores of attention twice.
CHUNK_BYTES = 40 * MB
#: What a replica beyond the first takes: modules without weights, and an allocator's arena of its own.
REPLICA_BYTES = 13 * MB
#: When all weights are trained: rows of the head at a point with their z, and the random bits of an update.
MOVED_BYTES = 20 * MB
#: Activations come and go in many sizes; the allocator keeps this part of them in pieces that fit nothing.
SLACK = 1.1
#: Of a weight that is not used as it is kept, this much is made dense at a time, and again that much in fp32 on the
#: way; or so many rows, if these are more (engine/streamed/modules.py).
DENSE_BYTES, MIN_DENSE_ROWS = 5 * MB, 512
#: A layer's graph and its way back, for each position: a multiple of its linear maps' outputs, and of its norms numbers
#: in fp32 as wide as the stream.
GRAPH_OUTPUTS, GRAPH_STREAMS = 5, 12
#: Seconds of an exact step over those of a forward: up, up again, and back.
EXACT_PASSES = 3.5
#: Columns that the search for A carries along beyond the rank (engine/params/activation_pca.py).
_SPARE_COLUMNS = 4
#: Shortest rows that a plan is reduced to.
MIN_TOKENS = 16
#: From so many probes on they share the loss at theta.
_MIN_SHARED = 3
#: Fewest rows that pass through the layers together: one; or a block at the two points of a probe.
MIN_ROWS: dict[Method, int] = {"exact": 1, "mezo": 2}

_SLOWER = "slower, with the same result"
#: What of a plan may be reduced: what it is, for people, and what comes of it.
_REDUCED = {
    "replicas": ("the threads that each take rows of their own through the layers", _SLOWER),
    "micro_batch": ("the rows that pass through the layers together", _SLOWER),
    "pass_blocks": ("the blocks of a step that go through all layers together", _SLOWER),
    "block_tokens": ("training.block_tokens", "the model learns from shorter pieces"),
}


@dataclass(frozen=True, kw_only=True)
class JobPlan:
    """How a job runs: what was asked for, as far as memory allows."""

    mode: Mode
    steps: int
    batch: int  #: blocks a step
    block_tokens: int
    probes: int
    rank: int
    targets: tuple[str, ...]
    micro_batch: int  #: blocks times points that pass through the layers together
    replicas: int  #: threads that each take a share of them through the layers alone (engine/streamed/model.py)
    compute_dtype: str  #: in which the layers compute: settled with the plan, so that a resumed run computes alike
    method: Method = "mezo"  #: the oldest plans say nothing
    pass_blocks: int = 0  #: exact: blocks whose states are kept for one way back

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self) | {"targets": list(self.targets)}


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a plan takes. Bytes and seconds."""

    library_bytes: int  #: of the worker before it has a model
    working_bytes: int  #: anonymous memory on top: what `memory_bytes` limits
    anonymous_bytes: int  #: libraries included
    file_bytes: int  #: pages of files: libraries and the layer that runs; the kernel can drop them
    peak_bytes: int  #: resident memory, all of it
    seconds_per_step: float
    seconds: float  #: of all steps


def predict(shapes: Shapes, plan: JobPlan) -> Prediction:
    """What the plan takes on this machine."""
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
        peak_bytes=anonymous + working + files + window,
        seconds_per_step=seconds,
        seconds=seconds * plan.steps,
    )


def fit(shapes: Shapes, requested: JobPlan, limit_bytes: int) -> tuple[JobPlan, list[str]]:
    """The plan that keeps its working memory within the limit, and a sentence for each thing that was reduced.

    First fewer rows pass through together, in fewer replicas, which costs nothing but speed; then rows become shorter.
    Raises DoesNotFit, naming the smallest limit that would do, when even that is too much; and BadRequest for what
    cannot be trained, whatever the limit.
    """
    _check_trainable(shapes, requested)
    fewest = replace(
        requested,
        micro_batch=min(requested.micro_batch, MIN_ROWS[requested.method]),
        pass_blocks=min(requested.pass_blocks, 1),
        replicas=1,
        block_tokens=min(requested.block_tokens, MIN_TOKENS),
    )
    if (least := predict(shapes, fewest).working_bytes) > limit_bytes:
        raise _does_not_fit(requested, least, limit_bytes)

    # In this order, each as far as it must.
    less: tuple[tuple[str, Callable[[JobPlan], int]], ...] = (
        ("pass_blocks", lambda plan: max(plan.micro_batch, plan.pass_blocks // 2)),
        ("replicas", lambda plan: max(1, plan.replicas // 2)),
        ("micro_batch", lambda plan: max(fewest.micro_batch, plan.micro_batch // 4 * 2)),
        ("pass_blocks", lambda plan: max(fewest.pass_blocks, plan.pass_blocks // 2)),
        ("block_tokens", lambda plan: max(MIN_TOKENS, plan.block_tokens // 2)),
    )
    plan = requested
    for name, value in less:
        while value(plan) < getattr(plan, name) and predict(shapes, plan).working_bytes > limit_bytes:
            change: dict[str, Any] = {name: value(plan)}
            plan = replace(plan, **change)
    said = [
        f"To fit into training.memory_bytes ({limit_bytes // MB} MB), {what} went from {getattr(requested, name)} to "
        f"{getattr(plan, name)}: {then}."
        for name, (what, then) in _REDUCED.items()
        if getattr(plan, name) < getattr(requested, name)
    ]
    return plan, said


def points_of(probes: int) -> int:
    """At how many points a step of MeZO measures the loss (mezo/estimator.py)."""
    return 2 * probes if probes < _MIN_SHARED else probes + 1


def _check_trainable(shapes: Shapes, requested: JobPlan) -> None:
    if requested.mode == "full" and shapes.dtype not in ITEMSIZE:
        raise BadRequest(
            f"All weights can be trained only where they are stored as floats, and {shapes.name} is stored as "
            f"{shapes.dtype}. Import it as bfloat16, or train an adapter (mode lora)."
        )
    if requested.method == "exact" and requested.mode == "full":
        raise BadRequest(
            "Exact gradients are of an adapter's factors (mode lora). Use training.method = mezo, or auto."
        )
    if requested.method == "exact" and not shapes.layers:
        raise BadRequest(
            f"{shapes.name} has no list of layers to take one at a time. Use training.method = mezo, or auto."
        )
    if requested.mode == "lora" and requested.method == "mezo" and not adapted(shapes, requested.targets):
        there = ", ".join(sorted({path.rpartition(".")[2] for path in shapes.linears})) or "none"
        raise BadRequest(
            f"None of training.targets ({', '.join(requested.targets)}) is a linear map of {shapes.name}, which has "
            f"{there}. Name some of these."
        )


def _does_not_fit(plan: JobPlan, least: int, limit_bytes: int) -> DoesNotFit:
    smallest = math.ceil(least / MB)
    otherwise = "train an adapter (mode lora)" if plan.mode == "full" else "choose a smaller model"
    return DoesNotFit(
        f"The job needs at least {smallest} MB beyond the libraries, and training.memory_bytes allows "
        f"{limit_bytes // MB} MB. Set it to {smallest * MB} or more, or {otherwise}."
    )


def _working_bytes(shapes: Shapes, plan: JobPlan) -> float:
    """The most anonymous memory at a time: while A is looked for, or in a step."""
    size = ITEMSIZE[shapes.compute_dtype]
    activations = SLACK * plan.micro_batch * plan.block_tokens * shapes.position_bytes
    chunk = max(DENSE_BYTES, MIN_DENSE_ROWS * size * max(inputs for _, inputs in shapes.linears.values()))
    made = (2 if shapes.packed else 0) + (
        min(points_of(plan.probes), plan.micro_batch) + 1 if plan.mode == "full" else 0
    )
    dense = made * min(chunk, size * shapes.largest)
    of_replicas = (plan.replicas - 1) * REPLICA_BYTES
    if plan.method == "exact":
        layer = size * shapes.multiplied // max(1, shapes.layers) if shapes.packed else 0
        return dense + (layer if layer <= DENSE_LAYER_BYTES else 0) + of_replicas + _exact_bytes(shapes, plan)
    in_step = _theta_bytes(shapes, plan) + CHUNK_BYTES + of_replicas
    return activations + dense + max(in_step, _preparing_bytes(shapes, plan))


def _exact_bytes(shapes: Shapes, plan: JobPlan) -> float:
    """A, B and NAdam's two moments of each; states; and a layer's graph, or what is made at the output."""
    size = ITEMSIZE[shapes.compute_dtype]
    factors = sum(4 * plan.rank * (out + inputs) for path, (out, inputs) in shapes.linears.items() if layer_of(path))
    copies = 3 if plan.batch <= plan.pass_blocks else 4  # gradients add up over several passes
    positions = plan.pass_blocks * plan.block_tokens
    states = positions * size * shapes.hidden * (shapes.layers + 1)
    graph = GRAPH_OUTPUTS * size * shapes.layer_outputs + GRAPH_STREAMS * 4 * shapes.hidden
    at_once = plan.micro_batch * plan.block_tokens
    return copies * factors + states + SLACK * max(at_once * graph, CHUNK_BYTES + at_once * 12 * shapes.hidden)


def _theta_bytes(shapes: Shapes, plan: JobPlan) -> int:
    """A and B in fp32; or all weights, and what moving them takes."""
    if plan.mode == "full":
        return shapes.weights_bytes + MOVED_BYTES
    return sum(4 * plan.rank * (out + inputs) for out, inputs in adapted(shapes, plan.targets).values())


def _preparing_bytes(shapes: Shapes, plan: JobPlan) -> int:
    """What finding A takes: two sketches, somewhat wider than A, of each input; and A and B themselves."""
    if plan.mode == "full":
        return 0
    inputs = sum(distinct_inputs(shapes, plan.targets))
    return _theta_bytes(shapes, plan) + 8 * (plan.rank + _SPARE_COLUMNS) * inputs


def _seconds(shapes: Shapes, plan: JobPlan) -> float:
    """Of a step."""
    if plan.method == "exact":
        return _exact_seconds(shapes, plan)
    rows = plan.batch * points_of(plan.probes)
    walks = math.ceil(rows / plan.micro_batch)
    unpacking = shapes.multiplied * UNPACK_SECONDS if shapes.packed else 0.0  # of a walk
    passing = rows * plan.block_tokens * _seconds_per_token(shapes, unpacking)
    # Each walk draws the directions that it goes along anew, and the update all of a step's once more.
    drawn = walks * min(plan.probes, plan.micro_batch) + plan.probes
    moving = drawn * (shapes.multiplied + math.prod(shapes.head)) * MOVE_SECONDS if plan.mode == "full" else 0.0
    return passing + walks * unpacking + moving


def _exact_seconds(shapes: Shapes, plan: JobPlan) -> float:
    """Of a step: up, up again, and back."""
    unpacking = shapes.multiplied * UNPACK_SECONDS if shapes.packed else 0.0  # of a micro-batch, through all layers
    micro_batches = math.ceil(plan.batch / plan.micro_batch)
    passing = plan.batch * plan.block_tokens * _seconds_per_token(shapes, unpacking)
    return EXACT_PASSES * passing + 3 * micro_batches * unpacking


def _seconds_per_token(shapes: Shapes, unpacking: float) -> float:
    """Of a forward, without what making packed weights dense takes, however many tokens there are."""
    rate = float(shapes.calibration.get("gemm_flops", GEMM_FLOPS))
    products = 2.0 * (shapes.multiplied + math.prod(shapes.head)) / rate
    if not (tokens := shapes.calibration.get("forward_tokens")):
        return OVERHEAD * products
    return max(products, (float(shapes.calibration["forward_seconds"]) - unpacking) / int(tokens))
