"""Splits a job's texts into training and held-out blocks, new text apart from old."""

from collections.abc import Callable, Sequence

from pocketllm.engine.data.batches import Batch, Batches
from pocketllm.engine.data.examples import Chat, Completion, Example, Labelled, Plain
from pocketllm.engine.data.label_templates import Template, question
from pocketllm.engine.errors import BadRequest
from pocketllm.storage.repositories.texts import HELD_OUT_ONE_IN
from pocketllm.storage.tables import Text

#: Held-out text of an earlier job is evaluated on its own from this number of words on, some four blocks.
PART_WORDS = 200


def example_of(text: Text, template: Template) -> Example:
    """A stored text as a training example. template: of labels; one that it has no word for is a completion."""
    if text.messages is not None:
        return Chat(messages=text.messages)
    if text.completion is not None:
        return Completion(prompt=text.text, completion=text.completion)
    if text.label is None:
        return Plain(text=text.text)
    if text.label in template.words:
        return Labelled(text=text.text, label=text.label)
    prompt, completion, _ = question(text.text, text.label, template)
    return Completion(prompt=prompt, completion=completion)


def split(texts: Sequence[Text], encoded: Callable[[Sequence[Text]], Batches]) -> tuple[Batches, Batches]:
    """Training blocks and held-out blocks; one text in ten is held out, by its id.

    If the ids hold out no text or all of them, the last tenth of the blocks is held out. Raises BadRequest when there
    is too little text for both.
    """
    training = [text for text in texts if not text.held_out]
    held_out = [text for text in texts if text.held_out]
    if training and held_out:
        return encoded(training), encoded(held_out)
    buckets = encoded(texts)
    count = sum(len(bucket) for bucket in buckets)
    if count < 2:
        raise BadRequest(
            f"{sum(bucket.tokens for bucket in buckets)} tokens are too few to train on and to evaluate with; "
            f"more than {buckets[0].inputs.shape[1]} are needed. Add some text."
        )
    kept = max(1, count // HELD_OUT_ONE_IN)
    return first_blocks(buckets, count - kept), last_blocks(buckets, kept)


def with_replay(
    texts: Sequence[Text], encoded: Callable[[Sequence[Text]], Batches]
) -> tuple[Batches, Batches, tuple[int, ...]]:
    """Training and held-out blocks, new text before old; and the number of held-out blocks of each part of old text.

    Text that an earlier job has learned is old; if all text is old, all of it counts as new. Old text is evaluated too,
    to detect forgetting, and job by job, so that a gain on one job's text does not hide a loss on another's.
    """
    old = [text for text in texts if text.learned_in is not None]
    new = [text for text in texts if text.learned_in is None]
    if not old or not new:
        return *split(texts, encoded), ()
    training, held_out = split(new, encoded)
    repeated, parts = _replayed(old, encoded)
    counts = tuple(sum(len(bucket) for bucket in part) for part in parts)
    return training + repeated, sum(parts, held_out), counts


def _replayed(old: Sequence[Text], encoded: Callable[[Sequence[Text]], Batches]) -> tuple[Batches, list[Batches]]:
    """Training blocks and parts of held-out blocks of old text: as by `split`, but held-out text stays held out, and a
    single block is for training.
    """
    kept = [text for text in old if text.held_out]
    if kept:
        repeated = [text for text in old if not text.held_out]
        return encoded(repeated) if repeated else (), [encoded(part) for part in _by_job(kept)]
    try:
        repeated_blocks, measured = split(old, encoded)
    except BadRequest:
        return encoded(old), []
    return repeated_blocks, [measured]


def _by_job(texts: Sequence[Text]) -> list[list[Text]]:
    """Group the texts by the job that has learned them; jobs with little text share a group."""
    by_job: dict[str | None, list[Text]] = {}
    for text in texts:
        by_job.setdefault(text.learned_in, []).append(text)
    large = [part for part in by_job.values() if sum(text.words for text in part) >= PART_WORDS]
    rest = [text for part in by_job.values() if part not in large for text in part]
    return [*large, rest] if rest else large


def first_blocks(buckets: Batches, count: int) -> Batches:
    """The first `count` blocks."""
    found = []
    for bucket in buckets:
        if count > 0:
            found.append(bucket[slice(0, count)])
            count -= len(bucket)
    return tuple(found)


def last_blocks(buckets: Batches, count: int) -> Batches:
    """The last `count` blocks."""
    found: list[Batch] = []
    for bucket in reversed(buckets):
        if count > 0:
            found.insert(0, bucket[slice(max(0, len(bucket) - count), None)])
            count -= len(bucket)
    return tuple(found)
