"""`pocketllm suggest`: the share of each word, and what it is from."""


from tests.support.daemon.commands import Run
from tests.support.daemon.served import Served


def test_the_share_of_what_begins_as_typed_is_shown(run: Run, served: Served) -> None:
    result = run("suggest", "Happy birth")
    assert result.stdout == " 91.0%  day\n"
    assert run.json("suggest", "Happy birth")["replaces"] == 0


def test_it_says_what_the_words_are_from(run: Run, served: Served) -> None:
    assert run("suggest", "x").stderr == "From the base model and your words, without an adapter.\n"
    assert run("suggest", "x", "--base").stderr == "From the base model, without an adapter.\n"
    served.learn()
    assert run("suggest", "x").stderr == ""
