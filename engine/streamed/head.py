"""The output head on a streamed weight: rows are made dense in chunks, when the loss needs them."""

import torch
from torch import nn

from pocketllm.engine.noise import Perturbation
from pocketllm.engine.streamed.context import ForwardContext, Scratch
from pocketllm.engine.streamed.decoding import product
from pocketllm.engine.streamed.weights import Weight

#: The head's output in place of logits. If the model returns another number, it scales or caps its logits.
HEAD_MARK = 64.0
#: The rows that a pass that releases pages has resident at a time: all of SmolLM2's, a fifth of Gemma's.
_RESIDENT_BYTES = 64 << 20


class StreamedHead(nn.Module):
    """Stores its input and computes no logits: the loss computes them in chunks, where there are targets."""

    def __init__(self, context: ForwardContext, weight: Weight, bias: Weight | None) -> None:
        super().__init__()
        self._context = context
        self.weight, self.bias = weight, bias
        self.input: torch.Tensor | None = None

    @property
    def is_perturbed(self) -> bool:
        """Whether its rows depend on the perturbation."""
        return self.weight.number is not None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Store hidden (batch, tokens, width) in `input`; return (batch, tokens, 1) of HEAD_MARK."""
        self.input = hidden
        return hidden.new_full((*hidden.shape[:-1], 1), HEAD_MARK)

    def at(self, perturbation: Perturbation | None) -> "HeadAt":
        """The head's rows at a perturbation; None is theta itself."""
        return HeadAt(self, self._context, perturbation)


class HeadAt:
    """The head at one perturbation: what the loss reads of it."""

    def __init__(self, head: StreamedHead, context: ForwardContext, perturbation: Perturbation | None) -> None:
        self._weight, self._context, self._perturbation = head.weight, context, perturbation
        self.vocabulary = head.weight.shape[0]
        self.bias = None if head.bias is None else self._bias(head.bias)

    def of_tokens(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """(tokens, width) hidden states of a few tokens -> (tokens, vocabulary) fp32 logits without the bias.

        None if the rows must be made dense first.
        """
        weight = self._weight.as_stored(self._context) if self._perturbation is None else None
        if weight is None or not self._context.release:
            return None if weight is None else product(hidden, weight).float()
        logits = hidden.new_empty(len(hidden), len(weight), dtype=torch.float32)
        at_once = _RESIDENT_BYTES // (weight.itemsize * weight.shape[1])
        for start in range(0, len(weight), at_once):
            logits[:, start : start + at_once] = product(hidden, weight[start : start + at_once])
            self._weight.release(start, min(start + at_once, len(weight)))
        return logits

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """(stop - start, width) dense rows, valid until the next call."""
        rows = self._weight.rows(start, stop, self._context.dtype, self._context.scratch)
        if self._context.release and start:
            self._weight.release(max(0, start - (stop - start)), start)  # the previous call's rows
        return rows if self._perturbation is None else self._weight.at(self._perturbation, rows, start)

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """(n,) token ids -> (n, width) dense rows."""
        tokens, places = torch.unique(ids, return_inverse=True)
        rows = self._weight.gather(tokens, self._context.dtype, release=self._context.release)
        if self._perturbation is not None:
            rows = self._weight.at(self._perturbation, rows, tokens)
        return rows[places]

    def of_labels(self, tokens: torch.Tensor, dtype: torch.dtype) -> "HeadAt":
        """The head of a vocabulary of these (n,) token ids only, in `dtype`."""
        return _LabelHead(self.gather(tokens).to(dtype), None if self.bias is None else self.bias[tokens])

    def _bias(self, weight: Weight) -> torch.Tensor:
        bias = weight.dense(self._context.dtype, Scratch())
        return bias if self._perturbation is None else weight.at(self._perturbation, bias, 0)


class _LabelHead(HeadAt):
    """A head of few rows, in memory."""

    def __init__(self, rows: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._rows, self.bias = rows, bias
        self.vocabulary = len(rows)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self._rows[start:stop]

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        return self._rows[ids]
