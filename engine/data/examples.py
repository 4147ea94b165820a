"""Examples become rows of tokens: plain text, prompts with their completions, chats, and labelled text."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from pocketllm.engine.data.batches import NO_TEXT, Batch, Batches, Ids, pack
from pocketllm.engine.data.chats import Messages, turns
from pocketllm.engine.data.label_templates import Form, Template, fit
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.philox import philox
from pocketllm.engine.streamed.loss import IGNORE_INDEX

T = TypeVar("T")

#: Rows of completions and labelled text are padded to a multiple of this, so each has fewer than this many pads.
WIDTH_STEP = 8
#: Of a masked model's plain text, how much is hidden from it (as when RoBERTa was trained, arXiv 1907.11692).
MASKED_SHARE = 0.15

#: The most texts, and about the most characters, that the tokenizer is given at once: enough for its threads, and
#: few, as it takes some 200 bytes a token.
_TEXTS_AT_ONCE, _CHARACTERS_AT_ONCE = 64, 2**18
#: The generator stream of the masks; batches.py and the noise have others.
_MASK_STREAM = 2**62 + 2**61


@dataclass(frozen=True, kw_only=True)
class Plain:
    """A text of which every token is learned."""

    text: str


@dataclass(frozen=True, kw_only=True)
class Completion:
    """A prompt, which is only read, and what follows it, which is learned."""

    prompt: str
    completion: str


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """A text and the label that the model shall give it."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Chat:
    """Messages, of which the assistant's are learned, in the model's own template."""

    messages: Messages


Example = Plain | Completion | Chat | Labelled


def encode(
    examples: Sequence[Example],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    eos: int,
    template: Template | None = None,
    is_mlm: bool = False,
    seed: int = 0,
) -> Batches:
    """The examples as rows of at most `length` positions, ready for batch_at; in each bucket in the order given.

    Plain text is packed: one bucket of rows of `length`, of which only the last is short. Other rows are bucketed
    by their length, rounded up to a multiple of WIDTH_STEP. What has no tokens at all is left out, but an empty
    text may have a label, and an empty completion means that nothing follows. `seed` decides which tokens a
    masked model has to guess; nothing else is random.

    The loss of labelled text is over the label words alone, as in MeZO (arXiv 2305.17333, the appendix on prompts;
    `model_for_prompting_forward` in its medium_models/src/models.py): hence `label_ids`, in the labels' sorted order.

    Raises BadRequest when there is nothing to learn from, or the model or the template does not fit the examples.
    """
    if is_mlm and any(isinstance(example, Completion | Chat) for example in examples):
        raise BadRequest(
            "This is a masked model, which cannot learn completions or chats; use plain or labelled text, or a causal "
            "model."
        )
    plain = [example.text for example in examples if isinstance(example, Plain)]
    pairs = [example for example in examples if isinstance(example, Completion)]
    chats = [example for example in examples if isinstance(example, Chat)]
    labelled = [example for example in examples if isinstance(example, Labelled)]
    frame = _Frame.of(tokenizer, length) if is_mlm else None
    buckets = [
        *_plain(_tokenize(tokenizer, plain), tokenizer, frame, length=length, eos=eos, seed=seed),
        *_continuations(pairs, chats, tokenizer, length=length, eos=eos),
        *_labelled(labelled, tokenizer, template, frame, length=length, eos=eos),
    ]
    if not buckets:
        raise BadRequest(NO_TEXT)
    return tuple(buckets)


@dataclass(frozen=True, kw_only=True)
class _Frame:
    """The special tokens of a masked model: each row stands between `start` and `end`."""

    start: int
    end: int
    pad: int
    mask: int
    mask_text: str

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase, length: int) -> "_Frame":
        if length < 3:
            raise BadRequest(
                f"Blocks of {length} tokens have no room beside a start and an end token. Use longer ones."
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
        return cls(**ids, mask_text=tokenizer.mask_token)


@dataclass(frozen=True)
class _Row:
    """A row before padding."""

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]


def _bucketed(
    rows: Iterable[_Row], *, length: int, pad: int, label_ids: tuple[int, ...] | None = None
) -> Iterator[Batch]:
    by_width = defaultdict[int, list[_Row]](list)
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


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[NDArray[np.int32]]:
    """Each text's tokens, without special ones."""
    ids: list[NDArray[np.int32]] = []
    for part in _parts(texts, len):
        # verbose=False: transformers warns of texts longer than the model's context, which are cut later.
        encoded = tokenizer(list(part), add_special_tokens=False, return_attention_mask=False, verbose=False)
        ids += [np.array(text, dtype=np.int32) for text in encoded["input_ids"]]
    return ids


def _parts(items: Sequence[T], characters: Callable[[T], int]) -> Iterator[Sequence[T]]:
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
    tokenizer: PreTrainedTokenizerBase,
    frame: _Frame | None,
    *,
    length: int,
    eos: int,
    seed: int,
) -> Iterator[Batch]:
    texts = [text for text in texts if len(text)]
    if not texts:
        return
    if frame is None:
        yield pack(texts, length=length, eos=eos)
        return
    packed = pack(texts, length=length - 2, eos=eos)
    hidden = _hide(packed, frame, tokenizer.all_special_ids, seed)
    if len(hidden):
        yield hidden


def _hide(packed: Batch, frame: _Frame, special: Sequence[int], seed: int) -> Batch:
    """The packed rows between start and end tokens, a share of each behind masks; no row that hides nothing."""
    tokens, real = packed.inputs.numpy(), (packed.targets != IGNORE_INDEX).numpy()
    hidden = _some(real & ~np.isin(tokens, special), seed)
    count, width = tokens.shape
    lengths = real.sum(1) + 2
    inputs = np.full((count, width + 2), frame.pad, dtype=np.int64)
    targets = np.full((count, width + 2), IGNORE_INDEX, dtype=np.int64)
    inputs[:, 1:-1] = np.where(hidden, frame.mask, np.where(real, tokens, frame.pad))
    inputs[:, 0], inputs[np.arange(count), lengths - 1] = frame.start, frame.end
    targets[:, 1:-1] = np.where(hidden, tokens, IGNORE_INDEX)
    useful = hidden.any(1)
    return _blocks(inputs[useful], targets[useful], lengths[useful])


def _some(candidates: NDArray[np.bool_], seed: int) -> NDArray[np.bool_]:
    """MASKED_SHARE of each row's candidates, at least one: those with the smallest random numbers."""
    words = philox(seed, 0, _MASK_STREAM).random_raw(candidates.size).reshape(candidates.shape)
    # Halved, so that what is no candidate comes last without fail.
    order = np.where(candidates, words >> np.uint64(1), np.uint64(2**63)).argsort(1, kind="stable")
    ranks = order.argsort(1, kind="stable")
    wanted = np.maximum(np.rint(MASKED_SHARE * candidates.sum(1)), 1)
    chosen: NDArray[np.bool_] = candidates & (ranks < wanted[:, None])
    return chosen


def _continuations(
    pairs: Sequence[Completion],
    chats: Sequence[Chat],
    tokenizer: PreTrainedTokenizerBase,
    *,
    length: int,
    eos: int,
) -> Iterator[Batch]:
    """Rows of completions and of chats.

    An end token stands before a completion's prompt, as before every text that is learned, and before a prompt that is
    to be continued; and one ends the completion. A chat's template says itself how it begins and how a turn ends.
    """
    between = np.array([eos])
    prompts = _tokenize(tokenizer, [pair.prompt for pair in pairs])
    completions = _tokenize(tokenizer, [pair.completion for pair in pairs])
    streams = [
        (np.concatenate([between, prompt]), np.concatenate([completion, between]))
        for prompt, completion in zip(prompts, completions, strict=True)
        if len(prompt) or len(completion)
    ]
    said = [turn for chat in chats for turn in turns(tokenizer, chat.messages)]
    before = _tokenize(tokenizer, [prompt for prompt, _ in said])
    answers = _tokenize(tokenizer, [answer for _, answer in said])
    streams += [pair for pair in zip(before, answers, strict=True) if all(map(len, pair))]
    rows = (row for prompt, wanted in streams for row in _windows(prompt, wanted, length=length))
    return _bucketed(rows, length=length, pad=eos)


def _windows(prompt: Ids, wanted_ids: Ids, *, length: int) -> Iterator[_Row]:
    """One row where what is wanted fits, behind as much of the prompt's end as does; else several in a row.

    Each wanted token is predicted in one of them. The ones before it in its row are its context: half a row at least,
    as far as there is so much.
    """
    stream = np.concatenate([prompt, wanted_ids]).astype(np.int64)
    wanted, end = len(wanted_ids), len(stream) - 1
    fresh = wanted if wanted <= length else length - length // 2
    done = end - wanted  # the position that predicts the completion's first token
    while done < end:
        stop = min(max(done + fresh, length), end)
        start = max(stop - length, 0)
        targets = stream[start + 1 : stop + 1].copy()
        targets[: done - start] = IGNORE_INDEX
        yield _Row(stream[start:stop], targets)
        done = stop


def _labelled(
    examples: Sequence[Labelled],
    tokenizer: PreTrainedTokenizerBase,
    template: Template | None,
    frame: _Frame | None,
    *,
    length: int,
    eos: int,
) -> Iterator[Batch]:
    if not examples:
        return
    if template is None:
        raise BadRequest("Some texts have a label, but there is no template that says how to ask for it. Give one.")
    for label in {example.label for example in examples} - template.words.keys():
        raise BadRequest(
            f"A text has the label {label!r}, but the template's are {', '.join(sorted(template.words))}. "
            "Add it to the template, or correct the text."
        )
    form = fit(template, tokenizer, frame.mask_text if frame else None)
    rows = _labelled_rows(examples, tokenizer, form, frame, length=length, eos=eos)
    label_ids = tuple(form.words[label] for label in sorted(form.words))
    yield from _bucketed(rows, length=length, pad=frame.pad if frame else eos, label_ids=label_ids)


def _labelled_rows(
    examples: Sequence[Labelled],
    tokenizer: PreTrainedTokenizerBase,
    form: Form,
    frame: _Frame | None,
    *,
    length: int,
    eos: int,
) -> Iterator[_Row]:
    for part in _parts(examples, lambda example: len(example.text)):
        filled = form.fill(tokenizer, [example.text for example in part])
        for example, one in zip(part, filled, strict=True):
            ids, slot = one.cut(length - 2 if frame else length - 1)
            ends = ([frame.start], [frame.end]) if frame else ([eos], [])
            ids, slot = np.concatenate([ends[0], ids, ends[1]]).astype(np.int64), slot + 1
            targets = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
            # A mask's token is predicted where it stands, a causal model's one position earlier.
            targets[slot if frame else slot - 1] = form.words[example.label]
            yield _Row(ids, targets)
