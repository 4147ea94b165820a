"""The closed forms of the error at the output, against what torch's autograd makes of the same losses."""

from itertools import product

import pytest
import torch

from pocketllm.backprop.output_error import output_error
from tests.support.models.dense_head import DenseHead, exact_losses, example

#: A logit of some ten is rounded by 1e-6, and the error is multiplied by weights.
TOLERANCES = {torch.float32: 5e-6, torch.float64: 1e-12}


def by_autograd(
    hidden: torch.Tensor, head: DenseHead, targets: torch.Tensor, label_ids: tuple[int, ...] | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Losses, and their gradient by `hidden`, in float64."""
    exact = hidden.to(torch.float64, copy=True).requires_grad_()
    losses = exact_losses(exact, head, targets, label_ids)
    losses.sum().backward()
    assert exact.grad is not None
    return losses.detach(), exact.grad


def check(
    hidden: torch.Tensor,
    head: DenseHead,
    targets: torch.Tensor,
    label_ids: tuple[int, ...] | None = None,
    *,
    tolerance: float,
) -> None:
    """Losses and gradient are those of cross-entropy, in the dtype of `hidden`."""
    expected = by_autograd(hidden, head, targets, label_ids)
    for found, exact in zip(output_error(hidden, head, targets, label_ids), expected, strict=True):
        assert found.dtype == hidden.dtype and found.shape == exact.shape
        case = hidden.dtype, head.bias is not None, len(hidden), len(head.weight)
        atol = tolerance * max(1.0, float(exact.abs().max()))
        assert torch.allclose(found.double(), exact, rtol=0, atol=atol), case


def test_loss_and_gradients_are_those_of_cross_entropy() -> None:
    for (dtype, tolerance), bias in product(TOLERANCES.items(), (False, True)):
        for count, vocabulary in ((1, 1), (5, 70), (7, 130), (2050, 600), (9000, 130)):
            hidden, head, targets = example(count, vocabulary, dtype=dtype, bias=bias)
            check(hidden, head, targets, tolerance=tolerance)
            assert head.rows_read == vocabulary


def test_labels_are_a_vocabulary_of_their_own() -> None:
    labels = (40, 3, 17)
    targets = torch.tensor(labels)[torch.tensor([0, 1, 2, 2, 1, 0])]
    for (dtype, tolerance), bias in product(TOLERANCES.items(), (False, True)):
        hidden, head, _ = example(6, 50, dtype=dtype, bias=bias)
        check(hidden, head, targets, labels, tolerance=tolerance)
        assert head.rows_read == 0


def test_large_logits_do_not_overflow() -> None:
    hidden, head, targets = example(3, 200)
    head.weight[0], hidden[0] = 50, 50
    check(hidden, head, targets, tolerance=1e-6)


def test_no_position_has_no_error() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        hidden, head, targets = example(0, 9, dtype=dtype)
        for label_ids in (None, (1, 2)):
            losses, gradient = output_error(hidden, head, targets, label_ids)
            assert (losses.shape, gradient.shape) == ((0,), (0, 16))


def test_of_bf16_states_sums_are_in_float32() -> None:
    hidden, head, targets = example(40, 300, dtype=torch.bfloat16)
    losses, gradient = output_error(hidden, head, targets)
    expected_losses, expected_gradient = by_autograd(hidden, head, targets)
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
