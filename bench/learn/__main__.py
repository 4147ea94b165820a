"""What is learned from a text in equal time: our methods, the peers at their best, and the prompt alone.

python -m bench.learn --text FILE [FILE ...] [--seconds 120] [--seeds 3] [--resume] [--model DIR]

Each file is a writer's. Each run is a process of its own, one after the other, on the same blocks of the same text. It
has the same number of seconds from when its model is loaded; the held-out loss is measured off the clock. So are the
base model's samples drawn, once a model. With the first seed the rates are searched; with each further one all methods
take a turn. A contender or rate that was only lucky with the first seed gives way to the next best, until the one with
the best mean has all seeds. A value with a limit is that of the writer for whom it is worst, any other one the mean
over the writers.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench.common import measured
from bench.common.child import command
from bench.common.harness import (
    Limit,
    as_by_itself,
    finish,
    keep,
    parser,
    progress,
    provenance,
    start,
    stored_runs,
    table,
)
from bench.common.rates import MAX_RATES, search
from bench.common.shapes import learner, models_folder
from bench.learn.curve import Run, best_runs, seconds_to

LIMITS = {
    "exact_over_peer": Limit(at_least=1.0),
    "exact_over_checkpointed": Limit(at_least=1.1),
    "seconds_to_equal_loss_ratio": Limit(at_least=1.2),
    "exact_peak_over_peer": Limit(at_most=0.40),
    "exact_peak_over_our_inference": Limit(at_most=1.3),
    "exact_over_prompt960": Limit(at_least=1.5),
    "mezo_over_textbook": Limit(at_least=2),
}
_OURS, _PEERS = "bench.learn.ours", "bench.learn.peers"
#: The peer that takes the least memory.
_CHECKPOINTED = "autograd, checkpointing, chunks"
#: Name -> the module that runs it, its method there, and what it does otherwise.
CONTENDERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "inference": (_OURS, "inference", {}),
    "prompt": (_OURS, "prompt", {}),
    "mezo": (_OURS, "mezo", {}),
    "textbook": (_PEERS, "textbook", {}),
    "exact": (_OURS, "exact", {}),
    "autograd, chunks": (_PEERS, "autograd", {"chunks": True}),
    "autograd": (_PEERS, "autograd", {}),
    "autograd, checkpointing": (_PEERS, "autograd", {"checkpointing": True}),
    _CHECKPOINTED: (_PEERS, "autograd", {"checkpointing": True, "chunks": True}),
    # As the weights are stored: half the memory, and slower where ours compute in fp32.
    "autograd, chunks, bfloat16": (_PEERS, "autograd", {"chunks": True, "dtype": "bfloat16"}),
    # Fewer blocks a step, and so more steps: each at a rate of its own.
    **{f"exact, batch {n}": (_OURS, "exact", {"batch": n}) for n in (4, 2)},
    **{f"autograd, chunks, batch {n}": (_PEERS, "autograd", {"chunks": True, "batch": n}) for n in (4, 2)},
}
#: The first rates of a peer's method; see bench.common.rates.
RATES = {"textbook": (3e-3, 6e-3, 12e-3), "autograd": (2e-3, 4e-3, 8e-3)}
#: Tokens of the writer's training text in front of each held-out block.
PROMPTS = (256, 960)
_QUICK_PROMPTS, _QUICK_SECONDS, _QUICK_BATCH = (16, 32), 0.5, 2
_TOKENS = 64
_MB = 10**6
#: A run may take this many times its seconds, and these for loading and measuring, before it counts as hung.
_PATIENCE, _SLACK_SECONDS = 4.0, 600.0

Save = Callable[[], None]


class Writer:
    """The runs on one writer's text."""

    def __init__(
        self, name: str, folder: Path, blocks: Path, options: argparse.Namespace, runs: list[Run], save: Save
    ) -> None:
        """runs: of all writers; those that are there already are not made again. save: called after each run."""
        self._name, self._folder, self._blocks, self._options, self._runs = name, folder, blocks, options, runs
        self._save = save
        self._rates: dict[tuple[str, int | None], float] = {}  #: of a method with a batch size, the best one found

    def run(self, contender: str, seed: int, rate: float | None = None) -> Run | None:
        """The run, from the stored ones or made now; None when it fails."""
        key = {"writer": self._name, "contender": contender, "rate": rate, "seed": seed}
        for run in self._runs:
            if key.items() <= run.items():
                return run
        progress(f"{_label(key)}, seed {seed} ...")
        options, (module, method, variant) = self._options, CONTENDERS[contender]
        work = {"folder": self._folder, "blocks": self._blocks, "batch": options.batch, "seconds": options.seconds}
        work |= {"seed": seed, **({"prompts": options.prompts} if module == _OURS else {"rate": rate}), **variant}
        found = measured.run(
            command(module, "learn", method=method, **work),
            timeout_seconds=_SLACK_SECONDS + _PATIENCE * options.seconds,
            environment=as_by_itself() if module == _PEERS else None,
        )
        if not found.completed:
            progress(f"  failed: {found.error or f'exit code {found.exit_code}'}")
            return None
        if "reduction" in found.report:
            progress(f"  {found.report['reduction']:.4f} nats")
        self._runs.append(key | provenance(options) | {"total_seconds": found.seconds} | found.report)
        self._save()
        return self._runs[-1]

    def first_runs(self, contender: str) -> None:
        """With the first seed; the first contender of a method and batch size, at all rates that the search wants."""
        _, method, variant = CONTENDERS[contender]
        key = (method, variant.get("batch"))

        def score(rate: float) -> float:
            run = self.run(contender, 0, rate)
            return float(run["reduction"]) if run else float("-inf")

        if method not in RATES:
            self.run(contender, 0)
        elif key in self._rates:
            self.run(contender, 0, self._rates[key])
        else:
            quick = self._options.quick
            rates, most = (RATES[method][:1], 1) if quick else (RATES[method], MAX_RATES)
            self._rates[key] = search(rates, score, max_rates=most)

    def further_seeds(self) -> None:
        """Of the best contender of each method, at its best rate; a seed at a time, so that the methods take turns."""
        methods = dict.fromkeys(method for _, method, _ in CONTENDERS.values() if method != "inference")
        count = -1
        while count != len(self._runs):  # until the best ones have all seeds
            count = len(self._runs)
            own = [run for run in self._runs if run["writer"] == self._name]
            best = [found[0] for method in methods if (found := best_runs(own, method))]
            for seed in range(1, self._options.seeds):
                for run in best:
                    self.run(run["contender"], seed, run["rate"])
            # Tiny models differ by noise, which would give every contender all seeds.
            if self._options.quick:
                return


def figures(runs: Sequence[Run]) -> dict[str, float | None]:
    """The values of one writer; None where runs are missing."""
    exact, peer, mezo, textbook, prompt, inference = (
        best_runs(runs, method) for method in ("exact", "autograd", "mezo", "textbook", "prompt", "inference")
    )
    checkpointed = [run for run in runs if run["contender"] == _CHECKPOINTED]
    learned = {"exact": exact, "peer": peer, "checkpointed": checkpointed, "mezo": mezo, "textbook": textbook}
    nats = {f"{name}_nats": _mean([run["reduction"] for run in found]) for name, found in learned.items()}
    # In a quick run the prompts are shorter.
    for number, tokens in enumerate(PROMPTS):
        nats[f"prompt{tokens}_nats"] = _mean([list(run["prompts"].values())[number] for run in prompt])
    nats["adapter_and_prompt_nats"] = _mean([run["prompted_reduction"] for run in exact])
    # Where the textbook learns nothing, or unlearns, any ratio would be meaningless: then it counts as a thousandth.
    mezo_peer = None if nats["textbook_nats"] is None else max(nats["textbook_nats"], 1e-3)
    peak = max((run["peak_rss_bytes"] for run in exact), default=None)
    return nats | {
        "exact_over_peer": _over(nats["exact_nats"], nats["peer_nats"]),
        "exact_over_checkpointed": _over(nats["exact_nats"], nats["checkpointed_nats"]),
        "seconds_to_equal_loss_ratio": _mean([_speed(our, other) for our, other in zip(exact, peer, strict=False)]),
        "exact_peak_over_peer": _over(peak, min((run["peak_rss_bytes"] for run in peer), default=None)),
        "exact_peak_over_checkpointed": _over(peak, min((run["peak_rss_bytes"] for run in checkpointed), default=None)),
        "exact_peak_over_our_inference": _over(peak, min((run["peak_rss_bytes"] for run in inference), default=None)),
        "exact_over_prompt960": _over(nats["exact_nats"], nats[f"prompt{PROMPTS[-1]}_nats"]),
        "adapter_and_prompt_over_adapter": _over(nats["adapter_and_prompt_nats"], nats["exact_nats"]),
        "mezo_over_textbook": _over(nats["mezo_nats"], mezo_peer),
    }


def values_of(runs: Sequence[Run], writers: Collection[str]) -> dict[str, float | None]:
    """The worst writer's value where there is a limit, else the mean; with several writers, each one's, too."""
    of_writers = {writer: figures([run for run in runs if run["writer"] == writer]) for writer in writers}
    values: dict[str, float | None] = {}
    for name in figures([]):
        found = [some[name] for some in of_writers.values()]
        known = [value for value in found if value is not None]
        limit = LIMITS.get(name)
        choose = mean if limit is None else max if limit.at_least is None else min
        values[name] = choose(known) if known and len(known) == len(found) else None
    if len(of_writers) > 1:
        values |= {f"{name}/{writer}": value for writer, some in of_writers.items() for name, value in some.items()}
    return values


def _speed(ours: Run, peer: Run) -> float:
    """How many times as fast ours reaches the peer's last loss; 0 when it does not."""
    loss = peer["curve"][-1][2]
    return seconds_to(peer["curve"], loss) / max(seconds_to(ours["curve"], loss), 1e-9)


def _over(one: float | None, other: float | None) -> float | None:
    return one / other if one is not None and other else None


def _mean(found: Sequence[float]) -> float | None:
    return mean(found) if found else None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    if len({text.stem for text in options.text or ()}) < len(options.text or ()):
        raise SystemExit("--text: each file needs a name of its own, which is its writer's in the results.")
    raw: dict[str, Any] = {"sizes": {}} | stored_runs("learn", options, seconds=options.seconds)
    runs, sizes = raw["runs"], raw["sizes"]

    def save() -> None:
        keep("learn", values=values_of(runs, sizes), limits=LIMITS, raw=raw, options=options)

    # Hours of runs: they are kept one by one, for --resume.
    with suppress(KeyboardInterrupt), models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        folder = options.model or learner(models, quick=options.quick)
        texts = options.text or [sample_text(Path(scratch))]
        for text in texts:
            sizes[text.stem] = divide(text, folder, Path(scratch) / f"{text.stem}.npz")
            progress(f"{text.name}: {sizes[text.stem]}")
        for text in texts:
            writer = Writer(text.stem, folder, Path(scratch) / f"{text.stem}.npz", options, runs, save)
            for contender in CONTENDERS:
                writer.first_runs(contender)
            writer.further_seeds()
    tables = [_table([run for run in runs if run["writer"] == writer]) for writer in sizes]
    return finish("learn", tables, values=values_of(runs, sizes), limits=LIMITS, raw=raw, options=options)


def _label(run: Mapping[str, Any]) -> str:
    return run["contender"] if run["rate"] is None else f"{run['contender']}, rate {run['rate']:g}"


def _table(runs: Sequence[Run]) -> Any:
    seeds: dict[str, list[Run]] = {}
    for run in runs:
        seeds.setdefault(_label(run), []).append(run)
    rows = []
    for label, found in seeds.items():
        nats = [float(run["reduction"]) for run in found if "reduction" in run]
        rows.append(
            [
                label,
                f"{mean(nats):.4f}" if nats else "-",
                f"{stdev(nats):.4f} ({len(nats)})" if len(nats) > 1 else "-",
                f"{mean(run['steps'] for run in found):.0f}" if "steps" in found[0] else "-",
                f"{max(run['peak_rss_bytes'] for run in found) / _MB:.0f}" if "peak_rss_bytes" in found[0] else "-",
                f"{mean(run['total_seconds'] for run in found):.0f}",
            ]
        )
    rows.sort(key=lambda row: row[1], reverse=True)
    title = runs[0]["writer"] if runs else ""
    columns = ["contender", "fell by, nats", "spread (seeds)", "steps", "peak, MB", "in all, s"]
    return table(title, columns, rows)


def divide(text: Path, folder: Path, blocks: Path) -> dict[str, Any]:
    """Write a text's blocks; returns how many there are. Raises SystemExit when it has too little."""
    work = command("bench.learn.text", "write", text=text, model=folder, output=blocks, tokens=_TOKENS)
    return measured.report_of(work, f"Dividing {text} into blocks")


def sample_text(scratch: Path) -> Path:
    """The notes that come with PocketLLM."""
    text = scratch / "sample_notes.txt"
    text.write_text(files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8"), encoding="utf-8")
    return text


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.learn", "What is learned from a text in equal time, by ours and the peers.")
    made.add_argument("--text", type=Path, nargs="+", help="a writer's text each (UTF-8); by default the sample notes")
    made.add_argument("--seconds", type=float, default=120, help="for each run")
    made.add_argument("--seeds", type=int, default=3, help="runs of a method; its rate is chosen with the first")
    made.add_argument("--resume", action="store_true", help="run what the raw results do not have yet")
    made.add_argument("--batch", type=int, default=8, help="blocks a step, of 64 tokens each")
    made.add_argument("--model", type=Path, help="a model folder stored as floats, in place of SmolLM2-135M")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    made.set_defaults(prompts=PROMPTS)
    options = made.parse_args(arguments)
    if options.quick:
        options.seconds, options.batch, options.prompts = _QUICK_SECONDS, _QUICK_BATCH, _QUICK_PROMPTS
    return options


if __name__ == "__main__":
    sys.exit(start(main))
