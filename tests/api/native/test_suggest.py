"""/suggest with a real daemon and a tiny model: words, from which model, in time, and nothing kept.

The tiny model invents words, which are not offered behind an English text.
"""

from collections.abc import Iterator

import pytest

from tests.support.in_process_app import assert_problem
from tests.support.trained_daemon import TrainedDaemon, trained_daemon

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedDaemon]:
    with trained_daemon(tmp_path_factory.mktemp("suggest")) as made:
        loading = {"context": "Vinden ", "timeout_ms": 1}
        assert_problem(made.daemon.client.post("/suggest", json=loading), 503, "not_in_time")
        assert made.daemon.client.post("/suggest", json=loading | {"timeout_ms": 60_000}).json()["complete"]
        yield made


@pytest.mark.smoke
def test_words_of_either_model(trained: TrainedDaemon) -> None:
    answers = {}
    for adapter, name in (("base", None), (trained.adapter.name, trained.adapter.name)):
        answer = trained.daemon.client.post(
            "/suggest", json={"context": "Vinden", "prefix": "we", "adapter": adapter}
        ).json()
        assert (answer["model"], answer["adapter"]) == ("tiny", name)
        answers[adapter] = answer["suggestions"]
        assert len(answer["suggestions"]) == 3
        assert all(one["text"].startswith("we") and 0 < one["probability"] < 1 for one in answer["suggestions"])
    assert answers["base"] != answers[trained.adapter.name]


def test_the_space_before_a_prefix_makes_no_difference(trained: TrainedDaemon) -> None:
    ways = ({"context": "Vinden ", "prefix": "we"}, {"context": "Vinden", "prefix": "we"})
    found = [trained.daemon.client.post("/suggest", json=body).json()["suggestions"] for body in ways]
    assert found[0] == found[1]


def test_the_owners_words_are_offered_before_any_job_unless_they_are_not_wanted(trained: TrainedDaemon) -> None:
    client = trained.daemon.client
    assert client.post("/texts", json={"text": "Quillfeather rowed. " * 20, "source": "x"}).status_code == 201
    asked = {"context": "Then", "prefix": "Qui"}
    assert "Quillfeather" in [one["text"] for one in client.post("/suggest", json=asked).json()["suggestions"]]
    for without in ({"counts": False}, {"adapter": "base"}):
        found = client.post("/suggest", json=asked | without).json()["suggestions"]
        assert "Quillfeather" not in [one["text"] for one in found]
    found = client.post("/suggest", json=asked | {"adapter": "base", "counts": True}).json()["suggestions"]
    assert found[0]["text"] == "Quillfeather"


def test_phrases(trained: TrainedDaemon) -> None:
    answer = trained.daemon.client.post("/suggest", json={"context": "Vinden.\n", "n": 10, "words": 3}).json()
    assert len(answer["suggestions"]) == 10
    assert all(1 <= len(one["text"].split()) <= 3 for one in answer["suggestions"])


def test_nothing_typed_is_stored(trained: TrainedDaemon) -> None:
    secret = "beneath the zinc heron"
    assert trained.daemon.client.post("/suggest", json={"context": f"It lies {secret} "}).status_code == 200
    data = trained.adapter.parent.parent
    found = [path for path in data.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert not found


@pytest.mark.parametrize(
    "body",
    [{}, {"context": 1}, {"context": "a", "n": 0}, {"context": "a", "words": 6}, {"context": "a" * 100_001}],
)
def test_what_makes_no_sense(trained: TrainedDaemon, body: object) -> None:
    assert_problem(trained.daemon.client.post("/suggest", json=body), 422, "invalid_value")
