"""The output embedding on a streamed weight: some rows are made dense at a time, when a loss asks for them."""

import torch
from torch import nn

from pocketllm.engine.params.perturbation import Perturbation
from pocketllm.engine.streamed.modules import ForwardContext, LoRABranch, StreamedWeight
from pocketllm.engine.streamed.weights import Scratch, Weight

#: What the output head says in place of logits. Anything else behind it shows that they are scaled or capped there.
HEAD_MARK = 64.0


class StreamedHead(nn.Module):
    """The output embedding: keeps what comes in, for the loss looks at few positions and a few words at a time."""

    def __init__(self, context: ForwardContext, weight: Weight, bias: Weight | None) -> None:
        super().__init__()
        self._context = context
        self.weights = StreamedWeight(weight, context)
        self.biases = None if bias is None else StreamedWeight(bias, context)
        self.lora: LoRABranch | None = None
        self.extended_rows = Scratch()
        self.seen: torch.Tensor | None = None

    @property
    def moves(self) -> bool:
        """Whether its rows differ from point to point."""
        return self.weights.number is not None or self.lora is not None

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """hidden (batch, tokens, width) is kept in `seen`; what is returned has no logits in it."""
        self.seen = hidden
        return hidden.new_full((*hidden.shape[:-1], 1), HEAD_MARK)

    def at(self, point: Perturbation | None) -> "HeadAt":
        """The head's rows at a point; None is theta itself."""
        return HeadAt(self, self._context, point)


class HeadAt:
    """pocketllm.engine.streamed.loss.Head at one point: rows are made dense when asked for.

    With an adapter it is the head of the `extended` hidden states.
    """

    def __init__(self, head: StreamedHead, context: ForwardContext, point: Perturbation | None) -> None:
        self._trained, self._context, self._point = head.weights, context, point
        self._lora, self._extended = head.lora, head.extended_rows
        self.vocabulary = head.weights.weight.shape[0]
        self.bias = None if head.biases is None else self._bias(head.biases)

    def extended(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, width) hidden states as the rows here take them: with what an adapter sees of them behind."""
        return hidden if self._lora is None else self._lora.extend(hidden)

    def of_token(self, hidden: torch.Tensor) -> torch.Tensor | None:
        """(1, width) hidden state, not extended -> (1, vocabulary) fp32 products without the bias; None where the rows
        have to be made.
        """
        weight = self._trained.as_kept if self._point is None else None
        if weight is None:
            return None
        products = torch.mm(hidden, weight.t()).float()
        if self._lora is not None:
            self._lora.add_to(products, hidden)
        return products

    def rows(self, start: int, stop: int) -> torch.Tensor:
        """(stop - start, width) dense rows, valid until the next call."""
        weight = self._trained.weight
        rows = weight.rows(start, stop, self._context.dtype, self._context.scratch)
        if self._context.release and start:
            weight.release_rows(max(0, start - (stop - start)), start)  # the rows of the call before
        if self._point is not None:
            rows = self._trained.rows_at(rows, start, self._point)
        return rows if self._lora is None else self._lora.rows_at(self._point, start, rows, self._extended)

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        """(n, width) dense rows of these words."""
        words, places = torch.unique(ids, return_inverse=True)
        rows = self._trained.weight.gather(words, self._context.dtype, release=self._context.release)
        if self._point is not None:
            rows = self._trained.gathered_at(rows, words, self._point)
        if self._lora is not None:
            rows = self._lora.gathered_at(self._point, words, rows)
        return rows[places]

    def _bias(self, trained: StreamedWeight) -> torch.Tensor:
        bias = trained.weight.dense(self._context.dtype, Scratch())
        return bias if self._point is None else trained.rows_at(bias, 0, self._point)
