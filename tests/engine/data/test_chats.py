"""Chats as they are learned: the tokens that a served model reads and is to write, and nothing else."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from pocketllm.engine.data.batches import IGNORE_INDEX, Batches
from pocketllm.engine.data.chats import Messages, chat_prompt, turns
from pocketllm.engine.data.examples import Example, encode
from pocketllm.engine.errors import BadRequest
from pocketllm.engine.formats.tokenizer import eos_id
from tests.support.models.tiny_models import byte_tokenizer

CHAT: list[dict[str, Any]] = [
    {"role": "user", "content": "Tea?"},
    {"role": "assistant", "content": "Always."},
    {"role": "user", "content": "Milk?"},
    {"role": "assistant", "content": "Never.", "weight": 0},
    {"role": "user", "content": "Sugar?"},
    {"role": "assistant", "content": "Two lumps."},
]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerBase:
    """It has SmolLM2's special tokens and template."""
    return byte_tokenizer()


def rows(tokenizer: PreTrainedTokenizerBase, messages: Messages, length: int = 128) -> Batches:
    return encode([Example("", messages=messages)], tokenizer, length=length, eos=eos_id(tokenizer))


def wanted(tokenizer: PreTrainedTokenizerBase, buckets: Batches) -> list[str]:
    """What is learned of each row, as text."""
    found = []
    for bucket in buckets:
        for targets in bucket.targets:
            text = tokenizer.decode(targets[targets != IGNORE_INDEX].tolist())
            assert isinstance(text, str)
            found.append(text)
    return found


def test_each_answer_is_learned_up_to_the_end_of_its_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    """One whose weight is 0 is read, where it stands before another."""
    said = list(turns(tokenizer, CHAT))
    assert [answer for _, answer in said] == ["Always.<|im_end|>", "Two lumps.<|im_end|>"]
    assert said[0][0].endswith("user\nTea?<|im_end|>\n<|im_start|>assistant\n")
    assert "Never.<|im_end|>" in said[1][0]
    assert wanted(tokenizer, rows(tokenizer, CHAT)) == [answer for _, answer in said]


def test_the_prompt_is_the_one_that_is_answered(tokenizer: PreTrainedTokenizerBase) -> None:
    """To the token: what a chat is asked with when it is served is what stood before the answer."""
    [bucket] = rows(tokenizer, CHAT[:2])
    served = tokenizer(chat_prompt(tokenizer, CHAT[:1]), add_special_tokens=False)["input_ids"]
    first = int((bucket.targets[0] != IGNORE_INDEX).nonzero()[0])
    assert bucket.inputs[0, : first + 1].tolist() == served
    assert served[0] == tokenizer.convert_tokens_to_ids("<|im_start|>"), "no separator before it"


def test_a_long_answer_is_learned_in_parts(tokenizer: PreTrainedTokenizerBase) -> None:
    answer = " ".join(f"word{i}" for i in range(60))
    chat = [CHAT[0], {"role": "assistant", "content": answer}]
    parts = wanted(tokenizer, rows(tokenizer, chat, length=32))
    assert len(parts) > 3 and "".join(parts) == answer + "<|im_end|>"


def test_what_the_template_refuses_is_learned_all_the_same(tokenizer: PreTrainedTokenizerBase) -> None:
    """With the roles written before the messages: it shall not keep the other texts from being learned."""
    tokenizer.chat_template = "{{ raise_exception('roles must alternate') }}"
    plain = [("user: Tea?\nassistant:", " Always.\n")]
    assert list(turns(tokenizer, CHAT[:2])) == plain
    with pytest.raises(BadRequest, match="roles must alternate"):
        chat_prompt(tokenizer, CHAT[:1])
    tokenizer.chat_template = None
    assert list(turns(tokenizer, CHAT[:2])) == plain
    assert list(turns(tokenizer, CHAT[1:2])) == [("assistant:", " Always.\n")]


def test_a_template_that_rewrites_past_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]<think>{% endif %}"
    )
    assert list(turns(tokenizer, CHAT[:2])) == [("[user]Tea?[assistant]<think>", f"Always.{tokenizer.eos_token}")]


def test_nothing_to_answer_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(BadRequest, match="no messages"):
        chat_prompt(tokenizer, [])
