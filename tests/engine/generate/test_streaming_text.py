from functools import partial

import pytest
import torch

from pocketllm.engine.errors import BadRequest
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.formats.tokenizer import eos_id, open_tokenizer
from pocketllm.engine.generate.sampling import choose, sample
from pocketllm.engine.generate.streaming_text import Generation, Sampling, generate
from pocketllm.engine.streamed.model import LanguageModel


@pytest.fixture(scope="module")
def model(tiny: ModelFolder) -> LanguageModel:
    return LanguageModel(tiny)


def answer(model: LanguageModel, sampling: Sampling, prompt: str = "ab") -> tuple[Generation, list[str]]:
    tokenizer, decoding = open_tokenizer(model.folder)
    generation = generate(partial(sample, model), decoding, tokenizer(prompt)["input_ids"], sampling)
    return generation, list(generation.pieces)


def test_same_seed_same_text(model: LanguageModel) -> None:
    texts = [answer(model, Sampling(seed=seed, temperature=1.5, max_tokens=20))[0].text for seed in (0, 0, 1)]
    assert texts[0] == texts[1] != texts[2]


def test_pieces_make_up_the_text(model: LanguageModel) -> None:
    for seed in range(5):  # random bytes: many unfinished characters
        generation, pieces = answer(model, Sampling(seed=seed, temperature=2.0, max_tokens=40))
        assert "".join(pieces) == generation.text
        assert generation.completion_tokens <= 40 and generation.prompt_tokens == 2


def test_stop_string_ends_the_text_before_it(model: LanguageModel) -> None:
    whole = answer(model, Sampling(seed=3, temperature=1.0, max_tokens=30))[0].text
    stop = whole[5:7]
    generation, pieces = answer(model, Sampling(seed=3, temperature=1.0, max_tokens=30, stop=(stop,)))
    assert generation.text == whole[: whole.index(stop)] == "".join(pieces)
    assert generation.finish_reason == "stop"


def test_a_stop_string_may_go_on_with_a_character_of_several_tokens(model: LanguageModel) -> None:
    tokenizer, decoding = open_tokenizer(model.folder)
    tokens = tokenizer("xaé.")["input_ids"]
    assert len(tokens) == 5
    generation = generate(lambda *_: (token for token in tokens), decoding, [5], Sampling(stop=("aé",)))
    assert list(generation.pieces) == ["x"] and generation.tokens == tokens[:1]


def test_cancelling_ends_it(model: LanguageModel) -> None:
    decoding = open_tokenizer(model.folder)[1]
    generation = generate(partial(sample, model), decoding, [5, 6], Sampling(max_tokens=100), cancelled=lambda: True)
    assert list(generation.pieces) == []


def test_an_empty_or_too_long_prompt_is_refused(model: LanguageModel) -> None:
    limit = model.network.config.max_position_embeddings
    for prompt, problem in (([], "empty"), ([5] * limit, f"context of {limit}")):
        with pytest.raises(BadRequest, match=problem):
            generate(partial(sample, model), open_tokenizer(model.folder)[1], prompt, Sampling(max_tokens=1))


def test_separator_is_the_end_of_text_token(model: LanguageModel) -> None:
    tokenizer = model.folder.tokenizer()
    assert tokenizer.convert_ids_to_tokens(eos_id(tokenizer)) == "<|endoftext|>"


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.tensor([0.0, 3.0, 1.0])
    assert choose(logits, Sampling(temperature=0), torch.Generator()) == 1


def test_top_p_keeps_the_smallest_set_that_reaches_it() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()
    generator = torch.Generator().manual_seed(0)
    for top_p, kept in ((0.01, {0}), (0.5, {0}), (0.6, {0, 1}), (0.9, {0, 1, 2}), (1.0, {0, 1, 2, 3})):
        seen = {choose(logits, Sampling(temperature=1, top_p=top_p), generator) for _ in range(300)}
        assert seen == kept, top_p
