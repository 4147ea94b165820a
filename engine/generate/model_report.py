"""What a model has learned, for people: which words it expects more, what it repeats, how it goes on differently.

The same few places in text are looked at with the base model and with the taught one, by forward passes alone.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch

from pocketllm.engine.data.batches import Batch, Batches
from pocketllm.engine.generate.sampling import greedily
from pocketllm.engine.streamed.loss import IGNORE_INDEX, accurate, columns_at_once
from pocketllm.engine.streamed.model import LanguageModel

#: Blocks, and tokens of them, that are looked at, at most, of held-out text and again of taught text: some seconds.
MAX_BLOCKS, MAX_TOKENS = 32, 2048
#: Tokens in a row that must come out as they were taught to count as repeated word for word, with as many before them.
VERBATIM_TOKENS = 8
#: Held-out texts that are gone on with, tokens of each that are given, and tokens that follow.
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 3, 12, 24
#: Fewer tokens of a text than this say nothing to go on with; of a prompt that has its completion, the last so many.
MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS = 3, 48
#: Tokens whose probability rose, that are told of: enough of them are whole words.
RISES = 200
#: The most bytes of logits over the whole vocabulary, and of the rows of the head for them, that exist at a time.
LOGIT_BYTES, CHUNK_BYTES = 6 * 2**20, 2 * 2**20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The places in text that are looked at."""

    held_out: Batches
    learned: Batches
    prompts: list[list[int]]  #: beginnings of held-out texts
    eos: int  #: stands between texts, and before a prompt
    ends: frozenset[int]  #: tokens that end a text

    @property
    def places(self) -> int:
        """How many places in the taught text can be repeated from."""
        return sum(int(_repeatable(blocks, self.eos).sum()) for blocks in self.learned)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What one model makes of a sample."""

    probabilities: torch.Tensor | None  #: (vocabulary,), mean over the positions of held-out text; None without such
    repeated: int  #: places from which it repeats the taught text
    answers: list[list[int]]  #: how it goes on with each prompt


@dataclass(frozen=True, kw_only=True)
class TokenShift:
    """How the probability of a token changed: means over the positions of held-out text."""

    token: int
    base: float
    personal: float


@dataclass(frozen=True, kw_only=True)
class Continuation:
    """What the base model and the taught one make of the beginning of a held-out text: token ids."""

    prompt: list[int]
    base: list[int]
    personal: list[int]


@dataclass(frozen=True, kw_only=True)
class VerbatimRecall:
    """From how much of the taught text a model goes on word for word as it was taught."""

    places: int  #: that were looked at
    base: float  #: part of them, from 0 to 1
    personal: float


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """What was found. Where text has nothing to tell there is nothing here."""

    shifts: list[TokenShift]  #: the most telling first
    continuations: list[Continuation]
    verbatim_recall: VerbatimRecall | None


def sample(learned: Batches, held_out: Batches, *, eos: int, ends: frozenset[int], is_mlm: bool) -> Sample:
    """Choose what to look at: blocks and beginnings spread evenly over the text.

    Of labels there is nothing to tell but the loss. A masked model goes on with nothing, so it repeats nothing.
    """
    told = tuple(blocks for blocks in held_out if blocks.label_ids is None)
    taught = () if is_mlm else tuple(blocks for blocks in learned if blocks.label_ids is None)
    return Sample(
        held_out=_some(told),
        learned=_some(taught),
        prompts=[] if is_mlm else _prompts(told, eos),
        eos=eos,
        ends=ends,
    )


@torch.inference_mode()
def observe(model: LanguageModel, chosen: Sample, micro_batch: int, *, logit_bytes: int = LOGIT_BYTES) -> Snapshot:
    """Look at the sample with the model as it is set.

    micro_batch: blocks that pass through the layers together; logit_bytes: the most that logits may take.
    """
    sums = [_probabilities(model, some, logit_bytes) for some in _parts(chosen.held_out, micro_batch)]
    repeated = [_repeated(model, some, logit_bytes, chosen.eos) for some in _parts(chosen.learned, micro_batch)]
    positions = sum(blocks.tokens for blocks in chosen.held_out)
    return Snapshot(
        probabilities=torch.stack(sums).sum(0) / positions if positions else None,
        repeated=sum(repeated),
        answers=[
            greedily(model, [chosen.eos, *prompt], ends=chosen.ends, most_tokens=ANSWER_TOKENS)
            for prompt in chosen.prompts
        ],
    )


def compare(chosen: Sample, base: Snapshot, personal: Snapshot) -> ModelReport:
    """What the taught model's observation of a sample says beside the base's."""
    places = chosen.places
    return ModelReport(
        shifts=_rises(base.probabilities, personal.probabilities),
        continuations=[
            Continuation(prompt=prompt, base=before, personal=now)
            for prompt, before, now in zip(chosen.prompts, base.answers, personal.answers, strict=True)
        ],
        verbatim_recall=VerbatimRecall(places=places, base=base.repeated / places, personal=personal.repeated / places)
        if places
        else None,
    )


def _rises(base: torch.Tensor | None, personal: torch.Tensor | None) -> list[TokenShift]:
    """The tokens that rose, by p log(p / p before): what both is said more often and was not expected so."""
    if base is None or personal is None:
        return []
    keyness = personal * (personal.clamp(min=1e-12) / base.clamp(min=1e-12)).log()
    order = keyness.topk(min(RISES, len(keyness))).indices.tolist()
    shifts = [TokenShift(token=token, base=float(base[token]), personal=float(personal[token])) for token in order]
    return [rise for rise in shifts if rise.personal > rise.base]


def _some(buckets: Batches) -> Batches:
    """A few blocks, spread evenly over all of them; of very long ones the beginnings."""
    buckets = tuple(_beginnings(blocks) for blocks in buckets)
    count, tokens = sum(len(blocks) for blocks in buckets), sum(blocks.inputs.numel() for blocks in buckets)
    wanted = min(count, MAX_BLOCKS, max(1, MAX_TOKENS * count // max(1, tokens)))
    places = _spread(count, wanted)
    chosen, first = [], 0
    for blocks in buckets:
        here = [place - first for place in places if first <= place < first + len(blocks)]
        if here:
            chosen.append(blocks[torch.tensor(here)])
        first += len(blocks)
    return tuple(chosen)


def _beginnings(blocks: Batch) -> Batch:
    if blocks.inputs.shape[1] <= MAX_TOKENS:
        return blocks
    lengths = None if blocks.lengths is None else blocks.lengths.clamp(max=MAX_TOKENS)
    inputs, targets = blocks.inputs[:, :MAX_TOKENS], blocks.targets[:, :MAX_TOKENS]
    return replace(blocks, inputs=inputs, targets=targets, lengths=lengths)


def _spread(count: int, wanted: int) -> list[int]:
    """So many of the numbers below `count`, evenly spread."""
    return [number * count // wanted for number in range(wanted)]


def _prompts(buckets: Batches, eos: int) -> list[list[int]]:
    """What is gone on with: the long ones first of all if there are any, spread evenly over the text."""
    found = [prompt for blocks in buckets for prompt in _beginnings_of_texts(blocks, eos)]
    long = [prompt for prompt in found if len(prompt) >= PROMPT_TOKENS]
    found = long if len(long) >= PROMPTS else found
    return [found[place] for place in _spread(len(found), min(PROMPTS, len(found)))]


def _beginnings_of_texts(blocks: Batch, eos: int) -> Iterator[list[int]]:
    """Of a completion its prompt; of plain text, in packed rows, what follows a separator, with more text behind."""
    for number, (inputs, targets) in enumerate(zip(blocks.inputs.tolist(), blocks.targets.tolist(), strict=True)):
        if targets[0] == IGNORE_INDEX:
            first = next((place for place, target in enumerate(targets) if target != IGNORE_INDEX), -1)
            prompt = [token for token in inputs[: first + 1] if token != eos][-MAX_PROMPT_TOKENS:]
            if prompt:
                yield prompt
            continue
        starts = [place + 1 for place, token in enumerate(inputs) if token == eos]
        if number == 0 and inputs[0] != eos:
            starts.insert(0, 0)
        for start, following in pairwise([*starts, len(inputs) + 1]):
            prompt = inputs[start : start + min(PROMPT_TOKENS, (following - 1 - start) // 2)]
            if len(prompt) >= MIN_PROMPT_TOKENS:
                yield prompt


def _repeatable(blocks: Batch, eos: int) -> torch.Tensor:
    """(blocks, places): where the next tokens are all of one text, with as many before them in the block."""
    said = (blocks.targets != IGNORE_INDEX) & (blocks.targets != eos)
    return _in_a_row(said)


def _in_a_row(marks: torch.Tensor) -> torch.Tensor:
    """(blocks, tokens) -> (blocks, places): where a mark and those behind it are set, from the first place counted."""
    if marks.shape[1] < 2 * VERBATIM_TOKENS - 1:
        return marks[:, :0]
    return marks[:, VERBATIM_TOKENS - 1 :].unfold(1, VERBATIM_TOKENS, 1).all(-1)


def _parts(buckets: Sequence[Batch], micro_batch: int) -> Iterator[Batch]:
    return (part for blocks in buckets for part in blocks.split(max(1, micro_batch)))


def _probabilities(model: LanguageModel, blocks: Batch, logit_bytes: int) -> torch.Tensor:
    """(vocabulary,): each token's probability, summed over all places where something is predicted."""
    total = torch.zeros(model.head.at(None).vocabulary)
    for logits in _logits(model, blocks, blocks.targets != IGNORE_INDEX, logit_bytes):
        logits.sub_(logits.amax(1, keepdim=True)).exp_()
        total += logits.sum(1).reciprocal() @ logits
    return total


def _repeated(model: LanguageModel, blocks: Batch, logit_bytes: int, eos: int) -> int:
    """From how many places the likeliest tokens in a row are the taught ones.

    Given the taught text before each. Where all of them are hit, that is what the model says left to itself.
    """
    wanted = blocks.targets != IGNORE_INDEX
    likeliest = [logits.argmax(1) for logits in _logits(model, blocks, wanted, logit_bytes)]
    hits = torch.zeros_like(wanted)
    if likeliest:
        hits[wanted] = torch.cat(likeliest) == blocks.targets[wanted]
    return int((_in_a_row(hits) & _repeatable(blocks, eos)).sum())


def _logits(model: LanguageModel, blocks: Batch, wanted: torch.Tensor, logit_bytes: int) -> Iterator[torch.Tensor]:
    """The logits over the whole vocabulary of the wanted places, some at a time: valid until the next are asked for."""
    head = model.head.at(None)
    hidden = head.extended(model.hidden(blocks)[wanted])
    dtype = accurate(hidden)
    size = max(1, logit_bytes // (dtype.itemsize * head.vocabulary))
    space = torch.empty(min(size, len(hidden)), head.vocabulary, dtype=dtype)
    for first in range(0, len(hidden), size):
        some = hidden[first : first + size]
        logits = space[: len(some)]
        columns = columns_at_once(some, head, CHUNK_BYTES)
        for start in range(0, head.vocabulary, columns):
            stop = min(start + columns, head.vocabulary)
            logits[:, start:stop] = some @ head.rows(start, stop).t()
        if head.bias is not None:
            logits += head.bias
        yield logits
    if model.context.release:
        model.head.weights.weight.release()
