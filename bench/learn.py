"""What is learned from a text in equal time: our methods against textbook MeZO and exact backpropagation.

python -m bench.learn --text FILE [--seconds 120] [--seeds 1] [--only NAME ...] [--model DIR] [--quick]

Each contender runs in a process of its own, one after the other, on the same blocks of the same text, and is given so
many seconds from when its model is loaded: for a method of ours all that it measures and chooses counts. The held-out
loss is measured while the clock stands.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from bench import measured, plot_learn
from bench.harness import Limit, as_by_itself, finish, parser, progress, start, table
from bench.shapes import SMOLLM2, ensure, models_folder

LIMITS = {
    "guided_over_textbook": Limit(at_least=10),
    "mezo_over_textbook": Limit(at_least=2),
    "guided_over_exact": Limit(at_least=0.7),
    "guided_peak_over_inference": Limit(at_most=1.15),
}
#: What a contender's process says of itself, and its peak memory as "peak".
Report = dict[str, Any]
#: Learning rates that the peers are given: the best of these counts.
TEXTBOOK_RATES, EXACT_RATES = (1e-3, 3e-3, 6e-3), (2e-3, 4e-3, 8e-3)
#: Who runs a contender: its first word.
_OURS, _PEERS = "bench.learn_ours", "bench.learn_peers"
_TOKENS = 64
_MB = 10**6
#: A run may take so many times its seconds, measuring included, before it counts as hung.
_PATIENCE, _LOADING_SECONDS = 4.0, 120.0
_CAPTION = (
    "Nats per token by which the loss on held-out text fell, mean over so many seeds. Textbook: MeZO as published, "
    "Gaussian z over rank 8 factors of every linear map. Exact: backpropagation into such factors, AdamW, warm-up and "
    "cosine; both run as they do by themselves, without the settings of the daemon's children. Of several learning "
    "rates the best with the first seed counts and goes on to the others. Peak: resident memory of the whole process. "
    "How the model's layers carry the stream is measured once a model, on text that comes with PocketLLM, and not "
    "counted."
)


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method with its options."""

    name: str
    value: str | None  #: of the bench's values that it is a candidate for
    command: tuple[str, ...]

    def run(self, folder: Path, blocks: Path, *, seconds: float, seed: int, batch: int) -> measured.Measurement:
        """One run in a process of its own. Raises SystemExit when it fails."""
        progress(f"{self.name}, seed {seed} ...")
        found = measured.run(
            [
                *(sys.executable, "-m", *self.command),
                *("--folder", str(folder), "--blocks", str(blocks), "--batch", str(batch)),
                *("--seconds", str(seconds), "--seed", str(seed)),
            ],
            timeout_seconds=_LOADING_SECONDS + _PATIENCE * seconds,
            environment=as_by_itself() if self.command[0] == _PEERS else None,
        )
        if not found.completed:
            raise SystemExit(f"{self.name} failed: {found.error or f'exit code {found.exit_code}'}")
        if "reduction" in found.report:
            progress(f"  {found.report['reduction']:.4f} nats in {found.report['steps']} steps")
        return found


GUIDED = Contender(name="guided", value="guided_nats", command=(_OURS, "guided"))


def contenders(first_layer: int) -> list[Contender]:
    """All but the guided method, which chooses the layers."""
    made = [Contender(name="mezo", value="mezo_nats", command=(_OURS, "mezo"))]
    made += [
        Contender(
            name=f"textbook, rate {rate:g}", value="textbook_nats", command=(_PEERS, "textbook", "--rate", str(rate))
        )
        for rate in TEXTBOOK_RATES
    ]
    for rate in EXACT_RATES:
        exact = (_PEERS, "exact", "--rate", str(rate))
        upper = ("--first", str(first_layer))
        made += [
            Contender(name=f"exact, all layers, rate {rate:g}", value="exact_all_nats", command=exact),
            Contender(
                name=f"exact, layers from {first_layer}, rate {rate:g}",
                value="exact_same_layers_nats",
                command=(*exact, *upper),
            ),
            Contender(
                name=f"exact, layers from {first_layer}, trunk cached, rate {rate:g}",
                value="exact_same_layers_nats",
                command=(*exact, *upper, "--cached"),
            ),
        ]
    return made


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    seconds = 0.5 if options.quick else options.seconds
    batch = 2 if options.quick else options.batch
    with models_folder(options.models) as models, tempfile.TemporaryDirectory() as scratch:
        folder = options.model or ensure(models, "llama-tiny" if options.quick else SMOLLM2, "bfloat16")
        text = options.text or _sample(Path(scratch))
        blocks = Path(scratch) / "blocks.npz"
        sizes = _divide(text, folder, blocks)
        progress(f"{text.name}: {sizes['training_tokens']} tokens to learn from, {sizes['held_out_tokens']} held out")

        def run(contender: Contender, seed: int) -> Report:
            found = contender.run(folder, blocks, seconds=seconds, seed=seed, batch=batch)
            return found.report | {"peak": found.peak_rss_bytes}

        if options.only:
            runs, inference = _stored(options, text, seconds)
        else:
            runs = {}
            inference = {who: int(run(_inference(who), 0)["peak"]) for who in ("peers", "ours")}
            runs[GUIDED] = [run(GUIDED, 0)]
        for contender in [GUIDED, *contenders(int(runs[GUIDED][0]["first_layer"]))]:
            if contender not in runs or contender.name in options.only:
                runs[contender] = [run(contender, 0)]
        finalists = _best_of_each(runs)
        for seed in range(1, options.seeds):
            for contender in finalists.values():
                if len(runs[contender]) <= seed:
                    runs[contender].append(run(contender, seed))
    values = _values({name: runs[contender] for name, contender in finalists.items()}, inference)
    raw = {
        "text": text.name,
        "sizes": sizes,
        "seconds": seconds,
        "runs": {contender.name: some for contender, some in runs.items()},
        "inference_peak": inference,
    }
    exit_code = finish(
        "learn", [_table(runs, inference, seconds)], values=values, limits=LIMITS, raw=raw, options=options
    )
    name = _stored_name(options)
    plot_learn.draw(options.results / f"{name}.json", options.results / f"{name}.svg")
    return exit_code


def _inference(who: str) -> Contender:
    return Contender(name=f"inference ({who})", value=None, command=(_PEERS if who == "peers" else _OURS, "inference"))


def _stored_name(options: argparse.Namespace) -> str:
    return f"learn{'-quick' if options.quick else ''}"


def _stored(
    options: argparse.Namespace, text: Path, seconds: float
) -> tuple[dict[Contender, list[Report]], dict[str, int]]:
    """What an earlier run has found of all contenders. Raises SystemExit where it was another text, or another time."""
    file = options.results / f"{_stored_name(options)}.json"
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))["raw"]
    except (OSError, ValueError, KeyError) as error:
        raise SystemExit(f"--only keeps the other contenders' figures, and {file} has none: {error}") from error
    if (raw["text"], raw["seconds"]) != (text.name, seconds):
        raise SystemExit(f"{file} is of {raw['text']} and {raw['seconds']:g} s: leave --only out.")
    first = int(raw["runs"][GUIDED.name][0]["first_layer"])
    known = {contender.name: contender for contender in [GUIDED, *contenders(first)]}
    if unknown := set(options.only) - known.keys():
        raise SystemExit(f"There is no contender {min(unknown)!r}; there are: {', '.join(known)}.")
    runs = {known[name]: some for name, some in raw["runs"].items() if name in known}
    return runs, raw["inference_peak"]


def _best_of_each(runs: Mapping[Contender, Sequence[Report]]) -> dict[str, Contender]:
    """Each value -> the candidate for it that has learned most with the first seed."""
    best: dict[str, Contender] = {}
    for contender in sorted(runs, key=lambda one: -float(runs[one][0]["reduction"])):
        if contender.value:
            best.setdefault(contender.value, contender)
    return best


def _values(runs: Mapping[str, Sequence[Report]], inference: Mapping[str, int]) -> dict[str, float | None]:
    best = {name: _mean(found) for name, found in runs.items()}
    exact = max(best["exact_all_nats"], best["exact_same_layers_nats"])
    # Where the textbook learns nothing, or unlearns, any ratio would be meaningless: then it counts as a thousandth.
    textbook = max(best["textbook_nats"], 1e-3)
    peak = max(one["peak"] for one in runs["guided_nats"])
    return {
        **best,
        "guided_over_textbook": best["guided_nats"] / textbook,
        "mezo_over_textbook": best["mezo_nats"] / textbook,
        "guided_over_exact": best["guided_nats"] / exact,
        "guided_peak_over_inference": peak / inference["peers"],
        "guided_peak_over_our_inference": peak / inference["ours"],
    }


def _mean(found: Sequence[Report]) -> float:
    return mean(float(one["reduction"]) for one in found)


def _table(runs: Mapping[Contender, Sequence[Report]], inference: Mapping[str, int], seconds: float) -> Any:
    rows = [
        [f"plain inference, {'transformers' if who == 'peers' else 'ours'}", "-", "-", "-", f"{peak / _MB:.0f}"]
        for who, peak in inference.items()
    ]
    for contender, found in sorted(runs.items(), key=lambda pair: -_mean(pair[1])):
        reductions = [float(one["reduction"]) for one in found]
        spread = f"{stdev(reductions):.4f} ({len(found)})" if len(reductions) > 1 else "-"
        steps, peak = f"{mean(one['steps'] for one in found):.0f}", max(one["peak"] for one in found)
        rows.append([contender.name, f"{mean(reductions):.4f}", spread, steps, f"{peak / _MB:.0f}"])
    title = f"Held-out loss after {seconds:g} s"
    return table(title, ["method", "fell by, nats", "spread (seeds)", "steps", "peak, MB"], rows, caption=_CAPTION)


def _divide(text: Path, folder: Path, blocks: Path) -> dict[str, Any]:
    command = ["--text", str(text), "--model", str(folder), "--tokens", str(_TOKENS), "--output", str(blocks)]
    found = measured.run([sys.executable, "-m", "bench.learn_text", *command])
    if not found.completed:
        raise SystemExit(f"{text} cannot be divided into blocks: {found.error}")
    return found.report


def _sample(scratch: Path) -> Path:
    """The notes that come with PocketLLM."""
    from importlib.resources import files

    text = scratch / "sample_notes.txt"
    text.write_text(files("pocketllm").joinpath("sample_notes.txt").read_text(encoding="utf-8"), encoding="utf-8")
    return text


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.learn", "What is learned from a text in equal time, by ours and the peers.")
    made.add_argument("--text", type=Path, help="a writer's text (UTF-8); by default the sample notes")
    made.add_argument("--seconds", type=float, default=120, help="for each contender")
    made.add_argument("--seeds", type=int, default=1, help="runs of a method; its options are chosen with the first")
    made.add_argument(
        "--only", nargs="+", default=[], metavar="NAME", help="run these anew, and keep the figures of all others"
    )
    made.add_argument("--batch", type=int, default=8, help="blocks a step, of 64 tokens each")
    made.add_argument("--model", type=Path, help="a native model stored as floats, in place of SmolLM2-135M")
    made.add_argument("--models", type=Path, help="keep SmolLM2 in this folder, and use what is there")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
