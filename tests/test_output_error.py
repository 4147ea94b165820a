"""The closed forms of the error at the output, against what torch's autograd makes of the same losses."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from transformers.models.gemma3.modeling_gemma3 import Gemma3RMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from pocketllm.mezo.output_error import LOGIT_BYTES, NormJacobian, choice_error, output_error
from tests.test_loss import DenseHead, example

#: Sums of some hundred products in another order.
TOLERANCES = {torch.float32: 2e-6, torch.float64: 1e-12}
WIDTH = 32

Expected = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


def by_autograd(
    hidden: torch.Tensor, head: DenseHead, wanted: torch.Tensor, choices: tuple[int, ...] | None = None
) -> Expected:
    """Losses, their gradient by `hidden`, and by the head's weight (that of the choices alone), in float64."""
    exact, weight = hidden.double().requires_grad_(), head.weight.double().requires_grad_()
    logits = exact @ weight.t()
    if head.bias is not None:
        logits = logits + head.bias.double()
    if choices is not None:
        logits = logits[:, list(choices)]
        wanted = torch.tensor([choices.index(token) for token in wanted.tolist()], dtype=torch.int64)
    losses = F.cross_entropy(logits, wanted, reduction="none")
    losses.sum().backward()  # type: ignore[no-untyped-call]
    assert exact.grad is not None and weight.grad is not None
    return losses.detach(), exact.grad, weight.grad if choices is None else weight.grad[list(choices)]


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> bool:
    size = max(1.0, float(expected.abs().max())) if expected.numel() else 1.0
    return found.shape == expected.shape and torch.allclose(
        found.double(), expected.double(), rtol=0, atol=tolerance * size
    )


class Collected:
    """What is told of p - onehot, as a whole matrix and as the head's gradient."""

    def __init__(self, hidden: torch.Tensor, vocabulary: int) -> None:
        self._hidden = hidden
        self.times_told = torch.zeros(len(hidden), vocabulary)
        self.gradient = torch.zeros(vocabulary, hidden.shape[1], dtype=torch.float64)
        self.dtypes: set[torch.dtype] = set()
        self.firsts: set[int] = set()

    def __call__(self, first: int, start: int, error: torch.Tensor) -> None:
        rows, columns = error.shape
        self.times_told[first : first + rows, start : start + columns] += 1
        self.gradient[start : start + columns] += error.t().double() @ self._hidden[first : first + rows].double()
        self.dtypes.add(error.dtype)
        self.firsts.add(first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize(
    ("count", "vocabulary", "logit_bytes", "groups"),
    [
        (1, 1, LOGIT_BYTES, 1),
        (5, 70, LOGIT_BYTES, 1),
        (7, 130, 3 * 130 * 4, 3),  # three positions of float32 at a time, so the last group has one
        (3, 50, 1, 3),  # less than one position's logits
        (2050, 600, LOGIT_BYTES, 1),  # several runs of columns that do not divide the vocabulary
    ],
)
def test_loss_and_gradients_are_those_of_cross_entropy(
    dtype: torch.dtype, bias: bool, count: int, vocabulary: int, logit_bytes: int, groups: int
) -> None:
    hidden, head, wanted = example(count, vocabulary, dtype=dtype, bias=bias)
    told = Collected(hidden, vocabulary)
    logit_bytes = logit_bytes if logit_bytes == LOGIT_BYTES else logit_bytes * dtype.itemsize // 4
    losses, gradient = output_error(hidden, head, wanted, on_error=told, logit_bytes=logit_bytes)
    expected_losses, expected_gradient, expected_of_head = by_autograd(hidden, head, wanted)
    assert losses.dtype == gradient.dtype == dtype
    assert close(losses, expected_losses, TOLERANCES[dtype])
    assert close(gradient, expected_gradient, TOLERANCES[dtype])
    assert close(told.gradient, expected_of_head, TOLERANCES[dtype])
    assert (told.times_told == 1).all()
    assert told.dtypes == {dtype}
    assert len(told.firsts) == groups


def test_is_the_same_without_anybody_to_tell_and_in_any_groups() -> None:
    hidden, head, wanted = example(9, 300, bias=True)
    losses, gradient = output_error(hidden, head, wanted)
    for logit_bytes in (1, 4 * 300 * 4):
        some_losses, some_gradient = output_error(hidden, head, wanted, logit_bytes=logit_bytes)
        assert torch.allclose(some_losses, losses, atol=2e-6)
        assert torch.allclose(some_gradient, gradient, atol=2e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_position_has_no_error(dtype: torch.dtype) -> None:
    hidden, head, wanted = example(0, 9, dtype=dtype)
    told = Collected(hidden, 9)
    losses, gradient = output_error(hidden, head, wanted, on_error=told)
    assert (losses.shape, gradient.shape) == ((0,), (0, 16))
    assert not told.firsts
    losses, gradient, of_choices = choice_error(hidden, head, wanted, (1, 2))
    assert (losses.shape, gradient.shape, of_choices.shape) == ((0,), (0, 16), (0, 2))


def test_bf16_errors_come_in_bf16_and_sums_in_float32() -> None:
    hidden, head, wanted = example(40, 300, dtype=torch.bfloat16)
    told = Collected(hidden, 300)
    losses, gradient = output_error(hidden, head, wanted, on_error=told)
    expected_losses, expected_gradient, expected_of_head = by_autograd(hidden, head, wanted)
    assert told.dtypes == {torch.bfloat16}
    assert losses.dtype == gradient.dtype == torch.float32
    # bf16 rounds a logit by up to 2^-8 of it, and so each p by as many times the logit.
    largest = float((hidden.double() @ head.weight.double().t()).abs().max())
    assert (losses - expected_losses).abs().max() <= 2**-8 * largest
    for found, expected in ((gradient, expected_gradient), (told.gradient, expected_of_head)):
        assert (found - expected).norm() <= 2**-8 * largest * expected.norm()


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
    expected_losses, expected_gradient, _ = by_autograd(hidden, head, wanted)
    assert close(losses, expected_losses, 1e-6)
    assert close(gradient, expected_gradient, 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bias", [False, True])
def test_choices_are_a_vocabulary_of_their_own(dtype: torch.dtype, bias: bool) -> None:
    hidden, head, _ = example(6, 50, dtype=dtype, bias=bias)
    choices = (40, 3, 17)
    wanted = torch.tensor(choices)[torch.tensor([0, 1, 2, 2, 1, 0])]
    losses, gradient, error = choice_error(hidden, head, wanted, choices)
    expected_losses, expected_gradient, expected_of_head = by_autograd(hidden, head, wanted, choices)
    assert losses.dtype == gradient.dtype == error.dtype == dtype
    assert close(losses, expected_losses, TOLERANCES[dtype])
    assert close(gradient, expected_gradient, TOLERANCES[dtype])
    assert close(error.t() @ hidden, expected_of_head, TOLERANCES[dtype])
    assert head.rows_read == 0


def layer_norm() -> nn.Module:
    return nn.LayerNorm(WIDTH, eps=1e-5)


def rms_norm() -> nn.Module:
    return LlamaRMSNorm(WIDTH, eps=1e-5)


def gemma_norm() -> nn.Module:
    return Gemma3RMSNorm(WIDTH, eps=1e-5)


every_norm = pytest.mark.parametrize(
    ("make", "centred", "offset"), [(layer_norm, True, 0.0), (rms_norm, False, 0.0), (gemma_norm, False, 1.0)]
)


def random_norm(make: Callable[[], nn.Module]) -> nn.Module:
    """With a gain that is negative here and there, and a bias if there is one."""
    norm, generator = make(), torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.copy_(torch.randn(WIDTH, generator=generator))
    return norm


@every_norm
@torch.no_grad()
def test_a_norm_is_measured_whatever_its_class(make: Callable[[], nn.Module], centred: bool, offset: float) -> None:
    norm = random_norm(make)
    found = NormJacobian.measured(norm, WIDTH, torch.float32)
    # n(x) of signs is off by half the epsilon.
    assert torch.allclose(found.gain, dict(norm.named_parameters())["weight"] + offset, rtol=1e-5, atol=1e-5)
    assert found.gain.dtype == torch.float32
    assert found.centred == centred
    assert found.epsilon == 1e-5


@every_norm
@pytest.mark.parametrize("size", [3.0, 1e-2])
def test_a_norms_error_goes_back_as_autograd_leads_it(
    make: Callable[[], nn.Module], centred: bool, offset: float, size: float
) -> None:
    """Also for small inputs, where the epsilon counts."""
    norm, generator = random_norm(make), torch.Generator().manual_seed(4)
    x = (torch.randn(9, WIDTH, generator=generator) + 0.5) * size
    upstream = torch.randn(9, WIDTH, generator=generator)
    with torch.no_grad():
        found = NormJacobian.measured(norm, WIDTH, torch.float32).transposed(upstream, x)
    leaf = x.clone().requires_grad_()
    norm(leaf).backward(upstream)
    assert leaf.grad is not None
    assert close(found, leaf.grad, 3e-5)  # of the largest
