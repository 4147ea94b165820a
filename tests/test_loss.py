import pytest
import torch
import torch.nn.functional as F

from pocketllm.mezo import loss
from pocketllm.mezo.loss import NO_TARGET, block_losses


@pytest.mark.parametrize("vocabulary", [1, 7, 1000])
@pytest.mark.parametrize(("blocks", "tokens"), [(1, 1), (3, 5), (4, 33)])
def test_equals_cross_entropy_on_whole_logits(vocabulary: int, blocks: int, tokens: int) -> None:
    generator = torch.Generator().manual_seed(vocabulary + tokens)
    hidden = torch.randn(blocks, tokens, 16, generator=generator)
    head = torch.randn(vocabulary, 16, generator=generator)
    targets = torch.randint(0, vocabulary, (blocks, tokens), generator=generator)
    targets[0, 0] = NO_TARGET
    whole = F.cross_entropy((hidden @ head.t()).flatten(0, 1), targets.flatten(), reduction="none")
    assert torch.allclose(block_losses(hidden, head, targets), whole.view(blocks, tokens).sum(1), atol=1e-4)


def test_chunks_do_not_change_the_sum() -> None:
    vocabulary = loss.CHUNK_BYTES // 4 // 3  # three rows a chunk
    hidden, head = torch.ones(1, 8, 2), torch.linspace(-1, 1, vocabulary).repeat(2, 1).t()
    targets = torch.arange(8)[None]
    whole = F.cross_entropy((hidden @ head.t())[0], targets[0], reduction="sum")
    assert torch.allclose(block_losses(hidden, head, targets), whole[None], rtol=1e-5)


def test_nothing_to_predict_costs_nothing() -> None:
    targets = torch.full((2, 3), NO_TARGET)
    assert block_losses(torch.randn(2, 3, 4), torch.randn(5, 4), targets).tolist() == [0, 0]
