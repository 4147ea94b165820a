"""Measuring how a model's layers carry the stream: once a model, on nobody's text, before its first guided job."""

from collections.abc import Callable
from importlib.resources import files

import torch
from transformers import PreTrainedTokenizerBase

from pocketllm.mezo.batches import Blocks, pack
from pocketllm.mezo.carrying import NAME, measure_carrying, save_carrying
from pocketllm.mezo.decoding import separator
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import NativeModel
from pocketllm.mezo.stream import find_stream

#: Of the sample notes, which come with the program: so many blocks of so many tokens, each looked at once.
BLOCKS, TOKENS = 128, 64


def is_known(native: NativeModel) -> bool:
    """Whether it was measured of this model."""
    return (native.folder / NAME).is_file()


def neutral_text(tokenizer: PreTrainedTokenizerBase, count: int = BLOCKS) -> Blocks:
    """The sample notes, as often as it takes to fill so many blocks."""
    notes = files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8")
    ids = tokenizer(notes, add_special_tokens=False)["input_ids"]
    assert isinstance(ids, list)
    blocks = pack([ids], length=TOKENS, separator=separator(tokenizer))
    return blocks.repeat(-(-count // len(blocks)))[slice(0, count)]


@torch.inference_mode()
def measure_once(
    model: LanguageModel, blocks: Blocks, *, on_part: Callable[[int, int], None] = lambda _done, _of: None
) -> None:
    """Measure, and write it beside the model's weights. Raises UnsupportedModel where no guide is to be had."""
    stream = find_stream(model.any_lane())
    save_carrying(model.native.folder, measure_carrying(model, stream, blocks, on_part=on_part))
