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


def test_the_base_and_old_text_are_judged_by_themselves() -> None:
    found = judge([4.0, 4.0, 3.0, 3.0], [3.0, 3.1, 2.9, 2.8], [5] * 4, old_blocks=2, base=[5.0, 5.0, 5.0, 5.0])
    assert found.outcome is Outcome.LEARNED
    assert found.old is not None and found.old.reduction == pytest.approx(0.15)
    assert found.base is not None and found.base.reduction == pytest.approx(2.05)
    assert "on old text it fell by 0.1500" in found.sentence and "against the base model it fell" in found.sentence
    assert found.to_json()["old"]["reduction"] == pytest.approx(0.15)


def test_what_forgets_old_text_is_worse_however_much_it_learns_of_the_new() -> None:
    before, now = [5.0] * 4 + [3.0] * 4, [3.0] * 4 + [3.3, 3.31, 3.29, 3.3]
    found = judge(before, now, [5] * 8, old_blocks=4)
    assert found.overall.better and found.forgets
    assert found.outcome is Outcome.WORSE
    assert "which is forgetting" in found.sentence


def test_old_text_that_is_worse_by_no_more_than_noise_is_not_forgotten() -> None:
    found = judge([5.0] * 4 + [3.0] * 4, [4.0] * 4 + [3.2, 2.9, 3.1, 2.9], [5] * 8, old_blocks=4)
    assert not found.forgets and found.outcome is Outcome.LEARNED


def test_a_single_old_block_says_nothing() -> None:
    found = judge([5.0, 5.0, 3.0], [4.0, 4.1, 9.0], [50, 50, 1], old_blocks=1)
    assert not found.forgets
