"""The tasks of GLUE and SuperGLUE that bench.tasks knows, as prompts (MeZO, arXiv 2305.17333, appendix E.2)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from pocketllm.engine.data.batches import IGNORE_INDEX, Batches
from pocketllm.engine.data.examples import Row, bucketed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

#: Words of a BoolQ passage that are read; behind them stands the question.
_PASSAGE_WORDS = 120


class Labelled(NamedTuple):
    """A text and its label, which is the target."""

    text: str
    label: str


@dataclass(frozen=True, kw_only=True)
class Task:
    """A folder's files, and how their rows are read."""

    training: str = "train.jsonl"  #: file with the examples to learn from
    dev: str = "val.jsonl"  #: and with those to measure with
    tokens: int = 256  #: of a block; longer texts are cut
    text: Callable[[Mapping[str, Any]], str]  #: of a row, without the answer
    behind: str = " "  #: what stands behind the text, in front of the label's word
    words: Mapping[str, str]  #: label as the files write it -> its word, with a space before it one token

    def examples(self, folder: Path, *, dev: bool) -> list[Labelled]:
        """The rows of a file. Raises SystemExit when it cannot be read."""
        file = folder / (self.dev if dev else self.training)
        try:
            with file.open(encoding="utf-8", newline="") as lines:
                rows: Iterable[Mapping[str, Any]] = csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE)
                if file.suffix == ".jsonl":
                    rows = map(json.loads, lines)
                return [Labelled(self.text(row), str(row["label"])) for row in rows if str(row["label"]) in self.words]
        except (OSError, ValueError, KeyError) as error:
            raise SystemExit(f"{file} cannot be read: {error!r}. --data names a folder with it.") from error

    def encode(self, examples: Sequence[Labelled], tokenizer: PreTrainedTokenizerBase, eos: int) -> Batches:
        """The examples as blocks whose last token's successor is the label's word: a softmax over these words only."""

        def ids_of(text: str) -> list[int]:
            ids: list[int] = tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
            return ids

        words = {label: ids_of(f" {word}") for label, word in self.words.items()}
        assert all(len(ids) == 1 for ids in words.values()), f"words of several tokens: {words}"
        behind, rows = ids_of(self.behind), []
        for example in examples:
            ids = [eos, *ids_of(example.text)[: self.tokens - 1 - len(behind)], *behind]
            targets = np.full(len(ids), IGNORE_INDEX, dtype=np.int64)
            targets[-1] = words[example.label][0]
            rows.append(Row(np.array(ids, dtype=np.int64), targets))
        label_ids = tuple(words[label][0] for label in sorted(words))
        return tuple(bucketed(rows, length=self.tokens, pad=eos, label_ids=label_ids))


def _boolq(row: Mapping[str, Any]) -> str:
    return f"{' '.join(row['passage'].split()[:_PASSAGE_WORDS])}\n{row['question']}? Yes or No?"


#: By the name of the folder, in small letters.
TASKS: Mapping[str, Task] = {
    "sst2": Task(
        training="train.tsv",
        dev="dev.tsv",
        tokens=128,
        text=lambda row: row["sentence"].strip(),
        behind=" It was ",
        words={"1": "great", "0": "terrible"},
    ),
    "rte": Task(
        text=lambda row: f'{row["premise"]}\nDoes this mean that "{row["hypothesis"]}" is true? Yes or No?',
        words={"entailment": "Yes", "not_entailment": "No"},
    ),
    "cb": Task(
        text=lambda row: f'Suppose {row["premise"]} Can we infer that "{row["hypothesis"]}"? Yes, No, or Maybe?',
        words={"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"},
    ),
    "boolq": Task(text=_boolq, words={"True": "Yes", "False": "No"}),
}


def name_of(folder: Path) -> str:
    """The name of the task in a folder. Raises SystemExit for one that is not known."""
    name = folder.resolve().name.lower().replace("-", "")
    if name not in TASKS:
        raise SystemExit(f"The folder {folder.name!r} is none of these tasks: {', '.join(TASKS)}. Rename it.")
    return name
