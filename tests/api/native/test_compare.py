"""/compare: two answers, and what learning has made likelier, against transformers' own forward."""

from collections.abc import Iterator

import pytest
import torch

from tests.support.in_process_app import assert_problem
from tests.support.real_daemon import Daemon, running
from tests.support.tiny_models import byte_tokenizer, tiny_model_folder
from tests.support.trained_daemon import TrainedDaemon, theirs, trained_daemon

pytestmark = pytest.mark.slow

ASKED = {"prompt": "Wind west", "max_tokens": 8, "seed": 3}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedDaemon]:
    with trained_daemon(tmp_path_factory.mktemp("compare")) as made:
        yield made


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.smoke
def test_both_answers_and_what_has_become_likelier(trained: TrainedDaemon) -> None:
    answer = trained.daemon.client.post("/compare", json=ASKED | {"adapter": trained.adapter.name}).json()
    assert answer["adapter"] == trained.adapter.name
    assert answer["personal"]["completion_tokens"] == len(answer["tokens"]) == 8
    assert answer["base"]["text"] and answer["base"]["completion_tokens"] == 8
    prompt = [0, *byte_tokenizer()("Wind west")["input_ids"]]
    assert answer["prompt_tokens"] == len(prompt)
    given = [token["id"] for token in answer["tokens"]]
    assert byte_tokenizer().decode(given) == answer["personal"]["text"]
    for name, personal in (("personal", True), ("base", False)):
        wanted = theirs(trained, [*prompt, *given], personal=personal)[-8:]
        found = torch.tensor([token[name] for token in answer["tokens"]])
        assert float((found - wanted).abs().max()) < 1e-3
    gains = [token["personal"] - token["base"] for token in answer["tokens"]]
    assert answer["gained_nats_per_token"] == pytest.approx(sum(gains) / 8)


def test_the_same_seed_gives_the_same(trained: TrainedDaemon) -> None:
    requested = ASKED | {"adapter": trained.adapter.name}
    first, again = (trained.daemon.client.post("/compare", json=requested).json() for _ in range(2))
    assert first == again


@pytest.mark.parametrize("body", [{}, {"prompt": ""}, {"prompt": "x", "messages": []}, {"prompt": "x", "stream": True}])
def test_what_makes_no_sense(trained: TrainedDaemon, body: object) -> None:
    assert_problem(trained.daemon.client.post("/compare", json=body), 422, "invalid_value")


def test_before_anything_was_learned_there_is_nothing_to_compare(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("nothing") / "data"
    folder.mkdir()
    tiny_model_folder(folder / "models")
    with running(folder, MODEL="tiny") as daemon:
        assert_nothing(daemon)


def assert_nothing(daemon: Daemon) -> None:
    for adapter in ("serving", "base"):
        refused = daemon.client.post("/compare", json=ASKED | {"adapter": adapter})
        assert "pocketllm train" in assert_problem(refused, 409, "conflict")["detail"]
