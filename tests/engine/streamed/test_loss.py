from itertools import product

import torch

from pocketllm.engine.streamed.loss import CHUNK_BYTES, CHUNK_ROWS, token_losses
from tests.support.models.dense_head import DenseHead, exact_losses, example

TOLERANCES = {torch.float32: 1e-6, torch.float64: 1e-12}


def test_equals_cross_entropy_on_whole_logits() -> None:
    sizes = (
        (1, 1),
        (1, 1000),
        (5, 7),
        (CHUNK_ROWS, 2500),  # columns do not divide the vocabulary
        (CHUNK_ROWS + 3, 130),  # rows in two parts
    )
    for (dtype, tolerance), bias, (count, vocabulary) in product(TOLERANCES.items(), (False, True), sizes):
        hidden, head, targets = example(count, vocabulary, dtype=dtype, bias=bias)
        losses, case = token_losses(hidden, head, targets), (dtype, bias, count, vocabulary)
        assert losses.dtype == dtype, case
        exact = exact_losses(hidden, head, targets)
        assert torch.allclose(losses.double(), exact, rtol=tolerance, atol=tolerance), case
        assert head.rows_read == vocabulary, case


def test_bf16_is_as_good_as_its_logits() -> None:
    for bias in (False, True):
        hidden, head, targets = example(300, 5000, dtype=torch.bfloat16, bias=bias)
        losses, exact = token_losses(hidden, head, targets), exact_losses(hidden, head, targets)
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
    hidden, head, targets = example(3, 200)
    head.weight[0], hidden[0] = 50, 50
    exact = exact_losses(hidden, head, targets)
    assert torch.allclose(token_losses(hidden, head, targets).double(), exact, rtol=1e-6)


def test_no_chunk_takes_more_memory_than_said() -> None:
    for count in (1, 64, CHUNK_ROWS):
        hidden, head, targets = example(count, 20_000, width=256)
        token_losses(hidden, head, targets)
        taken = head.most_rows * 4 * max(count, 256)
        assert taken <= CHUNK_BYTES < 2 * taken, count


def test_no_position_has_no_loss() -> None:
    for dtype in (torch.float32, torch.bfloat16):
        hidden, head, targets = example(0, 9, dtype=dtype)
        for label_ids in (None, (1, 2)):
            assert token_losses(hidden, head, targets, label_ids).shape == (0,)


def test_labels_are_a_vocabulary_of_their_own() -> None:
    labels = (40, 3, 17)
    targets = torch.tensor(labels)[torch.tensor([0, 1, 2, 2, 1, 0])]
    for dtype, bias in product((torch.float32, torch.bfloat16, torch.float64), (False, True)):
        hidden, head, _ = example(6, 50, dtype=dtype, bias=bias)
        losses = token_losses(hidden, head, targets, labels)
        assert losses.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert torch.allclose(losses.double(), exact_losses(hidden, head, targets, labels), atol=1e-5)
        assert head.rows_read == 0
