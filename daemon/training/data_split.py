"""A job's texts, divided into what is learned from and what is measured with, new text apart from old."""

from collections.abc import Callable, Sequence

from pocketllm.engine.data.batches import Batch, Batches
from pocketllm.engine.data.examples import Chat, Completion, Example, Labelled, Plain
from pocketllm.engine.errors import BadRequest
from pocketllm.storage.repositories.texts import HELD_OUT_ONE_IN
from pocketllm.storage.tables import Text

#: A job's held-out text is looked at by itself when it has so many words: some four blocks.
PART_WORDS = 200


def example_of(text: Text) -> Example:
    """A stored text as the learner takes it."""
    if text.messages is not None:
        return Chat(messages=text.messages)
    if text.completion is not None:
        return Completion(prompt=text.text, completion=text.completion)
    return Plain(text=text.text) if text.label is None else Labelled(text=text.text, label=text.label)


def divide(texts: Sequence[Text], encoded: Callable[[Sequence[Text]], Batches]) -> tuple[Batches, Batches]:
    """The blocks to learn from, and those to measure with: of one text in ten, by the texts' ids.

    Where the ids picked none or all, the last tenth of the blocks stands in. Raises BadRequest when there is
    too little text for both.
    """
    training = [text for text in texts if not text.held_out]
    held_out = [text for text in texts if text.held_out]
    if training and held_out:
        return encoded(training), encoded(held_out)
    buckets = encoded(texts)
    count = sum(len(bucket) for bucket in buckets)
    if count < 2:
        raise BadRequest(
            f"{sum(bucket.tokens for bucket in buckets)} tokens are too few to learn from and to measure with; "
            f"more than {buckets[0].inputs.shape[1]} are needed. Add some text."
        )
    kept = max(1, count // HELD_OUT_ONE_IN)
    return first_blocks(buckets, count - kept), last_blocks(buckets, kept)


def with_replay(
    texts: Sequence[Text], encoded: Callable[[Sequence[Text]], Batches]
) -> tuple[Batches, Batches, tuple[int, ...]]:
    """What to learn from and what to measure with, new text before old; and how many blocks of the latter are of each
    part of the old text, the last parts there.

    Text that an earlier job has learned is old; where no other is there, all of it is taken for new. Old text is
    measured with, too, or nobody would notice that it is forgotten; and job by job, or what gets better of one job's
    text would hide what is lost of another's.
    """
    old = [text for text in texts if text.learned_in is not None]
    new = [text for text in texts if text.learned_in is None]
    if not old or not new:
        return *divide(texts, encoded), ()
    training, held_out = divide(new, encoded)
    repeated, parts = _replayed(old, encoded)
    counts = tuple(sum(len(bucket) for bucket in part) for part in parts)
    return training + repeated, sum(parts, held_out), counts


def _replayed(old: Sequence[Text], encoded: Callable[[Sequence[Text]], Batches]) -> tuple[Batches, list[Batches]]:
    """What is learned again, and the parts that are measured with: as `divide` has it, but no held-out text is learned
    from, and a single block is learned from.
    """
    kept = [text for text in old if text.held_out]
    if kept:
        repeated = [text for text in old if not text.held_out]
        return encoded(repeated) if repeated else (), [encoded(part) for part in _by_job(kept)]
    try:
        repeated_blocks, measured = divide(old, encoded)
    except BadRequest:
        return encoded(old), []
    return repeated_blocks, [measured]


def _by_job(texts: Sequence[Text]) -> list[list[Text]]:
    """The texts apart by the job that has learned them; those of jobs with little text together."""
    by_job: dict[str | None, list[Text]] = {}
    for text in texts:
        by_job.setdefault(text.learned_in, []).append(text)
    large = [part for part in by_job.values() if sum(text.words for text in part) >= PART_WORDS]
    rest = [text for part in by_job.values() if part not in large for text in part]
    return [*large, rest] if rest else large


def first_blocks(buckets: Batches, count: int) -> Batches:
    """The first `count` blocks."""
    chosen = []
    for bucket in buckets:
        if count > 0:
            chosen.append(bucket[slice(0, count)])
            count -= len(bucket)
    return tuple(chosen)


def last_blocks(buckets: Batches, count: int) -> Batches:
    """The last `count` blocks."""
    chosen: list[Batch] = []
    for bucket in reversed(buckets):
        if count > 0:
            chosen.insert(0, bucket[slice(max(0, len(bucket) - count), None)])
            count -= len(bucket)
    return tuple(chosen)
