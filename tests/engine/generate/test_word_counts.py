"""The owner's words, counted."""

import pytest

from pocketllm.engine.generate.word_counts import WordCounts


@pytest.fixture
def counts() -> WordCounts:
    made = WordCounts()
    made.add(["Anna rowed to Annaberg. To Annaberg to", "Annaberg", "Anna sang.", "Bert doesn't row; Anna does."])
    return made


def test_words_that_begin_so_by_how_often_they_were_written(counts: WordCounts) -> None:
    found, weight = counts.beginning("", "Ann")
    assert found == pytest.approx({"Anna": 1 / 2, "Annaberg": 1 / 2}) and 0 < weight < 0.5
    assert counts.beginning("", "Anna")[0] == {"Annaberg": 1}
    assert counts.beginning("", "doesn")[0] == {"doesn't": 1}


def test_the_word_before_decides_more(counts: WordCounts) -> None:
    found, _ = counts.beginning("to", "Ann")
    assert found["Annaberg"] > found["Anna"] > 0 and sum(found.values()) == pytest.approx(1)
    after, weight = counts.beginning("Anna", "")
    assert after.keys() == {"rowed", "sang", "does"} and weight > 0


def test_what_was_never_written_counts_nothing(counts: WordCounts) -> None:
    assert counts.beginning("Anna", "xyl") == ({}, 0.0)
    assert counts.beginning("nobody", "") == ({}, 0.0)
    assert WordCounts().beginning("", "") == ({}, 0.0)


def test_more_evidence_weighs_more() -> None:
    few, many = WordCounts(), WordCounts()
    few.add(["quick"])
    many.add(["quick"] * 1000)
    assert few.beginning("", "q")[1] < many.beginning("", "q")[1] <= 0.5
