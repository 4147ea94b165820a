"""When a guided run probes, and how long its steps are."""

from dataclasses import replace

import pytest

from tests.test_guided import PLAN


class TestPlan:
    @pytest.mark.parametrize(
        ("step", "remaining", "share"),
        [
            (1, 1.0, 0.1),
            (5, 1.0, 0.5),
            (10, 1.0, 1.0),
            (100, 0.5, 0.525),
            (100, 0.75, 0.05 + 0.95 * (1 + 0.5**0.5) / 2),
            (100, 0.0, 0.05),
            (2, 0.0, 0.01),
        ],
    )
    def test_lengths_grow_at_first_and_fall_to_the_end(self, step: int, remaining: float, share: float) -> None:
        assert replace(PLAN, warm_up=10).length_share(step, remaining) == pytest.approx(share)

    @pytest.mark.parametrize(
        ("probe_every", "probed"),
        [(40, [10, 20, 30, 40, 80, 120]), (8, [2, 4, 6, 8, *range(16, 130, 8)]), (3, [1, 2, 3, *range(6, 130, 3)])],
    )
    def test_probes_come_four_times_as_often_at_first(self, probe_every: int, probed: list[int]) -> None:
        plan = replace(PLAN, probe_every=probe_every)
        assert [step for step in range(1, 130) if plan.probes_at(step)] == probed
