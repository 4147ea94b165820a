"""/classify with a real daemon and a tiny model: probabilities as transformers has them, and what is refused."""

import math
from collections.abc import Iterator

import pytest
import torch

from tests.support.in_process_app import assert_problem
from tests.support.tiny_models import byte_tokenizer
from tests.support.trained_daemon import TrainedDaemon, theirs, trained_daemon

pytestmark = pytest.mark.slow

TEXT = "Mug of tea"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedDaemon]:
    with trained_daemon(tmp_path_factory.mktemp("classify")) as made:
        yield made


def by_transformers(trained: TrainedDaemon, prompt: str, answers: list[list[int]]) -> list[float]:
    """The probability of each answer, of them alone, to the personal model."""
    before = [0, *byte_tokenizer()(prompt)["input_ids"]]
    logprobs = [theirs(trained, [*before, *answer], personal=True)[-len(answer) :].sum() for answer in answers]
    return torch.softmax(torch.stack(logprobs), 0).tolist()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_labels_are_read_as_they_are_learned(trained: TrainedDaemon) -> None:
    labels = ["work", "home"]
    asked = {"text": TEXT, "labels": labels, "adapter": trained.adapter.name}
    answer = trained.daemon.client.post("/classify", json=asked).json()
    ids = [[*byte_tokenizer()(f" {label}")["input_ids"], 0] for label in labels]
    wanted = dict(zip(labels, by_transformers(trained, f"{TEXT}\nLabel:", ids), strict=True))
    found = {one["label"]: one["probability"] for one in answer["labels"]}
    assert found == pytest.approx(wanted, abs=1e-3)
    assert math.isclose(sum(found.values()), 1) and answer["label"] == max(found, key=found.__getitem__)
    assert answer["adapter"] == trained.adapter.name


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_labels_with_words_are_read_in_their_template(trained: TrainedDaemon) -> None:
    asked = {"text": TEXT, "labels": ["positive", "negative"], "adapter": trained.adapter.name}
    answer = trained.daemon.client.post("/classify", json=asked).json()
    ids = [byte_tokenizer()(word)["input_ids"] for word in (" great", " terrible")]
    wanted = dict(zip(asked["labels"], by_transformers(trained, f"{TEXT} It was", ids), strict=True))
    assert {one["label"]: one["probability"] for one in answer["labels"]} == pytest.approx(wanted, abs=1e-3)


def test_without_labels_it_chooses_among_those_of_the_texts(trained: TrainedDaemon) -> None:
    client = trained.daemon.client
    assert_problem(client.post("/classify", json={"text": TEXT}), 422, "invalid_value")
    texts = [{"text": f"A {label} text", "label": label} for label in ("spam", "friends", "spam")]
    assert client.post("/texts", json=texts).status_code == 201
    answer = client.post("/classify", json={"text": TEXT}).json()
    assert {one["label"] for one in answer["labels"]} == {"spam", "friends"}
    app = client.post("/tokens", json={"name": "app", "scopes": ["generate"]}).json()["token"]
    headers = {"Authorization": f"Bearer {app}"}
    assert_problem(client.post("/classify", json={"text": TEXT}, headers=headers), 422, "invalid_value")
    named = {"text": TEXT, "labels": ["spam", "friends"]}
    assert client.post("/classify", json=named, headers=headers).json()["label"] == answer["label"]


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
