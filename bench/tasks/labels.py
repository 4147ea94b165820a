"""Labels of the owner's own from 64 examples, by the daemon.

python -m bench.tasks.labels --data DIR --text FILE FILE [--seeds 3] [--quick]

Two tasks: that in DIR, a folder as for bench.tasks, and which of two writers has written a sentence; each FILE is a
writer's, texts with blank lines between. A daemon first learns ten thousand words of the first writer by a default job,
none of which it is asked about. For each task and seed it gets 64 examples with labels, and POST /classify says for 300
other sentences which label they have, by the features of the base model and by those of what is served. The peer is
logistic regression on the base model's features, from the same examples. first_answer_s is from the last example to
the first answer, whichever took longest. labels_over_probe is that of the worse task; the other values are means.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING

from bench.common import measured
from bench.common.child import command
from bench.common.harness import Limit, finish, parser, progress, start
from bench.common.shapes import learner, models_folder
from bench.common.world import daemon_on
from bench.common.writers import learned, some_words, texts_of
from bench.tasks.datasets import TASKS, Labelled, name_of
from bench.tasks.runs import sampled

if TYPE_CHECKING:
    from pocketllm.client import Client

LIMITS = {"labels_over_probe": Limit(at_least=1), "first_answer_s": Limit(at_most=5)}
_EXAMPLES, _DEV_ROWS, _LEARNED_WORDS = 64, 300, 10_000
_QUICK_DEV_ROWS, _QUICK_WORDS = 4, 300
#: Of a sentence, in characters.
_SHORTEST, _LONGEST = 40, 200
_WAYS = ("probe", "base", "personal")


def own_name(label: str) -> str:
    """The label as an owner would call it: no word of the task's."""
    return f"said {label}".replace("_", " ")


def write_writers(folder: Path, writers: Sequence[Sequence[str]], dev_rows: int) -> Path:
    """Write sentences of two writers as a task in SST-2's form, the first one's as positive; returns its folder."""
    draw, rows = random.Random(1), list[str]()
    for label, texts in zip((1, 0), writers, strict=True):
        sentences = [one for text in texts for one in re.split(r"(?<=[.;!?])\s+", " ".join(text.split()))]
        rows += [f"{one}\t{label}" for one in sentences if _SHORTEST <= len(one) <= _LONGEST]
    draw.shuffle(rows)
    made = folder / "sst2"
    made.mkdir()
    for name, some in (("dev.tsv", rows[:dev_rows]), ("train.tsv", rows[dev_rows:])):
        (made / name).write_text("\n".join(["sentence\tlabel", *some, ""]), encoding="utf-8")
    return made


def run(client: Client, model: Path, data: Path, served: str, seed: int, dev_rows: int) -> dict[str, float]:
    """The accuracy of each way with the examples that this seed draws, and the seconds until the first answer."""
    task = TASKS[name_of(data)]
    rows, dev = task.examples(data, dev=False), task.examples(data, dev=True)[:dev_rows]
    labels = sorted(task.words)
    per_class = _EXAMPLES // len(labels)
    examples = sampled(rows, seed, per_class)
    client.post(
        "texts", body=[{"text": row.text, "label": own_name(row.label), "source": "labels"} for row in examples]
    )
    began = time.perf_counter()
    client.post("classify", body={"text": dev[0].text, "labels": list(map(own_name, labels)), "adapter": served})
    seconds = time.perf_counter() - began
    names = [own_name(label) for label in labels]
    found = {
        "base": accuracy(client, "base", dev, names),
        "personal": accuracy(client, served, dev, names),
        "probe": probe(model, data, seed, per_class, dev_rows),
    }
    client.delete("texts", source="labels")
    return found | {"seconds": seconds}


def accuracy(client: Client, adapter: str, rows: Sequence[Labelled], names: Sequence[str]) -> float:
    """The share of rows of which the daemon says the right label."""
    asked = {"labels": list(names), "adapter": adapter}
    found = [client.post("classify", body={"text": row.text} | asked)["label"] for row in rows]
    return float(mean(label == own_name(row.label) for label, row in zip(found, rows, strict=True)))


def probe(folder: Path, data: Path, seed: int, per_class: int, dev_rows: int) -> float:
    """The accuracy of logistic regression on the base model's features."""
    work = {"folder": folder, "data": data, "seed": seed, "per_class": per_class, "dev_rows": dev_rows}
    run = command("bench.tasks.runs", "run", method="probe", **work)
    return float(measured.report_of(run, "The probe", timeout_seconds=600)["accuracy"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    dev_rows, words = (_QUICK_DEV_ROWS, _QUICK_WORDS) if options.quick else (_DEV_ROWS, _LEARNED_WORDS)
    first, second = map(texts_of, options.text)
    known = list(some_words(first, words))
    runs: dict[str, list[dict[str, float]]] = {}
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = learner(models, quick=options.quick).absolute()
        writers = write_writers(Path(scratch), (first[len(known) :], second), dev_rows)
        with daemon_on(Path(scratch) / "data", model) as client:
            served = learned(client, known)
            for name, data in ((options.data.name, options.data), ("writers", writers)):
                for seed in range(options.seeds):
                    found = run(client, model, data, served, seed, dev_rows)
                    progress(f"{name} {seed}: " + ", ".join(f"{way} {found[way]:.3f}" for way in _WAYS))
                    runs.setdefault(name, []).append(found)
    means = {name: {way: mean(one[way] for one in found) for way in _WAYS} for name, found in runs.items()}
    values: dict[str, float | None] = {
        "labels_over_probe": min(one["personal"] / one["probe"] for one in means.values()),
        "first_answer_s": max(one["seconds"] for found in runs.values() for one in found),
    }
    for way in _WAYS:
        values[f"labels_{way}"] = mean(one[way] for one in means.values())
        values |= {f"{name}/{way}": one[way] for name, one in means.items()}
    return finish("labels", [], values=values, limits=LIMITS, raw={"runs": runs}, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.tasks.labels", "Labels of the owner's own from 64 examples, by the daemon.")
    made.add_argument("--data", type=Path, required=True, help="a task's folder, as datasets.py names it")
    made.add_argument("--text", type=Path, nargs=2, required=True, metavar="FILE", help="two writers' texts")
    made.add_argument("--seeds", type=int, default=3, help="each draws its examples")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
