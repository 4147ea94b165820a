"""Compares the trained model with the base model: token probabilities, verbatim recall, and continuations.

Both are evaluated on the same sample of blocks, by forward passes.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, takewhile

import torch

from pocketllm.engine.data.batches import IGNORE_INDEX, Batch, Batches
from pocketllm.engine.generate.sampling import greedy
from pocketllm.engine.streamed.model import LanguageModel

#: Size of the samples of held-out and of training text, at most: some seconds' work.
MAX_BLOCKS, MAX_TOKENS = 16, 1024
#: Verbatim recall: this many correct tokens in a row, after as many tokens of context.
VERBATIM_TOKENS = 8
#: Held-out texts to continue, tokens of each prompt, and tokens of each continuation.
PROMPTS, PROMPT_TOKENS, ANSWER_TOKENS = 3, 12, 24
#: The shortest prompt from a text; and the longest one from a completion's prompt, of which the end is used.
MIN_PROMPT_TOKENS, MAX_PROMPT_TOKENS = 3, 48
#: The most token shifts in a report: enough of them are whole words.
RISES = 200
#: Bytes of logits over the whole vocabulary at a time, at most; to make them takes as much again.
LOGIT_BYTES = 8 * 2**20


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The text to evaluate both models on."""

    held_out: Batches
    learned: Batches
    prompts: list[list[int]]  #: of held-out text, as token ids
    eos: int  #: the token between texts
    opening: tuple[int, ...]  #: what is before a prompt
    stop_ids: frozenset[int]  #: tokens that end a text

    @property
    def places(self) -> int:
        """The number of positions in the training text at which recall is tested."""
        return sum(int(_repeatable(blocks, self.eos).sum()) for blocks in self.learned)


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """One model's results on a sample."""

    probabilities: torch.Tensor | None  #: (vocabulary,), mean over the positions of held-out text; None without any
    recalled: int  #: positions of the training text from which it recalls the next tokens
    answers: list[list[int]]  #: its continuation of each prompt


@dataclass(frozen=True, kw_only=True)
class ModelReport:
    """The comparison of both models."""

    #: Tokens with their probabilities by the base and by the trained model, the most significant change first.
    shifts: list[tuple[int, float, float]]
    #: Prompts with both models' continuations, as token ids.
    continuations: list[tuple[list[int], list[int], list[int]]]
    #: The number of positions that were tested ("places"), and the part of them that either model recalls ("base" and
    #: "personal"); None without any.
    verbatim_recall: dict[str, float] | None


def sample(
    learned: Batches, held_out: Batches, *, eos: int, start: tuple[int, ...], stop_ids: frozenset[int], is_mlm: bool
) -> Sample:
    """Choose blocks and prompts, spread evenly over the text. start: of each block; see `start_ids`.

    A masked language model has no prompts and no recall.
    """
    return Sample(
        held_out=_some(held_out),
        learned=_some(() if is_mlm else learned),
        prompts=[] if is_mlm else _prompts(held_out, {eos, *start}),
        eos=eos,
        opening=start or (eos,),
        stop_ids=stop_ids,
    )


@torch.inference_mode()
def observe(model: LanguageModel, selection: Sample, micro_batch: int, *, logit_bytes: int = LOGIT_BYTES) -> Snapshot:
    """Evaluate the model, with its current parameters, on a sample.

    micro_batch: blocks that pass through the layers together; logit_bytes: size limit of the logits.
    """
    sums = [_probabilities(model, some, logit_bytes) for some in _parts(selection.held_out, micro_batch)]
    recalled = [_recalled(model, some, logit_bytes, selection.eos) for some in _parts(selection.learned, micro_batch)]
    positions = sum(blocks.tokens for blocks in selection.held_out)
    return Snapshot(
        probabilities=torch.stack(sums).sum(0) / positions if positions else None,
        recalled=sum(recalled),
        answers=[
            greedy(model, [*selection.opening, *prompt], stop_ids=selection.stop_ids, max_tokens=ANSWER_TOKENS)
            for prompt in selection.prompts
        ],
    )


def compare(selection: Sample, base: Snapshot, personal: Snapshot) -> ModelReport:
    """Compare both models' results on a sample."""
    places = selection.places
    recall = {"places": places, "base": base.recalled / max(1, places), "personal": personal.recalled / max(1, places)}
    return ModelReport(
        shifts=_shifts(base.probabilities, personal.probabilities),
        continuations=list(zip(selection.prompts, base.answers, personal.answers, strict=True)),
        verbatim_recall=recall if places else None,
    )


def _shifts(base: torch.Tensor | None, personal: torch.Tensor | None) -> list[tuple[int, float, float]]:
    """The tokens whose probability rose, by p log(p / p before), which is high for frequent and surprising ones."""
    if base is None or personal is None:
        return []
    keyness = personal * (personal.clamp(min=1e-12) / base.clamp(min=1e-12)).log()
    order = keyness.topk(min(RISES, len(keyness))).indices.tolist()
    return [(token, float(base[token]), float(personal[token])) for token in order if personal[token] > base[token]]


def _some(buckets: Batches) -> Batches:
    """A few blocks, spread evenly over all of them, cut to MAX_TOKENS."""
    buckets = tuple(_beginnings(blocks) for blocks in buckets)
    count, tokens = sum(len(blocks) for blocks in buckets), sum(blocks.inputs.numel() for blocks in buckets)
    places = _spread(count, min(count, MAX_BLOCKS, max(1, MAX_TOKENS * count // max(1, tokens))))
    found, first = [], 0
    for blocks in buckets:
        here = [place - first for place in places if first <= place < first + len(blocks)]
        if here:
            found.append(blocks[torch.tensor(here)])
        first += len(blocks)
    return tuple(found)


def _beginnings(blocks: Batch) -> Batch:
    if blocks.inputs.shape[1] <= MAX_TOKENS:
        return blocks
    lengths = None if blocks.lengths is None else blocks.lengths.clamp(max=MAX_TOKENS)
    inputs, targets = blocks.inputs[:, :MAX_TOKENS], blocks.targets[:, :MAX_TOKENS]
    return replace(blocks, inputs=inputs, targets=targets, lengths=lengths)


def _spread(count: int, size: int) -> list[int]:
    """`size` of the numbers below `count`, evenly spread."""
    return [number * count // size for number in range(size)]


def _prompts(buckets: Batches, between: set[int]) -> list[list[int]]:
    """Completions' prompts, and the first halves of plain texts; spread evenly, and long ones if there are enough."""
    found = []
    for blocks in buckets:
        for inputs, targets in zip(blocks.inputs.tolist(), blocks.targets.tolist(), strict=True):
            given = len(list(takewhile(lambda target: target == IGNORE_INDEX, targets)))
            if given:
                found.append([token for token in inputs[: given + 1] if token not in between][-MAX_PROMPT_TOKENS:])
            else:
                texts = [list(some) for is_between, some in groupby(inputs, between.__contains__) if not is_between]
                halves = (text[: len(text) // 2] for text in texts)
                found += [half[:PROMPT_TOKENS] for half in halves if len(half) >= MIN_PROMPT_TOKENS]
    long = [prompt for prompt in found if len(prompt) >= PROMPT_TOKENS]
    found = long if len(long) >= PROMPTS else [prompt for prompt in found if prompt]
    return [found[place] for place in _spread(len(found), min(PROMPTS, len(found)))]


def _repeatable(blocks: Batch, eos: int) -> torch.Tensor:
    """(blocks, positions): whether the next VERBATIM_TOKENS targets are all of one text."""
    return _in_a_row((blocks.targets != IGNORE_INDEX) & (blocks.targets != eos))


def _in_a_row(marks: torch.Tensor) -> torch.Tensor:
    """(blocks, tokens) -> (blocks, positions): whether VERBATIM_TOKENS marks in a row are set, with as many before."""
    if marks.shape[1] < 2 * VERBATIM_TOKENS - 1:
        return marks[:, :0]
    return marks[:, VERBATIM_TOKENS - 1 :].unfold(1, VERBATIM_TOKENS, 1).all(-1)


def _parts(buckets: Sequence[Batch], micro_batch: int) -> Iterator[Batch]:
    return (part for blocks in buckets for part in blocks.split(max(1, micro_batch)))


def _probabilities(model: LanguageModel, blocks: Batch, logit_bytes: int) -> torch.Tensor:
    """(vocabulary,): each token's probability, summed over all positions with a target."""
    total = torch.zeros(model.head.at(None).vocabulary)
    for logits in _logits(model, blocks, blocks.targets != IGNORE_INDEX, logit_bytes):
        logits.sub_(logits.amax(1, keepdim=True)).exp_()
        total += logits.sum(1).reciprocal() @ logits
    return total


def _recalled(model: LanguageModel, blocks: Batch, logit_bytes: int, eos: int) -> int:
    """The number of positions from which the next VERBATIM_TOKENS targets are each the likeliest token.

    Then they are the model's greedy continuation of the text before.
    """
    positions = blocks.targets != IGNORE_INDEX
    likeliest = [logits.argmax(1) for logits in _logits(model, blocks, positions, logit_bytes)]
    hits = torch.zeros_like(positions)
    if likeliest:
        hits[positions] = torch.cat(likeliest) == blocks.targets[positions]
    return int((_in_a_row(hits) & _repeatable(blocks, eos)).sum())


def _logits(model: LanguageModel, blocks: Batch, positions: torch.Tensor, logit_bytes: int) -> Iterator[torch.Tensor]:
    """Yield the logits at these positions, some of them at a time."""
    hidden = model.hidden(blocks)[positions]
    size = max(1, logit_bytes // (torch.float32.itemsize * model.head.at(None).vocabulary))
    for first in range(0, len(hidden), size):
        yield model.logits(hidden[first : first + size])
    if model.context.release:
        model.head.weight.release()
