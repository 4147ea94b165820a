"""Labels of the owner's own, learned from 64 examples by the daemon.

python -m bench.tasks.labels --data DIR [--seeds 3] [--quick]

DIR is a task's folder, as for bench.tasks. The daemon gets 64 of its examples, with labels that no template has words
for, and learns them by a default job; then POST /classify says for rows of the dev set which label they have, by the
base and by what is served. The peer is logistic regression on the base model's features, from the same examples.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from bench import measured
from bench.harness import Limit, finish, parser, progress, start, table
from bench.shapes import learner, models_folder
from bench.tasks.datasets import task_of
from bench.tasks.runs import sampled
from bench.world import daemon_on
from bench.writers import trained

if TYPE_CHECKING:
    from pocketllm.client import Client
    from pocketllm.engine.data.examples import Labelled

LIMITS = {"labels_over_probe": Limit(at_least=1)}
_EXAMPLES, _DEV_ROWS = 64, 300
_QUICK_DEV_ROWS = 4


def accuracy(client: Client, adapter: str, rows: Sequence[Labelled], names: Sequence[str]) -> float:
    """The share of rows of which the daemon says the right label."""
    asked = {"labels": list(names), "adapter": adapter}
    found = [client.classify({"text": row.text} | asked)["label"] for row in rows]
    return float(mean(label == name_of(row.label) for label, row in zip(found, rows, strict=True)))


def name_of(label: str) -> str:
    """The label as an owner would call it: of no template."""
    return f"said {label}".replace("_", " ")


def probe(folder: Path, data: Path, seed: int, per_class: int, dev_rows: int) -> float:
    """The accuracy of logistic regression on the base model's features."""
    found = measured.run(
        [
            *(sys.executable, "-m", "bench.tasks.runs", "probe", "--folder", str(folder), "--data", str(data)),
            *("--seed", str(seed), "--per-class", str(per_class), "--dev-rows", str(dev_rows)),
        ],
        timeout_seconds=600,
    )
    if not found.completed:
        raise SystemExit(f"The probe failed: {found.error or f'exit code {found.exit_code}'}")
    return float(found.report["accuracy"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    dev_rows = _QUICK_DEV_ROWS if options.quick else _DEV_ROWS
    task = task_of(options.data)
    rows, dev = task.examples(options.data, dev=False), task.examples(options.data, dev=True)[:dev_rows]
    labels = sorted(task.template.words)
    per_class = _EXAMPLES // len(labels)
    runs: list[dict[str, Any]] = []
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        model = learner(models, quick=options.quick).absolute()
        for seed in range(options.seeds):
            chosen = sampled(rows, seed, per_class)
            with daemon_on(Path(scratch) / str(seed), model) as client:
                texts = [{"text": row.text, "label": name_of(row.label), "source": "labels"} for row in chosen]
                served = trained(client, texts)
                names = [name_of(label) for label in labels]
                run = {name: accuracy(client, name, dev, names) for name in ("base", served)}
            run = {"seed": seed, "base": run["base"], "personal": run[served]}
            run["probe"] = probe(model, options.data, seed, per_class, dev_rows)
            progress(", ".join(f"{name} {value:.3f}" for name, value in run.items()))
            runs.append(run)
    values: dict[str, float | None] = {
        f"labels_{name}": mean(run[name] for run in runs) for name in ("base", "probe", "personal")
    }
    values["labels_over_probe"] = mean(run["personal"] for run in runs) / mean(run["probe"] for run in runs)
    shown = table(
        f"Labels from {per_class * len(labels)} examples",
        ["seed", "base", "probe", "personal"],
        [[str(run["seed"]), *(f"{run[name]:.3f}" for name in ("base", "probe", "personal"))] for run in runs],
        caption=f"Accuracy on {len(dev)} rows of the dev set.",
    )
    return finish("labels", [shown], values=values, limits=LIMITS, raw={"runs": runs}, options=options)


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.tasks.labels", "Labels of the owner's own from 64 examples, by the daemon.")
    made.add_argument("--data", type=Path, required=True, help="a task's folder, as datasets.py names it")
    made.add_argument("--seeds", type=int, default=3, help="each draws its examples")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
