"""`pocketllm adapters` and `pocketllm rollback`, against a small real server."""

import json

from tests.support.commands import Run
from tests.support.daemon_double import DaemonDouble


def test_the_list_shows_the_chain_that_is_served(run: Run) -> None:
    _, *lines = run("adapters").stdout.splitlines()
    # The third was kept, not served; the second is served and goes back to the first.
    assert [line.split()[:2] for line in lines] == [["adapter-3", "adapter-2"], ["*", "adapter-2"], [".", "adapter-1"]]
    assert "the base model" in lines[2] and "3.5000 -> 3.2500" in lines[2] and "worse" in lines[0]


def test_an_empty_list_says_how_to_begin(run: Run, double: DaemonDouble) -> None:
    double.learned = False
    assert "`pocketllm train`" in run("adapters").stdout


def test_rolling_back_says_what_was_served_what_is_and_how_to_undo_it(run: Run, double: DaemonDouble) -> None:
    said = run("rollback").stdout
    assert said == (
        "From the next request on, tiny serves adapter-1 instead of adapter-2. "
        "To undo: `pocketllm adapters serve adapter-2`.\n"
    )
    assert double.bodies("POST", "/adapters/rollback") == [{}]


def test_rolling_back_another_model(run: Run, double: DaemonDouble) -> None:
    assert json.loads(run("rollback", "--model", "other", "--json").stdout)["model"] == "other"
    assert double.bodies("POST", "/adapters/rollback") == [{"model": "other"}]


def test_nothing_to_roll_back(run: Run, double: DaemonDouble) -> None:
    double.learned = False
    result = run("rollback")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "the base model tiny is already served" in result.stderr


def test_serving_one_by_its_id(run: Run) -> None:
    said = run("adapters", "serve", "adapter-3").stdout
    assert said == "From the next request on, tiny serves adapter-3 instead of the base model.\n"
