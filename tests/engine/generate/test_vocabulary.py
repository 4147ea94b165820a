"""The dictionary of English words."""

import pytest

from pocketllm.engine.generate.vocabulary import Dictionary


@pytest.fixture(scope="module")
def dictionary() -> Dictionary:
    return Dictionary()


def test_words_and_beginnings(dictionary: Dictionary) -> None:
    for word in ("a", "swimmer", "Swimmer", "LONDON", "don’t", "swimmer's", "1664", "zulu"):  # noqa: RUF001
        assert word in dictionary and dictionary.begins(word), word
    for word in ("", "'s", "swimmerest", "lookin’s", "zzzz", "\n", "a\nb", "\U0010ffff"):  # noqa: RUF001
        assert word not in dictionary, word
    assert all(dictionary.begins(letters) for letters in ("", "Swim", "swimmer’", "zul"))  # noqa: RUF001
    assert not any(dictionary.begins(letters) for letters in ("swimmx", "qqqq", "\U0010ffff"))


def test_the_language_of_a_text(dictionary: Dictionary) -> None:
    texts = {
        "": True,
        "2nd. ": True,
        "We rowed up to the weir, and Quillfeather fell in.": True,
        "Als ich nach Hause kam, war die Tür offen.": False,
        "Hier soir, en rentrant à la maison, la porte était ouverte.": False,
        "När jag kom hem i går kväll var dörren öppen. " * 20 + "Then I went to bed. " * 30: True,
    }
    assert {text: dictionary.is_of(text) for text in texts} == texts
