import pytest
import torch
import torch.nn.functional as F

from pocketllm.engine.streamed.loss import CHUNK_BYTES, CHUNK_ROWS, token_losses
from tests.support.dense_head import DenseHead, example


def whole(hidden: torch.Tensor, head: DenseHead, wanted: torch.Tensor) -> torch.Tensor:
    """Cross-entropy on whole logits, in float64."""
    logits = hidden.double() @ head.weight.double().t()
    if head.bias is not None:
        logits += head.bias.double()
    return F.cross_entropy(logits, wanted, reduction="none")


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("count", "vocabulary"),
    [
        (1, 1),
        (1, 1000),
        (5, 7),
        (CHUNK_ROWS, 2500),  # columns do not divide the vocabulary
        (CHUNK_ROWS + 3, 130),  # rows in two parts
    ],
)
def test_equals_cross_entropy_on_whole_logits(
    dtype: torch.dtype, tolerance: float, bias: bool, count: int, vocabulary: int
) -> None:
    hidden, head, wanted = example(count, vocabulary, dtype=dtype, bias=bias)
    losses = token_losses(hidden, head, wanted)
    assert losses.dtype == dtype
    assert torch.allclose(losses.double(), whole(hidden, head, wanted), rtol=tolerance, atol=tolerance)
    assert head.rows_read == vocabulary


@pytest.mark.parametrize("bias", [False, True])
def test_bf16_is_as_good_as_its_logits(bias: bool) -> None:
    hidden, head, wanted = example(300, 5000, dtype=torch.bfloat16, bias=bias)
    losses, exact = token_losses(hidden, head, wanted), whole(hidden, head, wanted)
    assert losses.dtype == torch.float32
    # bf16 rounds a logit by up to 2^-8 of it, so no log-sum-exp is off by more; roundings average out in the mean.
    largest = (hidden.double() @ head.weight.double().t()).abs().amax(1)
    assert ((losses - exact).abs() <= 2**-8 * largest + 1e-5).all()
    assert (losses - exact).mean().abs() < 2**-8


def test_a_sure_prediction_in_bf16_costs_nothing_and_never_less() -> None:
    hidden = torch.full((1, 4), 3.01, dtype=torch.bfloat16)
    weight = torch.stack([torch.full((4,), 3.01), torch.full((4,), -3.0)]).bfloat16()
    loss = token_losses(hidden, DenseHead(weight), torch.tensor([0]))
    assert 0 <= loss.item() < 1e-5


def test_large_logits_do_not_overflow() -> None:
    hidden, head, wanted = example(3, 200)
    head.weight[0], hidden[0] = 50, 50
    assert torch.allclose(token_losses(hidden, head, wanted).double(), whole(hidden, head, wanted), rtol=1e-6)


@pytest.mark.parametrize("count", [1, 64, CHUNK_ROWS])
def test_no_chunk_takes_more_memory_than_said(count: int) -> None:
    hidden, head, wanted = example(count, 20_000, width=256)
    token_losses(hidden, head, wanted)
    assert head.most_rows * 4 * max(count, 256) <= CHUNK_BYTES
    assert 2 * head.most_rows * 4 * max(count, 256) > CHUNK_BYTES


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_position_has_no_loss(dtype: torch.dtype) -> None:
    hidden, head, wanted = example(0, 9, dtype=dtype)
    assert token_losses(hidden, head, wanted).shape == (0,)
    assert token_losses(hidden, head, wanted, (1, 2)).shape == (0,)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_choices_are_a_vocabulary_of_their_own(dtype: torch.dtype, bias: bool) -> None:
    hidden, head, _ = example(6, 50, dtype=dtype, bias=bias)
    label_ids = (40, 3, 17)
    small = DenseHead(head.weight[list(label_ids)], None if head.bias is None else head.bias[list(label_ids)])
    places = torch.tensor([0, 1, 2, 2, 1, 0])
    losses = token_losses(hidden, head, torch.tensor(label_ids)[places], label_ids)
    assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert torch.allclose(losses.double(), whole(hidden, small, places), atol=1e-5)
    assert head.rows_read == 0
