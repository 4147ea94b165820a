"""Splits a job's texts into training and held-out blocks, new text apart from old."""

from collections.abc import Callable, Sequence
from contextlib import suppress

from pocketllm.engine.data.batches import Batch, Batches
from pocketllm.engine.data.examples import Example
from pocketllm.engine.errors import BadRequest
from pocketllm.storage.repositories.texts import HELD_OUT_ONE_IN, MAX_HELD_OUT_SHARE, MIN_HELD_OUT
from pocketllm.storage.tables import BASE, Job, Text

#: Held-out text of an earlier job is evaluated on its own from this number of words, and of texts, on.
PART_WORDS, PART_TEXTS = 200, 4
#: A single text is evaluated by this many stretches at most.
STRETCHES = 10
#: A first job of exact gradients gains so much that these many held-out texts show it, in minutes on a slow device.
FIRST_HELD_OUT = 12
#: Encodes texts as blocks. apart: no block holds more than one plain text.
Encode = Callable[..., Batches]
#: Held-out blocks, and the text that each is of: the id of the first with this content, or the number of a stretch of
#: the only text.
HeldOut = tuple[Batches, list[str]]


def example_of(text: Text, *, apart: bool = False) -> Example:
    """A stored text as a training example. apart: it shares no block with another text."""
    if apart and text.messages is None and text.completion is None:
        return Example("", text.text)
    return Example(text.text, text.completion, text.messages)


def split(texts: Sequence[Text], encoded: Encode) -> tuple[Batches, HeldOut]:
    """Training blocks and held-out ones; where one of them would be missing, the last blocks of all text are held out:
    a tenth, or more of little text. Raises BadRequest when there is too little text for both.
    """
    training = [text for text in texts if not text.held_out]
    measured = apart([text for text in texts if text.held_out], encoded)
    if training and measured[0]:
        return encoded(training), measured
    buckets = encoded(texts)
    count = sum(len(bucket) for bucket in buckets)
    if count < 2:
        raise BadRequest(
            f"{sum(bucket.tokens for bucket in buckets)} tokens are too few for training and evaluation; "
            f"more than {buckets[0].inputs.shape[1]} are needed. Add some text."
        )
    kept = max(1, count // HELD_OUT_ONE_IN, min(MIN_HELD_OUT, int(MAX_HELD_OUT_SHARE * count)))
    last = blocks_between(buckets, count - kept, count)
    return blocks_between(buckets, 0, count - kept), (last, stretches(kept))


def apart(texts: Sequence[Text], encoded: Encode) -> HeldOut:
    """Blocks that each hold one text, or a part of one. A single long text is evaluated by its stretches."""
    by_kind: dict[object, list[tuple[Batch, str]]] = {}
    ids_by_content: dict[str, str] = {}  # the same words from two sources are one observation
    for text in texts:
        identity = ids_by_content.setdefault(str(example_of(text)), text.id)
        with suppress(BadRequest):  # it has no tokens
            for blocks in encoded([text], apart=True):
                by_kind.setdefault(blocks.kind, []).append((blocks, identity))
    ids = [identity for some in by_kind.values() for blocks, identity in some for _ in range(len(blocks))]
    buckets = tuple(first.concatenated(*(more for more, _ in rest)) for (first, _), *rest in by_kind.values())
    return buckets, stretches(len(ids)) if len(texts) == 1 and len(ids) >= STRETCHES else ids


def stretches(count: int) -> list[str]:
    """Group blocks that follow each other: neighbours are alike, so a stretch of them is one observation."""
    return [str(place * min(count, STRETCHES) // count) for place in range(count)]


def for_first_verdict(job: Job, method: str | None, texts: Sequence[Text]) -> list[Text]:
    """The job's texts; while nothing is served, without the held-out ones that its first verdict need not wait for."""
    is_first = job.compared_with == BASE and job.link == 1 and job.start_from is None and job.tuning is None
    if method != "exact" or not is_first:
        return list(texts)
    first = sorted(text.id for text in texts if text.held_out)[:FIRST_HELD_OUT]
    return [text for text in texts if not text.held_out or text.id in first]


def with_replay(texts: Sequence[Text], encoded: Encode) -> tuple[Batches, HeldOut, tuple[int, ...]]:
    """Training and held-out blocks, new text before old; and the number of held-out blocks of each part of old text.

    Text that an earlier job has learned is old; if all text is old, all of it counts as new. Old text is evaluated too,
    to detect forgetting, and job by job, so that a gain on one job's text does not hide a loss on another's.
    """
    old = [text for text in texts if text.learned_in is not None]
    new = [text for text in texts if text.learned_in is None]
    if not old or not new:
        return *split(texts, encoded), ()
    training, measured = split(new, encoded)
    repeated, parts = _replayed(old, encoded)
    blocks = sum((blocks for blocks, _ in parts), measured[0])
    ids = [identity for _, part in (measured, *parts) for identity in part]
    return training + repeated, (blocks, ids), tuple(len(part) for _, part in parts)


def _replayed(old: Sequence[Text], encoded: Encode) -> tuple[Batches, list[HeldOut]]:
    """Training blocks and parts of held-out blocks of old text. Of a single text the last blocks have been held out."""
    kept = [text for text in old if text.held_out]
    if not kept and len(old) == 1:
        with suppress(BadRequest):  # a single block
            training, measured = split(old, encoded)
            return training, [measured]
    repeated = [text for text in old if not text.held_out]
    parts = [apart(part, encoded) for part in _by_job(kept)]
    return encoded(repeated) if repeated else (), [part for part in parts if part[0]]


def _by_job(texts: Sequence[Text]) -> list[list[Text]]:
    """Group the texts by the job that has learned them; jobs with little text share a group."""
    by_job: dict[str | None, list[Text]] = {}
    for text in texts:
        by_job.setdefault(text.learned_in, []).append(text)
    enough = [part for part in by_job.values() if len(part) >= PART_TEXTS]
    large = [part for part in enough if sum(text.words for text in part) >= PART_WORDS]
    rest = [text for part in by_job.values() if part not in large for text in part]
    return [*large, rest] if rest else large


def blocks_between(buckets: Batches, start: int, stop: int) -> Batches:
    """The blocks from number `start` up to `stop`, counted over all buckets."""
    found, first = [], 0
    for bucket in buckets:
        found.append(bucket[slice(max(0, start - first), max(0, stop - first))])
        first += len(bucket)
    return tuple(blocks for blocks in found if len(blocks))
