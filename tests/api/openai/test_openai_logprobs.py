"""Log-probabilities over HTTP against transformers' own forward, of the base model and of what was learned."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.support.daemon.in_process_app import assert_problem
from tests.support.daemon.trained_daemon import TrainedDaemon, theirs, trained_daemon
from tests.support.models.tiny_models import byte_tokenizer

pytestmark = pytest.mark.slow

BASE = "pocketllm:base"
#: Longer than what is scored at a time.
IDS = [(7 * number) % 250 + 3 for number in range(70)]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrainedDaemon]:
    with trained_daemon(tmp_path_factory.mktemp("logprobs")) as made:
        yield made


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("personal", [False, pytest.param(True, marks=pytest.mark.smoke)], ids=["base", "personal"])
def test_an_echoed_prompt_is_scored_as_transformers_does(trained: TrainedDaemon, personal: bool) -> None:
    name = trained.adapter.name if personal else BASE
    with trained.client as client:
        answer = client.completions.create(model=name, prompt=IDS, max_tokens=0, echo=True, logprobs=3)
    [choice] = answer.choices
    assert choice.text == byte_tokenizer().decode(IDS)
    assert choice.logprobs and choice.logprobs.token_logprobs and choice.logprobs.top_logprobs
    ours: list[Any] = [*choice.logprobs.token_logprobs]
    best: list[Any] = [*choice.logprobs.top_logprobs]
    assert len(ours) == len(IDS) and ours[0] is None and best[0] is None
    wanted = theirs(trained, IDS, personal=personal)
    assert float((torch.tensor(ours[1:]) - wanted).abs().max()) < 1e-3
    assert {len(likeliest) for likeliest in best[1:]} <= {1, 2, 3}
    assert answer.usage and (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (len(IDS), 0)
    if personal:
        assert float((wanted - theirs(trained, IDS, personal=False)).abs().max()) > 2e-3, "or nothing was learned"


def test_an_answer_is_scored_by_what_it_was_drawn_from(trained: TrainedDaemon) -> None:
    drawn = greedily(trained, IDS[:9], 6)
    with trained.client as client:
        answer = client.completions.create(
            model=BASE, prompt=IDS[:9], max_tokens=6, temperature=0, logprobs=2, echo=True
        )
    logprobs = answer.choices[0].logprobs
    assert logprobs and logprobs.tokens and logprobs.token_logprobs and logprobs.text_offset
    assert answer.choices[0].text == "".join(str(byte_tokenizer().decode(ids)) for ids in (IDS[:9], drawn))
    assert logprobs.text_offset == [sum(map(len, logprobs.tokens[:n])) for n in range(15)]
    wanted = theirs(trained, [*IDS[:9], *drawn], personal=False)
    assert float((torch.tensor(logprobs.token_logprobs[1:]) - wanted).abs().max()) < 1e-3
    likeliest: list[Any] = [*(logprobs.top_logprobs or ())]
    for best, logprob in zip(likeliest[9:], logprobs.token_logprobs[9:], strict=True):
        assert max(best.values()) == logprob, "the greediest answer is the likeliest token each time"


@torch.inference_mode()
def greedily(trained: TrainedDaemon, ids: list[int], count: int) -> list[int]:
    """The likeliest tokens after these, by transformers."""
    model = AutoModelForCausalLM.from_pretrained(trained.source, dtype=torch.float32).eval()
    given = list(ids)
    for _ in range(count):
        given.append(int(model(torch.tensor([given])).logits[0, -1].argmax()))
    assert not set(given[len(ids) :]) & {0, 2}, "none of them ends the answer"
    return given[len(ids) :]


def test_a_prompt_in_words_is_scored_as_by_transformers(trained: TrainedDaemon) -> None:
    with trained.client as client:
        answer = client.completions.create(model=BASE, prompt=["Mug", "A"], max_tokens=0, echo=True, logprobs=0)
    first, second = (choice.logprobs for choice in answer.choices)
    assert first and second and first.tokens == ["M", "u", "g"] and second.tokens == ["A"]
    unknown, *known = list[float | None](first.token_logprobs or ())
    assert unknown is None
    wanted = theirs(trained, byte_tokenizer()("Mug")["input_ids"], personal=False)
    assert float((torch.tensor(known) - wanted).abs().max()) < 1e-3
    assert answer.usage and answer.usage.prompt_tokens == 4


def test_a_stop_string_ends_the_scores_too(trained: TrainedDaemon) -> None:
    given = {"model": BASE, "prompt": "Mug", "max_tokens": 12, "seed": 4, "logprobs": 0}
    whole = trained.daemon.client.post("/v1/completions", json=given).json()["choices"][0]
    stop = whole["text"][5:7]
    cut = trained.daemon.client.post("/v1/completions", json=given | {"stop": stop}).json()["choices"][0]
    assert cut["finish_reason"] == "stop" and stop not in cut["text"]
    count = len(cut["logprobs"]["tokens"])
    assert 0 < count < 12 and cut["logprobs"]["tokens"] == whole["logprobs"]["tokens"][:count]


def test_several_prompts_in_token_ids_and_tokens_that_this_model_has_not(trained: TrainedDaemon) -> None:
    given = {"model": BASE, "max_tokens": 1}
    several = trained.daemon.client.post("/v1/completions", json=given | {"prompt": [IDS[:4], IDS[4:9]]}).json()
    assert len(several["choices"]) == 2 and several["usage"]["prompt_tokens"] == 9
    unknown = trained.daemon.client.post("/v1/completions", json=given | {"prompt": [5, 100_000]})
    assert "100000 is not a token of this model" in assert_problem(unknown, 422, "bad_request")["detail"]


def test_in_a_stream_there_are_no_scores_and_it_says_so(trained: TrainedDaemon) -> None:
    given = {"model": BASE, "prompt": "Mug", "max_tokens": 2, "logprobs": 1, "stream": True}
    assert "logprobs is ignored in a stream" in trained.daemon.client.post("/v1/completions", json=given).text
