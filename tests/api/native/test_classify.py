"""/classify with a real daemon and a tiny model: what it needs, what it says, and what is refused."""

import math
from collections.abc import Iterator

import pytest

from tests.support.in_process_app import assert_problem
from tests.support.trained_daemon import TrainedDaemon, trained_daemon

pytestmark = pytest.mark.slow

TEXT = "qqqq qqqq"
EXAMPLES = [
    {"text": f"{letter * 4} {letter * size}", "label": label}
    for label, letter in (("queue", "q"), ("zoo", "z"))
    for size in (4, 5, 6)
]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedDaemon]:
    with trained_daemon(tmp_path_factory.mktemp("classify")) as made:
        yield made


@pytest.mark.smoke
def test_three_examples_of_two_labels_are_enough_and_no_job_is_needed(trained: TrainedDaemon) -> None:
    client = trained.daemon.client
    waiting = client.get("/status").json()["texts"]["new_words"]
    refused = client.post("/classify", json={"text": TEXT})
    assert_problem(refused, 409, "too_few_examples")
    assert client.post("/texts", json=EXAMPLES[:5]).status_code == 201
    refused = client.post("/classify", json={"text": TEXT, "labels": ["queue", "zoo"]})
    assert_problem(refused, 409, "too_few_examples")
    assert "3 of 'queue', 2 of 'zoo'" in refused.json()["detail"]
    assert client.post("/texts", json=EXAMPLES).status_code == 201
    answer = client.post("/classify", json={"text": TEXT}).json()
    assert (answer["label"], answer["examples"]) == ("queue", 6)
    assert math.isclose(sum(one["probability"] for one in answer["labels"]), 1)
    assert [one["label"] for one in answer["labels"]] == ["queue", "zoo"] and 0 <= answer["accuracy"] <= 1
    assert client.post("/classify", json={"text": TEXT}).json() == answer
    of_base = client.post("/classify", json={"text": TEXT, "adapter": "base"}).json()
    assert of_base["adapter"] is None and of_base["labels"] != answer["labels"]
    assert client.get("/status").json()["texts"]["new_words"] == waiting

    app = client.post("/tokens", json={"name": "app", "scopes": ["generate"]}).json()["token"]
    headers = {"Authorization": f"Bearer {app}"}
    assert_problem(client.post("/classify", json={"text": TEXT}, headers=headers), 422, "invalid_value")
    named = {"text": TEXT, "labels": ["zoo", "queue"]}
    assert client.post("/classify", json=named, headers=headers).json() == answer


@pytest.mark.parametrize(
    "body",
    [
        {"text": TEXT, "labels": ["one"]},
        {"text": TEXT, "labels": ["one", "one "]},
        {"text": TEXT, "labels": ["one", " "]},
        {"text": TEXT, "labels": [f"label {number}" for number in range(51)]},
        {"text": TEXT, "labels": ["one", "w" * 101]},
        {"labels": ["one", "two"]},
    ],
)
def test_what_makes_no_sense(trained: TrainedDaemon, body: object) -> None:
    assert_problem(trained.daemon.client.post("/classify", json=body), 422, "invalid_value")
