import pytest

from pocketllm.daemon.evaluation.promotion import Comparison, evaluate
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
    assert evaluate(before, now, [10] * len(before)).outcome is outcome


def test_weights_count_as_tokens() -> None:
    assert evaluate([2.0, 2.0], [1.0, 2.0], [30, 10]).overall.reduction == pytest.approx(0.75)


def test_standard_error_of_equal_weights_is_the_textbooks() -> None:
    # falls 0.1, 0.2, 0.3: standard deviation 0.1, over the root of 3
    assert evaluate([1, 1, 1], [0.9, 0.8, 0.7], [5, 5, 5]).overall.standard_error == pytest.approx(0.1 / 3**0.5)


def test_sentence_says_what_to_do_when_there_is_too_little() -> None:
    assert "add more text" in evaluate([4.0], [1.0], [10]).sentence


def test_the_base_and_old_text_are_judged_by_themselves() -> None:
    found = evaluate([4.0, 4.0, 3.0, 3.0], [3.0, 3.1, 2.9, 2.8], [5] * 4, old_blocks=(2,), base=[5.0, 5.0, 5.0, 5.0])
    assert found.outcome is Outcome.LEARNED
    assert found.old is not None and found.old.reduction == pytest.approx(0.15)
    assert found.base is not None and found.base.reduction == pytest.approx(2.05)
    assert "on old text it fell by 0.1500" in found.sentence and "against the base model it fell" in found.sentence
    assert found.to_json()["old"]["reduction"] == pytest.approx(0.15)


def test_what_forgets_old_text_is_worse_however_much_it_learns_of_the_new() -> None:
    before, now = [5.0] * 4 + [3.0] * 4, [3.0] * 4 + [3.3, 3.31, 3.29, 3.3]
    found = evaluate(before, now, [5] * 8, old_blocks=(4,))
    assert found.overall.better and found.forgets
    assert found.outcome is Outcome.WORSE
    assert "which is forgetting" in found.sentence


def test_old_text_that_is_worse_by_no_more_than_noise_is_not_forgotten() -> None:
    found = evaluate([5.0] * 4 + [3.0] * 4, [4.0] * 4 + [3.2, 2.9, 3.1, 2.9], [5] * 8, old_blocks=(4,))
    assert not found.forgets and found.outcome is Outcome.LEARNED


def test_a_single_old_block_says_nothing() -> None:
    found = evaluate([5.0, 5.0, 3.0], [4.0, 4.1, 9.0], [50, 50, 1], old_blocks=(1,))
    assert not found.forgets


def test_what_gets_better_of_one_jobs_text_does_not_hide_what_is_lost_of_anothers() -> None:
    before, now = [5.0] * 4 + [3.0] * 8, [4.0] * 4 + [2.0, 2.01, 1.99, 2.0] + [3.3, 3.31, 3.29, 3.3]
    assert not evaluate(before, now, [5] * 12, old_blocks=(8,)).forgets
    found = evaluate(before, now, [5] * 12, old_blocks=(4, 4))
    assert found.old is not None and found.old.better
    assert found.outcome is Outcome.WORSE
    assert "on one job's it rose by 0.3000" in found.sentence and "which is forgetting" in found.sentence


def test_blocks_that_repeat_what_was_learned_are_left_out_of_the_proof() -> None:
    before, now = [5.0] * 6, [1.0, 1.1, 0.9, 1.0, 5.1, 5.12]
    assert evaluate(before, now, [5] * 6).outcome is Outcome.LEARNED
    found = evaluate(before, now, [5] * 6, repeats=[True] * 4 + [False] * 2, base=[6.0] * 6)
    assert found.outcome is Outcome.WORSE and found.overall.reduction == pytest.approx(-0.11)
    assert found.base is not None and found.base.reduction == pytest.approx(0.89)
    assert "4 of 6 held-out blocks repeat what was learned, which was left out" in found.sentence


@pytest.mark.parametrize("repeats", [[True] * 4, [True, True, True, False]])
def test_where_all_but_a_block_repeats_there_is_no_proof(repeats: list[bool]) -> None:
    found = evaluate([5.0] * 4, [1.0, 1.1, 0.9, 1.0], [5] * 4, repeats=repeats)
    assert found.outcome is Outcome.NO_PROOF
    assert "repeat what was learned, which proves nothing" in found.sentence


def test_old_text_that_repeats_what_was_learned_can_still_be_forgotten() -> None:
    found = evaluate(
        [5.0] * 4 + [3.0] * 2, [4.0] * 4 + [3.3, 3.31], [5] * 6, old_blocks=(2,), repeats=[False] * 4 + [True] * 2
    )
    assert found.forgets and found.outcome is Outcome.WORSE


@pytest.mark.parametrize(("rise", "outcome"), [(0.4, Outcome.LEARNED), (0.6, Outcome.WORSE)])
def test_ordinary_text_may_become_harder_but_not_be_spoiled(rise: float, outcome: Outcome) -> None:
    ordinary = Comparison(before=5.0, now=5.0 + rise, standard_error=0.1)
    found = evaluate([4.0, 5.0, 3.0], [3.5, 4.5, 2.5], [5] * 3, ordinary=ordinary)
    assert found.outcome is outcome
    assert f"on ordinary text it rose by {rise:.4f}" in found.sentence
    assert ("more than the 0.5 that a first job may" in found.sentence) is (outcome is Outcome.WORSE)
    assert found.to_json()["ordinary"]["now"] == 5.0 + rise
