"""Draw the held-out loss against seconds of learning, from the learn bench's raw results.

python -m bench.learn.plot [bench/results/learn.json] [-o bench/results/learn.svg]
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.harness import RESULTS, progress
from bench.learn.curve import best_runs
from bench.svg import GRID, frame, round_step, stroke, text

#: Method -> what the legend says, and the colour; of several runs with the first seed, the best one is drawn.
_SERIES = {
    "exact": ("exact gradients, ours", "#0b6e4f"),
    "autograd": ("autograd, transformers", "#8b1e3f"),
    "mezo": ("MeZO, ours", "#3b6fb6"),
    "textbook": ("MeZO, textbook", "#777777"),
}
_PROMPT = ("no training, 960 tokens in the prompt", "#c46210")
_WIDTH, _HEIGHT = 720, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 60, 64, 56, 116
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_GRID_LINES = 6  # about


@dataclass(frozen=True, kw_only=True)
class Line:
    """One contender's first run."""

    name: str
    colour: str
    points: Sequence[tuple[float, float]]  #: seconds, nats per token


def lines_of(results: Mapping[str, Any]) -> list[Line]:
    """The lines of a bench's results. Raises ValueError when there is none."""
    runs = [run for run in results["raw"]["runs"] if run["writer"] == _writer(results)]
    lines = []
    for method, (name, colour) in _SERIES.items():
        for run in best_runs(runs, method)[:1]:
            points = [(seconds, loss) for seconds, _, loss in run["curve"]]
            lines.append(Line(name=name, colour=colour, points=points))
    for run in best_runs(runs, "prompt")[:1]:
        loss = run["loss"] - run["reduction"]
        lines.append(Line(name=_PROMPT[0], colour=_PROMPT[1], points=[(0.0, loss), (results["raw"]["seconds"], loss)]))
    if not lines:
        raise ValueError("there is no run in these results; run `python -m bench.learn`")
    return lines


def _writer(results: Mapping[str, Any]) -> str:
    """The first one, who is drawn."""
    return next(iter(results["raw"]["sizes"]), "")


def svg(lines: Sequence[Line], *, title: str, source: str) -> str:
    """The whole SVG. The loss does not start at zero: what counts is by how much it falls."""
    losses = [loss for line in lines for _, loss in line.points]
    last = max(seconds for line in lines for seconds, _ in line.points) or 1.0
    step = round_step(max(max(losses) - min(losses), 1e-3) / _GRID_LINES)
    low, high = step * math.floor(min(losses) / step), step * math.ceil(max(losses) / step)

    def x(seconds: float) -> float:
        return _LEFT + _PLOT_WIDTH * seconds / last

    def y(loss: float) -> float:
        return _TOP + _PLOT_HEIGHT * (high - loss) / max(high - low, 1e-9)

    parts = [
        frame(_WIDTH, _HEIGHT, title),
        text(_LEFT, 24, title, size=16, weight="bold"),
        text(_LEFT, 43, "held-out loss, nats per token", size=12),
    ]
    for number in range(round((high - low) / step) + 1):
        level = low + number * step
        parts.append(stroke([(_LEFT, y(level)), (_WIDTH - _RIGHT, y(level))], GRID, 1))
        parts.append(text(_LEFT - 8, y(level) + 4, f"{level:.4g}", anchor="end"))
    between = round_step(last / _GRID_LINES)
    for number in range(math.floor(last / between) + 1):
        parts.append(text(x(number * between), _TOP + _PLOT_HEIGHT + 18, f"{number * between:g}", anchor="middle"))
    parts.append(text(_LEFT + _PLOT_WIDTH / 2, _TOP + _PLOT_HEIGHT + 36, "seconds of learning", anchor="middle"))
    for number, line in enumerate(lines):
        parts.append(stroke([(x(seconds), y(loss)) for seconds, loss in line.points], line.colour))
        seconds, loss = line.points[-1]
        parts.append(text(x(seconds) + 6, y(loss) + 4, f"{loss:.2f}", colour=line.colour))
        left, top = _LEFT + (number % 2) * 320, _HEIGHT - 62 + (number // 2) * 18
        parts.append(stroke([(left, top - 4), (left + 22, top - 4)], line.colour))
        parts.append(text(left + 28, top, line.name))
    parts.append(text(_WIDTH - 10, _HEIGHT - 8, source, size=10, anchor="end", colour="#666666"))
    return "\n".join([*parts, "</svg>", ""])


def draw(results: Path, output: Path) -> None:
    """Draw a results file. Raises OSError or ValueError."""
    found = json.loads(results.read_text(encoding="utf-8"))
    title = f"Learning {_writer(found)} in {found['raw']['seconds']:g} seconds"
    cpu = f"{found['machine']['cpu']}, {found['machine']['cores']} cores"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(svg(lines_of(found), title=title, source=f"bench.learn on {cpu}"), encoding="utf-8")
    progress(f"Drawn: {output}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the plot. Exits with a sentence when there are no results to draw it from."""
    parser = argparse.ArgumentParser(prog="python -m bench.learn.plot", description="Held-out loss against seconds.")
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS / "learn.json")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "learn.svg")
    options = parser.parse_args(arguments)
    try:
        draw(options.results, options.output)
    except (OSError, ValueError, LookupError) as error:
        raise SystemExit(f"{options.results}: {error}") from error
    return 0


if __name__ == "__main__":
    sys.exit(main())
