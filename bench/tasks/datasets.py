"""The tasks of GLUE and SuperGLUE that bench.tasks knows, as prompts (MeZO, arXiv 2305.17333, appendix E.2)."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.tasks.labelled import Labelled, Template

_PATTERN = "{text} {label}"
#: Words of a BoolQ passage that are read; behind them stands the question.
_PASSAGE_WORDS = 120


@dataclass(frozen=True, kw_only=True)
class Task:
    """A folder's files, and how their rows are read."""

    training: str  #: file with the examples to learn from
    dev: str  #: and with those to measure with
    tokens: int  #: of a block; longer texts are cut
    template: Template
    text: Callable[[Mapping[str, Any]], str]  #: of a row, without the answer
    labels: Mapping[str, str]  #: as the files write them -> as the template does

    def examples(self, folder: Path, *, dev: bool) -> list[Labelled]:
        """The rows of a file. Raises SystemExit when it cannot be read."""
        file = folder / (self.dev if dev else self.training)
        try:
            return [
                Labelled(text=self.text(row), label=self.labels[str(row["label"])])
                for row in _rows(file)
                if str(row["label"]) in self.labels
            ]
        except (OSError, ValueError, KeyError) as error:
            raise SystemExit(f"{file} cannot be read: {error!r}. --data names a folder with it.") from error


def _rows(file: Path) -> list[Mapping[str, Any]]:
    with file.open(encoding="utf-8", newline="") as lines:
        if file.suffix == ".jsonl":
            return [json.loads(line) for line in lines]
        return list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))


def _superglue(text: Callable[[Mapping[str, Any]], str], words: Mapping[str, str]) -> Task:
    """words: label in the files -> its answer."""
    template = Template(pattern=_PATTERN, words={label: f" {word}" for label, word in words.items()})
    labels = {label: label for label in words}
    return Task(training="train.jsonl", dev="val.jsonl", tokens=256, template=template, text=text, labels=labels)


def _boolq(row: Mapping[str, Any]) -> str:
    return f"{' '.join(row['passage'].split()[:_PASSAGE_WORDS])}\n{row['question']}? Yes or No?"


#: By the name of the folder, in small letters.
TASKS: Mapping[str, Task] = {
    "sst2": Task(
        training="train.tsv",
        dev="dev.tsv",
        tokens=128,
        template=Template(pattern="{text} It was {label}", words={"positive": " great", "negative": " terrible"}),
        text=lambda row: row["sentence"].strip(),
        labels={"0": "negative", "1": "positive"},
    ),
    "rte": _superglue(
        lambda row: f'{row["premise"]}\nDoes this mean that "{row["hypothesis"]}" is true? Yes or No?',
        {"entailment": "Yes", "not_entailment": "No"},
    ),
    "cb": _superglue(
        lambda row: f'Suppose {row["premise"]} Can we infer that "{row["hypothesis"]}"? Yes, No, or Maybe?',
        {"entailment": "Yes", "contradiction": "No", "neutral": "Maybe"},
    ),
    "boolq": _superglue(_boolq, {"True": "Yes", "False": "No"}),
}


def task_of(folder: Path) -> Task:
    """The task in a folder. Raises SystemExit for one that is not known."""
    return TASKS[name_of(folder)]


def name_of(folder: Path) -> str:
    """The name of the task in a folder, likewise."""
    name = folder.resolve().name.lower().replace("-", "")
    if name not in TASKS:
        raise SystemExit(f"The folder {folder.name!r} is none of these tasks: {', '.join(TASKS)}. Rename it.")
    return name
