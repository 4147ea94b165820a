import pytest

from pocketllm.daemon.publishing import judge
from pocketllm.storage.tables import Outcome


@pytest.mark.parametrize(
    ("before", "now", "outcome"),
    [
        ([4.0, 5.0, 3.0], [3.5, 4.5, 2.5], Outcome.LEARNED),  # every block better by the same
        ([4.0, 5.0, 3.0], [4.5, 5.5, 3.5], Outcome.WORSE),  # by the same everywhere
        ([4.0, 5.0, 3.0], [4.0, 5.0, 3.0], Outcome.NO_PROOF),  # the same
        ([4.0, 5.0, 3.0], [3.0, 5.9, 2.95], Outcome.NO_PROOF),  # better by less than the noise
        ([4.0, 9.0, 1.0], [3.8, 8.9, 0.9], Outcome.LEARNED),  # pairing: how hard a block is does not matter
        ([4.0], [1.0], Outcome.NO_PROOF),  # one block says nothing about the spread
    ],
)
def test_outcomes(before: list[float], now: list[float], outcome: Outcome) -> None:
    assert judge(before, now, [10] * len(before)).outcome is outcome


def test_weights_count_as_tokens() -> None:
    assert judge([2.0, 2.0], [1.0, 2.0], [30, 10]).overall.reduction == pytest.approx(0.75)


def test_standard_error_of_equal_weights_is_the_textbooks() -> None:
    # falls 0.1, 0.2, 0.3: standard deviation 0.1, over the root of 3
    assert judge([1, 1, 1], [0.9, 0.8, 0.7], [5, 5, 5]).overall.standard_error == pytest.approx(0.1 / 3**0.5)


def test_sentence_says_what_to_do_when_there_is_too_little() -> None:
    assert "add more text" in judge([4.0], [1.0], [10]).sentence
