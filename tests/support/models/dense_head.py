"""An output head in memory."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from pocketllm.engine.streamed.head import HeadAt


@dataclass
class DenseHead(HeadAt):
    """A head in memory that counts what is asked of it, and hands out one scratch again and again."""

    weight: torch.Tensor
    bias: torch.Tensor | None = None
    rows_read: int = 0
    most_rows: int = 0

    def __post_init__(self) -> None:
        self._scratch = torch.empty_like(self.weight)
        self.vocabulary = len(self.weight)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        self.rows_read += stop - start
        self.most_rows = max(self.most_rows, stop - start)
        return self._scratch[: stop - start].copy_(self.weight[start:stop])

    def gather(self, ids: torch.Tensor) -> torch.Tensor:
        return self.weight[ids]


def example(
    count: int, vocabulary: int, *, width: int = 16, dtype: torch.dtype = torch.float32, bias: bool = False
) -> tuple[torch.Tensor, DenseHead, torch.Tensor]:
    generator = torch.Generator().manual_seed(count + vocabulary)
    hidden = torch.randn(count, width, generator=generator, dtype=torch.float64).to(dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=torch.float64).to(dtype)
    offset = torch.randn(vocabulary, generator=generator, dtype=torch.float64).to(dtype) if bias else None
    return hidden, DenseHead(weight, offset), torch.randint(0, vocabulary, (count,), generator=generator)


def exact_losses(
    hidden: torch.Tensor, head: DenseHead, targets: torch.Tensor, label_ids: tuple[int, ...] | None = None
) -> torch.Tensor:
    """Cross-entropy on whole logits, in float64; with labels, on theirs alone."""
    logits = hidden.double() @ head.weight.double().t()
    if head.bias is not None:
        logits = logits + head.bias.double()
    if label_ids is not None:
        logits = logits[:, list(label_ids)]
        targets = torch.tensor([label_ids.index(token) for token in targets.tolist()])
    return F.cross_entropy(logits, targets, reduction="none")
