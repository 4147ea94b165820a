"""What a run's looks at text kept aside lead to, look by look."""

import json
from math import inf, nan

import pytest

from pocketllm.mezo.errors import TrainingDiverged
from pocketllm.mezo.patience import Patience, Verdict, Watch

TWO = Patience(looks=2, halvings=1, divergence=0.5)
NEW_BEST, GO_ON, GO_BACK, END = Verdict.NEW_BEST, Verdict.GO_ON, Verdict.GO_BACK, Verdict.END


def verdicts(watch: Watch, losses: list[float], patience: Patience = TWO) -> list[Verdict]:
    return [watch.look(step, loss, patience) for step, loss in enumerate(losses)]


def test_goes_back_after_so_many_looks_without_a_new_best() -> None:
    watch = Watch()
    assert verdicts(watch, [4.0, 3.0, 3.5, 2.0, 2.0, 2.1]) == [NEW_BEST, NEW_BEST, GO_ON, NEW_BEST, GO_ON, GO_BACK]
    assert (watch.best_loss, watch.best_step, watch.looked_at) == (2.0, 3, 3)
    assert (watch.halvings, watch.share, watch.ended) == (1, 0.5, False)


def test_ends_after_too_many_halvings() -> None:
    watch = Watch()
    assert verdicts(watch, [1.0, 1.1, 1.1, 1.1, 1.1]) == [NEW_BEST, GO_ON, GO_BACK, GO_ON, END]
    assert (watch.best_step, watch.ended) == (0, True)


def test_a_new_best_does_not_undo_a_halving() -> None:
    watch = Watch()
    verdicts(watch, [1.0, 1.1, 1.1, 0.9])
    assert watch.share == 0.5


@pytest.mark.parametrize(("loss", "verdict"), [(nan, GO_BACK), (inf, GO_BACK), (3.01, GO_BACK), (2.99, GO_ON)])
def test_a_loss_that_is_no_number_or_far_above_the_best_leads_back_at_once(loss: float, verdict: Verdict) -> None:
    """The best is 1 and the first is 4, of which half is too far."""
    assert verdicts(Watch(), [4.0, 1.0, loss])[-1] is verdict


def test_without_a_limit_no_number_is_too_far() -> None:
    assert verdicts(Watch(), [4.0, 1e30], Patience(looks=2, halvings=1))[-1] is GO_ON


@pytest.mark.parametrize("loss", [nan, inf])
def test_without_a_best_there_is_nothing_to_go_back_to(loss: float) -> None:
    with pytest.raises(TrainingDiverged, match=f"The loss is {loss} to begin with"):
        Watch().look(0, loss, TWO)


def test_comes_back_from_json() -> None:
    watch = Watch()
    verdicts(watch, [0.1 + 0.2, 0.1, 5.0])
    document = json.loads(json.dumps(watch.to_json(), allow_nan=False))
    assert Watch.from_json(document) == watch
