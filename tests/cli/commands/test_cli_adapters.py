"""`pocketllm adapters` and `pocketllm rollback`, against the real application."""

from pocketllm.storage.tables import Outcome
from tests.support.daemon.commands import Run
from tests.support.daemon.served import Served


def test_the_list_shows_which_is_served_and_what_each_started_from(run: Run, served: Served) -> None:
    assert "`pocketllm train`" in run("adapters").stdout
    first, second, third = served.learn(), served.learn(), served.learn(Outcome.WORSE)
    _, *lines = run("adapters").stdout.splitlines()
    # The third was kept, not served; the second is served and goes back to the first.
    assert [line.split()[:3] for line in lines[:2]] == [[third, "no", second], [second, "yes", first]]
    assert "the base model" in lines[2] and "3.5000 -> 3.2500" in lines[2] and "worse" in lines[0]


def test_rolling_back_says_what_was_served_what_is_and_how_to_undo_it(run: Run, served: Served) -> None:
    first, second = served.learn(), served.learn()
    assert run("rollback").stdout == (
        f"From the next request on, tiny serves {first} instead of {second}. "
        f"To undo: `pocketllm adapters serve {second}`.\n"
    )
    assert run.json("rollback", "--model", "tiny")["serving"] is None
    assert "the base model tiny is already served" in run.refused("rollback")
    assert "the base model other is already served" in run.refused("rollback", "--model", "other")
    assert run("adapters", "serve", second).stdout == (
        f"From the next request on, tiny serves {second} instead of the base model.\n"
    )
