"""Every call of the benches into our engine: `load`, `steps` and `prepare_step` do what the worker would do."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench.common.child import memory_of
from pocketllm.backprop.method import Exact, ExactPlan, fresh_adapter
from pocketllm.daemon.process_memory import give_back_free_memory
from pocketllm.daemon.scheduling.night import MAX_STEPS
from pocketllm.daemon.scheduling.planning import CHEAP_PROBES, Planned, plan_job
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training import rehearsal
from pocketllm.daemon.training.run import pass_size
from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, shuffled
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.formats.tokenizer import lean_tokenizer
from pocketllm.engine.method import Method
from pocketllm.engine.noise import Direction, Perturbation
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.planning.memory_model import JobPlan
from pocketllm.engine.streamed.model import LanguageModel
from pocketllm.mezo.activation_pca import adapter_along_activations
from pocketllm.mezo.estimator import directions, probe
from pocketllm.mezo.method import MeZO, MeZOPlan

Array = NDArray[np.float64]

_SEED = 0
_EPSILON, _STEP_SIZE = 1e-3, 1e-7
#: More than any model here needs in memory.
_ENOUGH_BYTES = 2**40
#: All rows at once.
_ALL = 2**20


def load_model(folder: Path) -> LanguageModel:
    """Open the model folder, ready to run a step.

    Everything that is slow to import is imported when this module is, so that timing this times the loading.
    """
    return LanguageModel(open_model_folder(folder), release_pages=True)


def planned(folder: Path, *, mode: str, batch: int, tokens: int, memory_bytes: int | None = None) -> Planned:
    """The plan of the worker for one such step: with its default limit, or in full mode whatever it needs.

    mode: "lora" is MeZO on an adapter, two-sided along one direction as published, "directions" along as many as the
    worker takes by default, "full" the former on all parameters; "exact" is exact gradients of an adapter.
    memory_bytes: in place of the default limit.
    """
    method = "exact" if mode == "exact" else "mezo"
    requested = {"mode": "full" if mode == "full" else "lora", "method": method, "steps": 1}
    memory_bytes = _ENOUGH_BYTES if mode == "full" else memory_bytes
    limit = {} if memory_bytes is None else {"memory_bytes": memory_bytes}
    step = {"batch": batch, "probes": CHEAP_PROBES[0] if mode == "directions" else 1, "block_tokens": tokens}
    settings = TrainingSettings.model_validate({**requested, **step, **limit})
    return plan_job(open_model_folder(folder), settings)


def rehearsed(plan: JobPlan) -> int:
    """How many blocks of a step are samples, by default."""
    return rehearsal.blocks_of_step(TrainingSettings().rehearsal, plan.batch)


def rehearsal_of(model: LanguageModel, wanted: int = MAX_STEPS) -> Batch:
    """The base model's samples, which the worker draws once a model: as many as for the longest job."""
    prompts = rehearsal.prompts(model.folder.tokenizer())
    return rehearsal.rehearsal_blocks(model, prompts, count=wanted, on_progress=lambda *_: None)


def exact_method(
    model: LanguageModel,
    plan: JobPlan,
    *,
    seed: int,
    samples: Batch | None = None,
    adapter: Adapter | None = None,
    rate: float | None = None,
) -> Exact:
    """The worker's method, of an adapter, which the model uses from now on.

    samples: to be rehearsed, as the worker does by default, in `rehearsed` of a step's blocks. adapter: to start from,
    a fresh one by default. rate: the peak learning rate, by default that of the settings.
    """
    adapter = adapter or fresh_adapter(model, rank=plan.rank, seed=seed)
    model.set_parameters(adapter)
    begun = {path: (a.clone(), adapter.b[path].clone()) for path, a in adapter.a.items()}

    def to_start() -> None:
        for path, (a, b) in begun.items():
            adapter.a[path].copy_(a)
            adapter.b[path].copy_(b)

    rate = TrainingSettings().rate if rate is None else rate
    count = 0 if samples is None else rehearsed(plan)
    return Exact(
        model,
        adapter,
        ExactPlan(seed=seed, rate=rate, samples_weight=count / plan.batch),
        pass_size(plan),
        to_start=to_start,
        samples=None if samples is None else shuffled((samples,), size=count, seed=seed),
    )


def prepare_step(
    folder: str, *, mode: str, batch: int, tokens: int, memory_bytes: int | None = None
) -> Callable[[], float]:
    """Open the model and return what does one whole step each time it is called, and returns the loss.

    A whole step: the forward passes on `batch` texts of `tokens` tokens, and the update, with the settings that
    the worker has by default. A causal model learns random token ids, its loss over every token; a masked model
    learns labelled texts, each of `tokens` tokens with one mask, its loss over two label words' rows.
    mode and memory_bytes: see `planned`.
    """
    plan = planned(Path(folder), mode=mode, batch=batch, tokens=tokens, memory_bytes=memory_bytes).plan
    model = load_model(Path(folder))
    blocks = random_blocks(model, batch, tokens)
    method: Method
    if mode == "exact":
        method = exact_method(model, plan, seed=_SEED)
    else:
        trainable = _theta(model, mode, plan)
        model.set_parameters(trainable)
        mezo = MeZOPlan(seed=_SEED, epsilon=_EPSILON, step_size=_STEP_SIZE, probes=plan.probes)
        method = MeZO(
            lambda points, batch: model.losses_at(points, batch, plan.micro_batch), trainable, mezo, lambda: None
        )
    give_back_free_memory()
    numbers = itertools.count(1)

    @torch.no_grad()
    def step() -> float:
        number = next(numbers)
        while (record := method.step(number, blocks, remaining=1.0, share=1.0)) is None:
            pass
        return record.loss

    return step


def random_blocks(model: LanguageModel, batch: int, tokens: int) -> Batch:
    """So many random texts of so many tokens, of the kind that the model learns from (see `prepare_step`)."""
    numbers = torch.Generator().manual_seed(_SEED)
    ids = torch.randint(10, model.head.at(None).vocabulary, (batch, tokens + 1), generator=numbers)
    if not model.folder.manifest.is_mlm:
        return Batch(inputs=ids[:, :-1], targets=ids[:, 1:])
    targets = torch.full((batch, tokens), IGNORE_INDEX)
    targets[:, -2] = 10 + torch.arange(batch) % 2
    return Batch(inputs=ids[:, :-1], targets=targets, label_ids=(10, 11))


@torch.no_grad()
def _theta(model: LanguageModel, mode: str, plan: JobPlan) -> Adapter | FullWeights:
    """As the worker makes it: an adapter whose A follows the activations on some blocks, or all weights."""
    if mode == "full":
        return model.full()
    return adapter_along_activations(
        model,
        (random_blocks(model, 2, plan.block_tokens),),
        targets=plan.targets,
        rank=plan.rank,
        seed=_SEED,
        micro_batch=plan.micro_batch,
    )


def gaussian(seed: int, step: int, tensor: int, shape: tuple[int, ...]) -> Array:
    """z of the engine's "gaussian" noise in float64; `tensor` counts the parameters as `Trajectory.parameters` does."""
    z: Array = Direction(seed=seed, step=step, kind="gaussian").of(tensor, shape, torch.float64).numpy()
    return z


@dataclass(frozen=True, kw_only=True)
class Trajectory:
    """A run of full-parameter MeZO."""

    losses: list[tuple[float, float]]  #: L+ and L- of each step, in nats per token
    parameters: dict[str, Array]  #: at the end, by their names in the weights file, in the order of the noise


def trajectory(
    folder: Path, inputs: torch.Tensor, targets: torch.Tensor, *, steps: int, seed: int, epsilon: float, rate: float
) -> Trajectory:
    """Steps 1 to `steps` of the engine on one batch: full-parameter, Gaussian z, one probe, constant learning rate.

    inputs, targets: (batch, tokens) int64, each position with the token that it shall predict. In float64 as far as
    the engine can, so that what is compared is the algorithm.
    """
    model = LanguageModel(open_model_folder(folder), dtype=torch.float64)
    blocks = Batch(inputs=inputs, targets=targets)
    trainable = model.full(torch.float64)
    model.set_parameters(trainable)
    losses = []
    with torch.inference_mode():
        for step in range(1, steps + 1):
            along = directions(seed, step, 1, "gaussian")
            seen = probe(lambda points: model.losses_at(points, blocks, _ALL), along, epsilon=epsilon)
            losses.append((seen.losses[0], seen.losses[1]))
            for z, g in zip(along, seen.scalars, strict=True):
                trainable.add_scaled(z, -rate * g)
    return Trajectory(losses=losses, parameters={name: t.numpy() for name, t in trainable.tensors.items()})


@torch.no_grad()
def two_sided_losses(
    folder: Path, inputs: torch.Tensor, targets: torch.Tensor, *, mode: str, seed: int, epsilon: float
) -> tuple[float, float]:
    """L+ and L- of step 1 as a step computes them: both signs in one batch, from a fresh adapter or the weights."""
    model, blocks = load_model(folder), Batch(inputs=inputs, targets=targets)
    model.set_parameters(_theta(model, mode, _whole_plan(folder, mode, blocks)))
    plus, minus = model.losses_at(_both_sides(seed, epsilon), blocks, _ALL)
    return plus, minus


@torch.no_grad()
def separate_losses(
    folder: Path, inputs: torch.Tensor, targets: torch.Tensor, *, mode: str, seed: int, epsilon: float
) -> tuple[float, float]:
    """The same two losses by a forward for each sign, with the parameters really at theta + eps z and theta - eps z."""
    model, blocks = load_model(folder), Batch(inputs=inputs, targets=targets)
    plan = _whole_plan(folder, mode, blocks)
    found = []
    for point in _both_sides(seed, epsilon):
        trainable = _theta(model, mode, plan)
        _moved_exactly(trainable, point)
        model.set_parameters(trainable)
        found.append(model.mean_loss([blocks]))
        model = load_model(folder)
    return found[0], found[1]


@torch.no_grad()
def mean_loss(folder: Path, inputs: torch.Tensor, targets: torch.Tensor) -> float:
    """The base model's mean loss in nats per token, over (blocks, tokens) int64 ids."""
    return load_model(folder).mean_loss([Batch(inputs=inputs, targets=targets)])


def _both_sides(seed: int, epsilon: float) -> list[Perturbation]:
    (along,) = directions(seed, 1, 1, "rademacher")
    return [Perturbation(direction=along, distance=side * epsilon) for side in (1, -1)]


def _moved_exactly(trainable: Adapter | FullWeights, point: Perturbation) -> None:
    """theta + distance z rounded to nearest, as a point of a probe is; `add_scaled` rounds half precision at random."""
    if isinstance(trainable, Adapter):
        trainable.add_scaled(point.direction, point.distance)
        return
    for number, tensor in enumerate(trainable.tensors.values()):
        tensor.add_(point.direction.of(number, tensor.shape, tensor.dtype), alpha=point.distance)


def _whole_plan(folder: Path, mode: str, blocks: Batch) -> JobPlan:
    return planned(folder, mode=mode, batch=len(blocks), tokens=blocks.inputs.shape[1]).plan


def load(folder: str) -> dict[str, object]:
    """Load a model, ready to run: the seconds that it takes."""
    started = time.perf_counter()
    load_model(Path(folder))
    return {"seconds": time.perf_counter() - started}


def steps(folder: str, count: int, **work: Any) -> dict[str, object]:
    """Run whole steps (see `prepare_step`)."""
    plan = planned(Path(folder), **work)
    # What the libraries take is measured here, as it is for the worker when a model is imported.
    libraries = memory_of()
    prediction = plan.prediction
    if (Path(folder) / "tokenizer.json").exists():  # read and dropped, as the worker does
        lean_tokenizer(open_model_folder(Path(folder)))
        give_back_free_memory()
    predicted = prediction.peak_bytes - prediction.library_bytes + libraries["RssAnon"] + libraries["RssFile"]
    step = prepare_step(folder, **work)
    seconds, loss = [], float("nan")
    for _ in range(count):
        started = time.perf_counter()
        loss = step()
        seconds.append(time.perf_counter() - started)
    return {
        "tokens": plan.plan.block_tokens,  # the plan may have shortened the texts
        "kept_layers": plan.plan.kept_layers,
        "predicted_bytes": predicted,
        "seconds": seconds,
        "loss": loss,
        "peak_rss_bytes": memory_of().get("VmHWM"),
    }
