"""llama.cpp itself, from the package xllamacpp, with SmolLM2: its answers beside torch's."""

from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import pytest

from pocketllm.daemon.generation.backend import PACKAGE, Backend
from pocketllm.daemon.generation.llama.decoder import LlamaDecoder
from pocketllm.daemon.generation.llama.server import ServerPlan
from pocketllm.engine.formats.importer import default_source
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.formats.tokenizer import open_tokenizer
from pocketllm.engine.generate.sampling import sample
from pocketllm.engine.generate.streaming_text import Generation, Sampling, TokenSource, generate
from pocketllm.engine.streamed.model import LanguageModel
from tests.support.models.learning import some_adapter

pytestmark = pytest.mark.slow

PROMPTS = ("The capital of France is", "Once upon a time there was a", "Water boils at", "def add(a, b):\n    return")
GREEDY = Sampling(temperature=0, max_tokens=24)


class Both:
    """SmolLM2 in llama.cpp and in torch."""

    def __init__(self, model_folder: ModelFolder, base: Path, socket: Path) -> None:
        self.model_folder = model_folder
        self.tokenizer, self.decoding = open_tokenizer(model_folder)
        self.torch = LanguageModel(model_folder)
        plan = ServerPlan(program=PACKAGE, base=base, socket=socket, encode=self.tokens, threads=2, memory_bytes=10**9)
        self.llama = LlamaDecoder(model_folder, plan)

    def tokens(self, text: str) -> list[int]:
        """A text's tokens."""
        tokens: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        return tokens

    def by_llama(self, prompt: str, sampling: Sampling, adapter: Path | None = None) -> Generation:
        """llama.cpp's answer, and no other's."""

        def otherwise() -> TokenSource:
            raise AssertionError(self.llama.backend)

        return self._answer(partial(self.llama.tokens, adapter, otherwise), prompt, sampling)

    def by_torch(self, prompt: str, sampling: Sampling) -> Generation:
        """Torch's, at the point that the model is set to."""
        return self._answer(partial(sample, self.torch), prompt, sampling)

    def _answer(self, source: TokenSource, prompt: str, sampling: Sampling) -> Generation:
        generation = generate(source, self.decoding, [0, *self.tokens(prompt)], sampling)
        assert "".join(generation.pieces) == generation.text
        return generation


@pytest.fixture(scope="module")
def both(smollm2: ModelFolder, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Both]:
    made = Both(smollm2, Path(default_source()), tmp_path_factory.mktemp("socket") / "llama.sock")
    with closing(made.llama):
        yield made


def shared(one: str, other: str) -> int:
    """How many characters both begin with."""
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def test_the_likeliest_text_is_torchs(both: Both) -> None:
    """Rounding differs (packed weights times packed numbers, against bf16), so texts may part; not at once."""
    both.torch.set_parameters(None)
    lengths = []
    for prompt in PROMPTS:
        ours, theirs = both.by_torch(prompt, GREEDY), both.by_llama(prompt, GREEDY)
        lengths.append((shared(ours.text, theirs.text), len(ours.text)))
    assert both.llama.backend == Backend()
    assert all(same >= 8 for same, _ in lengths), lengths
    assert sum(same for same, _ in lengths) > sum(length for _, length in lengths) / 2, lengths


def test_the_same_seed_gives_the_same_text(both: Both) -> None:
    for prompt in PROMPTS:
        texts = [
            both.by_llama(prompt, Sampling(temperature=1.0, max_tokens=24, seed=seed)).text for seed in (0, 7, 0, 7)
        ]
        assert texts[:2] == texts[2:] and texts[0] != texts[1]


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_characters_of_many_tokens_are_whole_and_counted(both: Both, temperature: float) -> None:
    """llama.cpp does not send tokens that end within a character."""
    emoji = "\N{PARTY POPPER} \N{DOG FACE} " * 8
    for length in (10, 11, 12):  # ends within one, too
        sampling = Sampling(temperature=temperature, max_tokens=length, seed=5)
        answer = both.by_llama(emoji, sampling)
        assert answer.completion_tokens == length and answer.finish_reason == "length"
        assert answer.text.rstrip("\N{REPLACEMENT CHARACTER}").strip()
        assert "\N{REPLACEMENT CHARACTER}" not in answer.text[:-1]


def test_an_adapter_changes_the_text_as_it_does_in_torch(both: Both, tmp_path: Path) -> None:
    adapter = some_adapter(both.torch, targets=None, size=0.02)
    adapter.save(tmp_path / "adapter")
    both.torch.set_parameters(adapter)
    like_torch = like_base = 0
    for prompt in PROMPTS:
        base, ours = both.by_llama(prompt, GREEDY).text, both.by_torch(prompt, GREEDY).text
        theirs = both.by_llama(prompt, GREEDY, tmp_path / "adapter").text
        assert theirs != base
        like_torch, like_base = like_torch + shared(ours, theirs), like_base + shared(base, theirs)
    assert like_torch > 3 * like_base
