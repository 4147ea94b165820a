"""Samples of the base model: drawn once, whole after a kill, and with no target where nothing was sampled."""

from pathlib import Path

import pytest
import torch

from pocketllm.daemon.training.rehearsal import (
    AT_ONCE,
    FILE_NAME,
    MAX_SAMPLES,
    TOKENS,
    Prompt,
    prompts,
    rehearsal_blocks,
)
from pocketllm.engine.data.batches import IGNORE_INDEX
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.formats.tokenizer import eos_id, start_ids
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.learning import some_adapter
from tests.support.models.tiny_models import beginning_with, byte_tokenizer, tiny_model_folder

PROMPTS = [Prompt([0], is_kept=False), Prompt([1, 70, 71], is_kept=True)]
#: That are wanted: of the last part not all, and it is drawn whole.
COUNT, DRAWN = 3 * AT_ONCE + 1, 4 * AT_ONCE


@pytest.fixture
def model(tmp_path: Path) -> LanguageModel:
    return LanguageModel(open_model_folder(tiny_model_folder(tmp_path, dtype="float32")))


@torch.no_grad()
def test_samples_are_drawn_once_of_the_base_and_predict_what_was_sampled(model: LanguageModel) -> None:
    model.set_parameters(some_adapter(model))
    said: list[tuple[int, int]] = []

    def say(done: int, count: int) -> None:
        said.append((done, count))

    blocks = rehearsal_blocks(model, PROMPTS, count=COUNT, on_progress=say)
    assert blocks.inputs.shape == blocks.targets.shape == (DRAWN, TOKENS)
    assert said == [(count, DRAWN) for count in range(AT_ONCE, DRAWN + 1, AT_ONCE)]
    assert not (blocks.inputs[:AT_ONCE, 0] == 0).all()  # a text's sample begins anywhere, like the owner's blocks
    assert torch.equal(blocks.targets[:AT_ONCE, :-1], blocks.inputs[:AT_ONCE, 1:])
    chat = blocks[slice(AT_ONCE, 2 * AT_ONCE)]
    assert (chat.inputs[:, :3] == torch.tensor(PROMPTS[1].ids)).all()
    assert (chat.targets[:, :2] == IGNORE_INDEX).all()
    assert torch.equal(chat.targets[:, 2:-1], chat.inputs[:, 3:])
    again = rehearsal_blocks(model, PROMPTS, count=COUNT, on_progress=say)
    fewer = rehearsal_blocks(model, PROMPTS, count=1, on_progress=say)
    assert torch.equal(again.inputs, blocks.inputs) and torch.equal(fewer.inputs, blocks.inputs[:AT_ONCE])
    assert len(said) == DRAWN // AT_ONCE
    more = rehearsal_blocks(model, PROMPTS, count=10**6, on_progress=say)
    assert len(more) == MAX_SAMPLES and torch.equal(more.inputs[:DRAWN], blocks.inputs)


@torch.no_grad()
def test_a_kill_costs_a_part_and_changes_nothing(model: LanguageModel) -> None:
    class Killed(Exception):
        pass

    def die(count: int, _: int) -> None:
        if count == 2 * AT_ONCE:
            raise Killed

    with pytest.raises(Killed):
        rehearsal_blocks(model, PROMPTS, count=COUNT, on_progress=die)
    resumed = rehearsal_blocks(model, PROMPTS, count=COUNT, on_progress=lambda *_: None)
    file = model.folder.path / FILE_NAME
    for damage in (file.unlink, lambda: file.write_bytes(file.read_bytes()[:-1])):
        damage()
        anew = rehearsal_blocks(model, PROMPTS, count=COUNT, on_progress=lambda *_: None)
        assert torch.equal(anew.inputs, resumed.inputs)


@torch.no_grad()
def test_fewer_samples_at_once_are_the_same_samples(model: LanguageModel) -> None:
    """As the tiny model computes them, in fp32; other products may differ in the last bit."""
    drawn = []
    for at_once in (AT_ONCE, AT_ONCE // 4, 1):
        blocks = rehearsal_blocks(model, PROMPTS, count=1, on_progress=lambda *_: None, at_once=at_once)
        drawn.append(blocks.inputs)
        (model.folder.path / FILE_NAME).unlink()
    assert (drawn[0] == drawn[1]).float().mean() > 0.9 and (drawn[0] == drawn[2]).float().mean() > 0.9


def test_a_model_that_chats_has_an_opening_for_it() -> None:
    plain, chat = prompts(byte_tokenizer())
    assert plain == Prompt([eos_id(byte_tokenizer())], is_kept=False)
    assert 1 < len(chat.ids) <= TOKENS // 2 and chat.is_kept
    tokenizer = byte_tokenizer()
    for template in ("{{ raise_exception('no single messages') }}", "{{ messages[0]['content'] }}"):
        tokenizer.chat_template = template
        assert len(prompts(tokenizer)) == 1, template


def test_what_every_text_begins_with_stays_before_a_sample(model: LanguageModel) -> None:
    tokenizer = beginning_with("<|im_start|>")
    plain = prompts(tokenizer)[0]
    assert plain == Prompt(list(start_ids(tokenizer)), is_kept=True) and len(plain.ids) == 1
    blocks = rehearsal_blocks(model, [plain], count=1, on_progress=lambda *_: None)
    assert (blocks.inputs[:, 0] == plain.ids[0]).all()
    assert torch.equal(blocks.targets[:, :-1], blocks.inputs[:, 1:])
