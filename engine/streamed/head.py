"""The output head on a streamed weight: rows are made dense in chunks, when the loss needs them."""

import torch
from torch import nn

from pocketllm.engine.noise import Perturbation
from pocketllm.engine.streamed.decoding import product
from pocketllm.engine.streamed.modules import ForwardContext, StreamedWeight
from pocketllm.engine.streamed.weights import Scratch, Weight

#: The head's output in place of logits. If the model returns another number, it scales or caps its logits.
HEAD_MARK = 64.0


class StreamedHead(nn.Module):
    """Stores its input and computes no logits: the loss computes them in chunks, where there are targets."""

    def __init__(self, context: ForwardContext, weight: Weight, bias: Weight | None) -> None:
        super().__init__()
        self._context = context
        self.weights = StreamedWeight(weight, context)
        self.biases = None if bias is None else StreamedWeight(bias, context)
        self.input: torch.Tensor | None = None

    @property
    def is_perturbed(self) -> bool:
        """Whether its rows depend on the perturbation."""
        return self.weights.number is not None

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
        self._trained, self._context, self._perturbation = head.weights, context, perturbation
        self.vocabulary = head.weights.weight.shape[0]
        self.bias = None if head.biases is None else self._bias(head.biases)

    def of_tokens(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """(tokens, width) hidden states of a few tokens -> (tokens, vocabulary) fp32 logits without the bias.

        None if the rows must be made dense first.
        """
        weight = self._trained.as_stored if self._perturbation is None else None
        return None if weight is None else product(hidden, weight).float()

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """(stop - start, width) dense rows, valid until the next call."""
        weight = self._trained.weight
        rows = weight.rows(start, stop, self._context.dtype, self._context.scratch)
        if self._context.release and start:
            weight.release_rows(max(0, start - (stop - start)), start)  # the previous call's rows
        return rows if self._perturbation is None else self._trained.rows_at(rows, start, self._perturbation)

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """(n,) token ids -> (n, width) dense rows."""
        tokens, places = torch.unique(ids, return_inverse=True)
        rows = self._trained.weight.gather(tokens, self._context.dtype, release=self._context.release)
        if self._perturbation is not None:
            rows = self._trained.gathered_at(rows, tokens, self._perturbation)
        return rows[places]

    def of_labels(self, tokens: torch.Tensor, dtype: torch.dtype) -> "HeadAt":
        """The head of a vocabulary of these (n,) token ids only, in `dtype`."""
        return _LabelHead(self.gather(tokens).to(dtype), None if self.bias is None else self.bias[tokens])

    def _bias(self, trained: StreamedWeight) -> torch.Tensor:
        bias = trained.weight.dense(self._context.dtype, Scratch())
        return bias if self._perturbation is None else trained.rows_at(bias, 0, self._perturbation)


class _LabelHead(HeadAt):
    """A head of few rows, in memory."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        self._weight, self.bias = weight, bias
        self.vocabulary = len(weight)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self._weight[start:stop]

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        return self._weight[ids]
