"""The closed forms of the error at the output, against what torch's autograd makes of the same losses."""

import pytest
import torch
import torch.nn.functional as F

from pocketllm.backprop.output_error import output_error
from tests.support.dense_head import DenseHead, example

#: A logit of some ten is rounded by 1e-6, and the error is multiplied by weights.
TOLERANCES = {torch.float32: 5e-6, torch.float64: 1e-12}


def by_autograd(
    hidden: torch.Tensor, head: DenseHead, wanted: torch.Tensor, label_ids: tuple[int, ...] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, and their gradient by `hidden`, in float64."""
    exact, weight = hidden.double().requires_grad_(), head.weight.double()
    logits = exact @ weight.t()
    if head.bias is not None:
        logits = logits + head.bias.double()
    if label_ids is not None:
        logits = logits[:, list(label_ids)]
        wanted = torch.tensor([label_ids.index(token) for token in wanted.tolist()], dtype=torch.int64)
    losses = F.cross_entropy(logits, wanted, reduction="none")
    losses.sum().backward()
    assert exact.grad is not None
    return losses.detach(), exact.grad


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    size = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return found.shape == expected.shape and torch.allclose(
        found.double(), expected.double(), rtol=0, atol=tolerance * size
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("count", "vocabulary"),
    [(1, 1), (5, 70), (7, 130), (2050, 600), (9000, 130)],
)
def test_loss_and_gradients_are_those_of_cross_entropy(
    dtype: torch.dtype, bias: bool, count: int, vocabulary: int
) -> None:
    hidden, head, wanted = example(count, vocabulary, dtype=dtype, bias=bias)
    losses, gradient = output_error(hidden, head, wanted)
    expected_losses, expected_gradient = by_autograd(hidden, head, wanted)
    assert losses.dtype == gradient.dtype == dtype
    assert close(losses, expected_losses, TOLERANCES[dtype])
    assert close(gradient, expected_gradient, TOLERANCES[dtype])
    assert head.rows_read == vocabulary


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_position_has_no_error(dtype: torch.dtype) -> None:
    hidden, head, wanted = example(0, 9, dtype=dtype)
    losses, gradient = output_error(hidden, head, wanted)
    assert (losses.shape, gradient.shape) == ((0,), (0, 16))
    losses, gradient = output_error(hidden, head, wanted, (1, 2))
    assert (losses.shape, gradient.shape) == ((0,), (0, 16))


def test_of_bf16_states_sums_are_in_float32() -> None:
    hidden, head, wanted = example(40, 300, dtype=torch.bfloat16)
    losses, gradient = output_error(hidden, head, wanted)
    expected_losses, expected_gradient = by_autograd(hidden, head, wanted)
    assert losses.dtype == gradient.dtype == torch.float32
    # bf16 rounds a logit by up to 2^-8 of it, and so each p by as many times the logit.
    largest = float((hidden.double() @ head.weight.double().t()).abs().max())
    assert (losses - expected_losses).abs().max() <= 2**-8 * largest
    assert (gradient - expected_gradient).norm() <= 2**-8 * largest * expected_gradient.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_sure_words_loss_is_never_below_zero(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    hidden = (torch.rand(64, 24, generator=generator) + 3).to(dtype)
    weight = torch.stack([torch.full((24,), 3.01), torch.full((24,), -3.0)]).to(dtype)
    losses, gradient = output_error(hidden, DenseHead(weight), torch.zeros(64, dtype=torch.int64))
    assert (losses >= 0).all()
    assert (losses < 2).all()
    assert gradient.isfinite().all()


def test_large_logits_do_not_overflow() -> None:
    hidden, head, wanted = example(3, 200)
    head.weight[0], hidden[0] = 50, 50
    losses, gradient = output_error(hidden, head, wanted)
    expected_losses, expected_gradient = by_autograd(hidden, head, wanted)
    assert close(losses, expected_losses, 1e-6)
    assert close(gradient, expected_gradient, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_labels_are_a_vocabulary_of_their_own(dtype: torch.dtype, bias: bool) -> None:
    hidden, head, _ = example(6, 50, dtype=dtype, bias=bias)
    labels = (40, 3, 17)
    wanted = torch.tensor(labels)[torch.tensor([0, 1, 2, 2, 1, 0])]
    losses, gradient = output_error(hidden, head, wanted, labels)
    expected_losses, expected_gradient = by_autograd(hidden, head, wanted, labels)
    assert losses.dtype == gradient.dtype == dtype
    assert close(losses, expected_losses, TOLERANCES[dtype])
    assert close(gradient, expected_gradient, TOLERANCES[dtype])
    assert head.rows_read == 0
