"""Tokenizes examples into batches: plain text, prompts with completions, and chats."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pocketllm.engine.data.batches import IGNORE_INDEX, NO_TEXT, Batch, Batches, Ids, pack
from pocketllm.engine.data.chats import Messages, turns
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.noise import philox

if TYPE_CHECKING:
    from pocketllm.engine.formats.tokenizer import Tokenizer

T = TypeVar("T")

#: Rows of completions are padded to a multiple of this length.
WIDTH_STEP = 16
#: The part of plain text that is masked for a masked language model (as in RoBERTa, arXiv 1907.11692).
MASKED_SHARE = 0.15

#: The most texts, and about the most characters, to tokenize at once: enough for its threads, while the tokenizer takes
#: some 200 bytes a token.
_TEXTS_AT_ONCE, _CHARACTERS_AT_ONCE = 64, 2**18
#: The generator's stream for the masks; batches.py and the noise use others.
_MASK_STREAM = 2**62 + 2**61


class Example(NamedTuple):
    """A plain text, of which every token is a target; a prompt with its completion; or a chat."""

    text: str
    completion: str | None = None  #: its tokens alone are targets; the text is the prompt
    messages: Messages | None = None  #: a chat, in place of the text; the assistant's messages are targets


def encode(
    examples: Sequence[Example],
    tokenizer: "Tokenizer",
    *,
    length: int,
    eos: int,
    start: tuple[int, ...] = (),
    is_mlm: bool = False,
    seed: int = 0,
) -> Batches:
    """The examples as blocks of at most `length` positions, for batch_at; each bucket keeps the given order.

    Each block of a causal model begins with `start`; see `start_ids`.

    Plain text is packed into one bucket of blocks of `length`, of which only the last is short. Other examples are
    bucketed by length, rounded up to a multiple of WIDTH_STEP. Examples without tokens are dropped; but an empty
    completion means that the text ends. `seed` decides which tokens are masked for a masked language model.

    Raises BadRequest when no example has tokens, or when the model does not fit the examples.
    """
    plain = [one.text for one in examples if one.completion is None and one.messages is None]
    pairs = [(one.text, one.completion) for one in examples if one.completion is not None]
    chats = [one.messages for one in examples if one.messages is not None]
    if is_mlm and (pairs or chats):
        raise BadRequest(
            "This is a masked language model, which cannot learn completions or chats. Use plain text, or a causal "
            "model."
        )
    special = None
    if is_mlm:
        assert isinstance(tokenizer, PreTrainedTokenizerBase), "the other one has no mask"
        special = SpecialTokens.of(tokenizer, length)
    buckets = [
        *_plain(_tokenize(tokenizer, plain), special, length=length, eos=eos, start=start, seed=seed),
        *_continuations(pairs, chats, tokenizer, length=length, eos=eos, start=start),
    ]
    if not buckets:
        raise BadRequest(NO_TEXT)
    return tuple(buckets)


@dataclass(frozen=True, kw_only=True)
class SpecialTokens:
    """The special tokens of a masked language model: each row begins with `start` and ends with `end`."""

    start: int
    end: int
    pad: int
    mask: int
    mask_text: str
    all: list[int]  #: also those without a meaning here

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, length: int) -> "SpecialTokens":
        """Those of a tokenizer. length: of a row. Raises BadRequest when it has none, or a row no room for them."""
        if length < 3:
            raise BadRequest(
                f"Blocks of {length} tokens have no room for text beside a start and an end token. Use longer ones."
            )
        start, end = tokenizer.cls_token_id, tokenizer.sep_token_id
        ids = {
            "start": tokenizer.bos_token_id if start is None else start,
            "end": tokenizer.eos_token_id if end is None else end,
            "pad": tokenizer.pad_token_id,
            "mask": tokenizer.mask_token_id,
        }
        for name, token in ids.items():
            if token is None:
                raise BadRequest(f"The masked model's tokenizer has no {name} token. Use another model.")
        return cls(**ids, mask_text=tokenizer.mask_token, all=tokenizer.all_special_ids)


@dataclass(frozen=True)
class Row:
    """A row before padding."""

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]


def bucketed(
    rows: Iterable[Row], *, length: int, pad: int, label_ids: tuple[int, ...] | None = None
) -> Iterator[Batch]:
    """Yield the rows in batches by their length, rounded up to a multiple of WIDTH_STEP."""
    by_width = defaultdict[int, list[Row]](list)
    for row in rows:
        by_width[min(-(-len(row.inputs) // WIDTH_STEP) * WIDTH_STEP, length)].append(row)
    for width, members in sorted(by_width.items()):
        inputs = np.full((len(members), width), pad, dtype=np.int64)
        targets = np.full((len(members), width), IGNORE_INDEX, dtype=np.int64)
        for i, row in enumerate(members):
            inputs[i, : len(row.inputs)], targets[i, : len(row.targets)] = row.inputs, row.targets
        lengths = np.array([len(row.inputs) for row in members])
        yield _blocks(inputs, targets, lengths, label_ids)


def _blocks(
    inputs: NDArray[np.int64],
    targets: NDArray[np.int64],
    lengths: NDArray[np.int64],
    label_ids: tuple[int, ...] | None = None,
) -> Batch:
    full = bool((lengths == inputs.shape[1]).all())
    return Batch(
        inputs=torch.from_numpy(inputs),
        targets=torch.from_numpy(targets),
        label_ids=label_ids,
        lengths=None if full else torch.from_numpy(lengths),
    )


def _tokenize(tokenizer: "Tokenizer", texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Each text's tokens, without special ones."""
    ids: list[NDArray[np.int32]] = []
    for part in parts(texts, len):
        # verbose=False: transformers warns of texts longer than the model's context, which are cut later.
        encoded = tokenizer(list(part), add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids += [np.array(text, dtype=np.int32) for text in encoded["input_ids"]]
    return ids


def parts(items: Sequence[T], characters: Callable[[T], int]) -> Iterator[Sequence[T]]:
    """Yield the items in runs that a tokenizer takes at once."""
    first = size = 0
    for i, item in enumerate(items):
        if i > first and (i - first == _TEXTS_AT_ONCE or size + characters(item) > _CHARACTERS_AT_ONCE):
            yield items[first:i]
            first, size = i, 0
        size += characters(item)
    if items:
        yield items[first:]


def _plain(
    texts: Sequence[NDArray[np.int32]],
    special: SpecialTokens | None,
    *,
    length: int,
    eos: int,
    start: tuple[int, ...],
    seed: int,
) -> Iterator[Batch]:
    texts = [text for text in texts if len(text)]
    if not texts:
        return
    if special is None:
        yield pack(texts, length=length, eos=eos, start=start)
        return
    packed = pack(texts, length=length - 2, eos=eos)
    masked = _mask(packed, special, seed)
    if len(masked):
        yield masked


def _mask(packed: Batch, special: SpecialTokens, seed: int) -> Batch:
    """Add start and end tokens to the packed rows and mask MASKED_SHARE of each. Drops rows without a masked token."""
    tokens, real = packed.inputs.numpy(), (packed.targets != IGNORE_INDEX).numpy()
    hidden = _some(real & ~np.isin(tokens, special.all), seed)
    count, width = tokens.shape
    lengths = real.sum(1) + 2
    inputs = np.full((count, width + 2), special.pad, dtype=np.int64)
    targets = np.full((count, width + 2), IGNORE_INDEX, dtype=np.int64)
    inputs[:, 1:-1] = np.where(hidden, special.mask, np.where(real, tokens, special.pad))
    inputs[:, 0], inputs[np.arange(count), lengths - 1] = special.start, special.end
    targets[:, 1:-1] = np.where(hidden, tokens, IGNORE_INDEX)
    useful = hidden.any(1)
    return _blocks(inputs[useful], targets[useful], lengths[useful])


def _some(candidates: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """Choose MASKED_SHARE of each row's candidates, at least one: those with the smallest random numbers."""
    words = philox(seed, 0, _MASK_STREAM).random_raw(candidates.size).reshape(candidates.shape)
    # Halved, so that positions that are no candidates sort last.
    order = np.where(candidates, words >> np.uint64(1), np.uint64(2**63)).argsort(1, kind="stable")
    ranks = order.argsort(1, kind="stable")
    count = np.maximum(np.rint(MASKED_SHARE * candidates.sum(1)), 1)
    masked: NDArray[np.bool_] = candidates & (ranks < count[:, None])
    return masked


def _continuations(
    pairs: Sequence[tuple[str, str]],
    chats: Sequence[Messages],
    tokenizer: "Tokenizer",
    *,
    length: int,
    eos: int,
    start: tuple[int, ...],
) -> Iterator[Batch]:
    """Rows of completions and of chats.

    `start`, or else `eos`, precedes a completion's prompt, as it precedes every text in training and every prompt in
    generation; `eos` follows the completion. A chat's template has its own special tokens.
    """
    before_all, end = np.array(start or [eos]), np.array([eos])
    prompts = _tokenize(tokenizer, [prompt for prompt, _ in pairs])
    completions = _tokenize(tokenizer, [completion for _, completion in pairs])
    streams = [
        (np.concatenate([before_all, prompt]), np.concatenate([completion, end]))
        for prompt, completion in zip(prompts, completions, strict=True)
        if len(prompt) or len(completion)
    ]
    said = [turn for messages in chats for turn in turns(tokenizer, messages)]
    before = _tokenize(tokenizer, [prompt for prompt, _ in said])
    answers = _tokenize(tokenizer, [answer for _, answer in said])
    streams += [pair for pair in zip(before, answers, strict=True) if all(map(len, pair))]
    rows = (row for prompt, completion in streams for row in _windows(prompt, completion, start, length=length))
    return bucketed(rows, length=length, pad=eos)


def _windows(prompt: Ids, completion: Ids, start: Ids, *, length: int) -> Iterator[Row]:
    """One row if the completion fits, with as much of the prompt's end as fits too; else several overlapping rows.

    A row that does not begin where the stream does begins with `start`, in place of its first tokens.
    Each token of the completion is a target in exactly one row, with at least half a row of context, if there is as
    much before it.
    """
    stream = np.concatenate([prompt, completion]).astype(np.int64)
    count, end = len(completion), len(stream) - 1
    fresh = count if count <= length else length - length // 2
    done = end - count  # the position that predicts the completion's first token
    while done < end:
        stop = min(max(done + fresh, length), end)
        first = max(stop - length, 0)
        inputs, targets = stream[first:stop].copy(), stream[first + 1 : stop + 1].copy()
        targets[: done - first] = IGNORE_INDEX
        if first:
            inputs[: len(start)] = start
        yield Row(inputs, targets)
        done = stop
