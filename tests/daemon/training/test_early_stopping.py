"""What the checks of a run's validation loss lead to, check by check."""

from math import inf, nan

import pytest

from pocketllm.daemon.training.early_stopping import DIVERGENCE, PATIENCE, EarlyStopping, Verdict
from pocketllm.engine.errors import TrainingDiverged

NEW_BEST, GO_ON, GO_BACK = Verdict


def verdicts(stopping: EarlyStopping, losses: list[float]) -> list[Verdict]:
    return [stopping.check(step, loss) for step, loss in enumerate(losses)]


def test_goes_back_after_so_many_checks_without_a_new_best() -> None:
    stopping = EarlyStopping()
    found = verdicts(stopping, [4.0, 3.0, 3.1, 2.0, *[2.0] * PATIENCE])
    assert found == [NEW_BEST, NEW_BEST, GO_ON, NEW_BEST, *[GO_ON] * (PATIENCE - 1), GO_BACK]
    assert (stopping.best_loss, stopping.best_step, stopping.looked_at) == (2.0, 3, 3)
    assert (stopping.halvings, stopping.share, stopping.ended) == (1, 0.5, False)


def test_a_new_best_does_not_undo_a_halving() -> None:
    stopping = EarlyStopping()
    verdicts(stopping, [1.0, *[1.01] * PATIENCE, 0.9])
    assert stopping.share == 0.5
    assert stopping.checks_since_best == 0


def test_a_loss_that_is_no_number_or_far_above_the_best_leads_back_at_once() -> None:
    """The best is 1, and the first is 4, of which DIVERGENCE is too far."""
    far = 1 + 4 * DIVERGENCE
    for loss, verdict in ((nan, GO_BACK), (inf, GO_BACK), (far + 0.01, GO_BACK), (far - 0.01, GO_ON)):
        assert verdicts(EarlyStopping(), [4.0, 1.0, loss])[-1] is verdict, loss


def test_without_a_best_there_is_nothing_to_go_back_to() -> None:
    for loss in (nan, inf):
        with pytest.raises(TrainingDiverged, match=f"The initial loss is {loss}"):
            EarlyStopping().check(0, loss)
