"""A guided run, from blocks of text to a taught adapter: everything is chosen here, and nothing by hand.

What it takes: a look at the stream, an aim (or the adapter that an earlier run has taught), the text divided into what
is learned and what only decides when to stop, and the trunk's states, which are computed once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.aiming import Aimed, aim
from pocketllm.mezo.batches import Blocks, Buckets, fixed_batches
from pocketllm.mezo.carrying import load_carrying
from pocketllm.mezo.guide import Guide
from pocketllm.mezo.guided import GuidedPlan, Parts, State, train_guided
from pocketllm.mezo.kept_aside import divide, steps_between_checks
from pocketllm.mezo.loop import Row
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.snapshots import Snapshots
from pocketllm.mezo.stream import Stream, find_stream
from pocketllm.mezo.trunk import TrunkCache

#: The groups of maps that share a step length: the output head, maps that write into the stream, and those inside
#: feed-forward blocks.
HEAD, WRITERS, INNER = "head", "writers", "inner"
#: How far a number of B moves in a step at first: in logits, in parts of the stream, in parts of the map's output. For
#: batches of so many targets; with fewer, gradients are noisier and steps shorter by the root of it (arXiv 2205.10287).
LENGTHS, LENGTH_TARGETS = {HEAD: 5e-3, WRITERS: 2.5e-4, INNER: 1e-3}, 512
#: Probes are made on batches with so many targets in all, but on so many at most.
PROBE_TARGETS, MOST_PROBE_BATCHES = 512, 8
#: What a look takes, in forward passes: it goes through the output head there and back.
PASSES_A_LOOK = 2
#: Blocks that the aim is taken on: more of those with few targets, such as labelled texts with one each.
AIM_BLOCKS, MOST_AIM_BLOCKS, AIM_TARGETS = 16, 96, 256


@dataclass(frozen=True, kw_only=True)
class Guided:
    """What is settled before the first step."""

    stream: Stream
    adapter: Adapter
    first: int  #: the lowest layer that is adapted


def begin(
    model: LanguageModel,
    buckets: Buckets,
    *,
    rank: int,
    head_rank: int,
    seed: int,
    rows_at_once: int,
    on_pass: Callable[[int], None] = lambda _: None,
) -> Aimed:
    """Choose what is adapted, on the first blocks of the text. Raises UnsupportedModel where no guide is to be had."""
    return aim(
        model,
        find_stream(model.any_lane()),
        aimed_at(buckets),
        rank=rank,
        head_rank=head_rank,
        seed=seed,
        rows_at_once=rows_at_once,
        carrying=load_carrying(model.native.folder),
        on_pass=on_pass,
    )


def aimed_at(buckets: Buckets) -> Blocks:
    """What the aim is taken on: so many blocks of the kind there is most of that they have enough targets."""
    most = max(buckets, key=lambda bucket: bucket.tokens)
    targets = most.tokens / len(most)
    return most[slice(0, min(MOST_AIM_BLOCKS, max(AIM_BLOCKS, round(AIM_TARGETS / max(1.0, targets)))))]


def go_on(model: LanguageModel, adapter: Adapter) -> Guided:
    """With a fresh adapter, or with one that an earlier run has taught."""
    return Guided(stream=find_stream(model.any_lane()), adapter=adapter, first=lowest_layer(model, adapter))


def lowest_layer(model: LanguageModel, adapter: Adapter) -> int:
    """The lowest layer that the adapter changes; the last where it changes the head alone."""
    numbers = [number for path in adapter.a if (number := model.stack.number_of(path)) is not None]
    return min(numbers, default=model.stack.count - 1)


def train(
    model: LanguageModel,
    buckets: Buckets,
    guided: Guided,
    *,
    seed: int,
    steps: int,
    batch: int,
    measure_every: int,
    rows_at_once: int,
    folder: Path,
    cache_bytes: int,
    done: int,
    keep: Callable[[Row], None],
    measure: Callable[[int], None],
    remaining: Callable[[int], float],
    clock: Callable[[], float],
) -> State:
    """Teach the adapter in place. folder: for the run's state and the trunk's, of which so many bytes are kept."""
    adapter = guided.adapter
    model.use(adapter)
    guide = Guide(model, guided.stream, adapter, load_carrying(model.native.folder))
    parts = divide(buckets)
    check_every = steps_between_checks(*parts, batch=batch, points=PASSES_A_LOOK)
    learned, checked = (fixed_batches(some, size=batch, seed=seed) for some in parts)
    snapshots = Snapshots(folder)
    with TrunkCache(
        [*learned, *checked],
        layer=guided.first,
        entering=lambda blocks, layer: model.entering(blocks, layer, rows_at_once),
        width=guided.stream.width,
        dtype=model.walk.dtype,
        file=folder / "trunk.bin",
        most_bytes=cache_bytes,
    ) as trunk:
        targets = sum(blocks.tokens for blocks in learned) / len(learned)  # of a batch
        groups = _groups(model, guided)
        shorter = min(1.0, targets / LENGTH_TARGETS) ** 0.5
        plan = GuidedPlan(
            seed=seed,
            steps=steps,
            groups=groups,
            lengths={group: LENGTHS[group] * shorter for group in groups},
            probe_batches=min(MOST_PROBE_BATCHES, max(1, round(PROBE_TARGETS / targets)), len(learned)),
            measure_every=measure_every,
            check_every=check_every,
        )

        def check() -> float:
            return model.mean_loss((trunk.at(number) for number in range(len(learned), len(trunk))), rows_at_once)

        run = Parts(
            look=lambda blocks: guide.look(blocks, rows_at_once),
            losses=lambda points, blocks: model.losses_at(points, blocks, rows_at_once),
            check=check,
            batch=trunk.at,
            batches=len(learned),
            keeper=snapshots,
        )
        return train_guided(
            adapter,
            run,
            plan,
            done=done,
            keep=keep,
            measure=measure,
            remaining=remaining,
            clock=clock,
        )


def _groups(model: LanguageModel, guided: Guided) -> dict[str, tuple[str, ...]]:
    """The paths of the adapted maps of each group that there are any of."""
    groups: dict[str, list[str]] = {}
    for path in guided.adapter.a:
        group = HEAD if path == model.head_path else WRITERS if path in guided.stream.writers else INNER
        groups.setdefault(group, []).append(path)
    return {group: tuple(paths) for group, paths in groups.items()}
