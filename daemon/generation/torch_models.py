"""The generator's models in torch, for what llama.cpp cannot do, or for everything without it."""

import os
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache, partial
from pathlib import Path

import torch

from pocketllm.engine.formats.model_folder import MANIFEST_NAME, ModelFolder, open_model_folder
from pocketllm.engine.formats.tokenizer import Decoding
from pocketllm.engine.generate.label_probe import QUESTION, text_features
from pocketllm.engine.generate.sampling import Scored, sample, score
from pocketllm.engine.generate.streaming_text import TokenSource
from pocketllm.engine.generate.suggestions import Suggester
from pocketllm.engine.generate.vocabulary import Dictionary, Vocabulary
from pocketllm.engine.params.lora import Adapter, load_adapter
from pocketllm.engine.streamed.model import LanguageModel


class TorchModels:
    """The base model, the last used adapter or full-parameter model, and the base model in fp32 once it was used."""

    def __init__(self, model_folder: ModelFolder, decoding: Decoding) -> None:
        """Build the base model. Raises UnsupportedModel or ModelFileError."""
        torch.set_num_threads(len(os.sched_getaffinity(0)))
        self._model_folder, self._decoding = model_folder, decoding
        self._base = LanguageModel(model_folder)
        self._load = lru_cache(maxsize=1)(_load)
        self._suggester = lru_cache(maxsize=1)(self._new_suggester)
        self._features: tuple[Path | None, dict[str, torch.Tensor]] = None, {}  #: of the last texts, by folder

    def at(self, folder: Path | None, *, exact: bool) -> LanguageModel:
        """The base model, with the adapter in this folder; or the full-parameter model in it.

        exact: compute in fp32, for scores: in bf16 log-probabilities are off by some hundredths.
        """
        used = None if folder is None else self._load(folder, torch.float32 if exact else None)
        if isinstance(used, LanguageModel):
            return used
        model = self._in_fp32 if exact else self._base
        model.set_parameters(used)
        return model

    def tokens(self, folder: Path | None) -> TokenSource:
        """The same as a source of tokens."""
        return partial(sample, self.at(folder, exact=False))

    def score(self, folder: Path | None, tokens: Sequence[int], alternatives: int) -> list[Scored]:
        """See engine.generate.sampling.score; in fp32."""
        return score(self.at(folder, exact=True), tokens, alternatives)

    def suggester(self, folder: Path | None) -> Suggester:
        """The same as a source of next words, which remembers the last context."""
        self.at(folder, exact=False)  # another request may have set the base model to another adapter
        return self._suggester(folder)

    def _new_suggester(self, folder: Path | None) -> Suggester:
        return Suggester(self.at(folder, exact=False), *self._words)

    @cached_property
    def _words(self) -> tuple[Vocabulary, Dictionary]:
        size = self._base.head.at(None).vocabulary
        return Vocabulary(self._decoding.tokenizer, size, self._decoding.stop_ids), Dictionary()

    def features(
        self, folder: Path | None, texts: Sequence[str], encode: Callable[[str], Sequence[int]]
    ) -> list[torch.Tensor]:
        """Each text's features for its label. The last texts' are remembered. encode: to tokens, after what
        every text begins with.
        """
        known = self._features[1] if self._features[0] == folder else {}
        new = [text for text in dict.fromkeys(texts) if text not in known]
        if new:
            found = text_features(
                self.at(folder, exact=False), [encode(text) for text in new], encode(QUESTION)[len(encode("")) :]
            )
            known |= dict(zip(new, found, strict=True))
        self._features = folder, {text: known[text] for text in texts}
        return [known[text] for text in texts]

    @cached_property
    def _in_fp32(self) -> LanguageModel:
        """The base model in fp32, on the same mapped weights."""
        return LanguageModel(self._model_folder, dtype=torch.float32)


def _load(folder: Path, dtype: torch.dtype | None) -> Adapter | LanguageModel:
    full = (folder / MANIFEST_NAME).exists()
    return LanguageModel(open_model_folder(folder), dtype=dtype) if full else load_adapter(folder)
