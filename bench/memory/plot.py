"""Draw memory against batch size, MeZO beside what backpropagates, from the memory bench's raw results.

python -m bench.memory.plot [bench/results/memory.json] [-o bench/results/memory.svg]
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
from bench.memory.rows import ADAM, BACKPROP, OURS
from bench.svg import GRID, frame, round_step, stroke, text

#: What is drawn, from the lowest line to the highest: method and mode -> name and colour.
_SERIES = {
    (OURS, "lora"): ("MeZO, ours (int8, adapters)", "#0b6e4f"),
    (BACKPROP, "lora"): ("LoRA by backpropagation, with checkpointing", "#c46210"),
    (ADAM, "full"): ("Adam on all parameters", "#8b1e3f"),
}
_WIDTH, _HEIGHT = 720, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 70, 24, 56, 96
_PLOT_WIDTH, _PLOT_HEIGHT = _WIDTH - _LEFT - _RIGHT, _HEIGHT - _TOP - _BOTTOM
_GRID_LINES = 6  # about


@dataclass(frozen=True, kw_only=True)
class Line:
    """One method's memory."""

    name: str
    colour: str
    points: Sequence[tuple[int, float, bool]]  #: batch size, MB, and whether it died there; by batch size


def lines_of(results: Mapping[str, Any], *, shape: str) -> list[Line]:
    """The lines of a shape ("roberta" for all whose name starts so) among the memory bench's results.

    Raises ValueError when there is no row to draw.
    """
    rows = [row for row in results["raw"] if row["shape"].startswith(shape) and not row["micro_batch"]]
    lines = []
    for (method, mode), (name, colour) in _SERIES.items():
        points = []
        for row in rows:
            size = row["peak_rss_mb"] or row["died_mb"]
            if (row["method"], row["mode"]) == (method, mode) and size:
                points.append((row["batch"], size, row["peak_rss_mb"] is None))
        if points:
            lines.append(Line(name=name, colour=colour, points=sorted(points)))
    if not lines:
        raise ValueError(f"there are no rows of {shape} in these results; run `python -m bench.memory`")
    return lines


def draw(lines: Sequence[Line], *, title: str, source: str) -> str:
    """The whole SVG. Batch sizes are spaced by doublings; memory starts at zero."""
    batches = sorted({batch for line in lines for batch, _, _ in line.points})
    step = round_step(max(size for line in lines for _, size, _ in line.points) / 1000 / _GRID_LINES)
    top = step * math.ceil(max(size for line in lines for _, size, _ in line.points) / 1000 / step)

    def x(batch: int) -> float:
        if len(batches) == 1:
            return _LEFT + _PLOT_WIDTH / 2
        span = math.log2(batches[-1] / batches[0])
        return _LEFT + 12 + (_PLOT_WIDTH - 24) * math.log2(batch / batches[0]) / span

    def y(gigabytes: float) -> float:
        return _TOP + _PLOT_HEIGHT * (1 - gigabytes / top)

    parts = [
        frame(_WIDTH, _HEIGHT, title),
        text(_LEFT, 24, title, size=16, weight="bold"),
        text(_LEFT, 43, "peak resident memory of the process, GB", size=12),
    ]
    for number in range(round(top / step) + 1):
        level = number * step
        parts.append(stroke([(_LEFT, y(level)), (_WIDTH - _RIGHT, y(level))], GRID, 1))
        parts.append(text(_LEFT - 8, y(level) + 4, f"{level:g}", anchor="end"))
    parts += [text(x(batch), _TOP + _PLOT_HEIGHT + 18, str(batch), anchor="middle") for batch in batches]
    parts.append(text(_LEFT + _PLOT_WIDTH / 2, _TOP + _PLOT_HEIGHT + 36, "texts a step", anchor="middle"))
    for line in lines:
        parts.append(stroke([(x(batch), y(size / 1000)) for batch, size, _ in line.points], line.colour))
        for batch, size, died in line.points:
            parts.append(_mark(x(batch), y(size / 1000), line.colour, died))
        batch, size, died = line.points[-1]
        label = f"died at {size / 1000:.1f}" if died else f"{size / 1000:.2f}"
        parts.append(text(x(batch) + 6, y(size / 1000) - 9, label, anchor="end", colour=line.colour))
    parts += _legend(lines)
    parts.append(text(_WIDTH - _RIGHT, _HEIGHT - 10, source, size=10, anchor="end", colour="#666666"))
    return "\n".join([*parts, "</svg>", ""])


def _legend(lines: Sequence[Line]) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        left, top = _LEFT + (number % 2) * 300, _HEIGHT - 44 + (number // 2) * 18
        parts.append(stroke([(left, top - 4), (left + 22, top - 4)], line.colour))
        parts.append(text(left + 28, top, line.name))
    return parts


def _mark(x: float, y: float, colour: str, died: bool) -> str:
    if died:
        return stroke([(x - 5, y - 5), (x + 5, y + 5)], colour) + stroke([(x - 5, y + 5), (x + 5, y - 5)], colour)
    return f"<circle cx='{x:.1f}' cy='{y:.1f}' r='4' fill='{colour}'/>"


def main(arguments: Sequence[str] | None = None) -> int:
    """Draw the plot. Exits with a sentence when there are no results to draw it from."""
    parser = argparse.ArgumentParser(prog="python -m bench.memory.plot", description="Memory against batch size.")
    parser.add_argument("results", nargs="?", type=Path, default=RESULTS / "memory.json")
    parser.add_argument("-o", "--output", type=Path, default=RESULTS / "memory.svg")
    options = parser.parse_args(arguments)
    try:
        results = json.loads(options.results.read_text(encoding="utf-8"))
        lines = lines_of(results, shape="roberta")
    except (OSError, ValueError) as error:
        raise SystemExit(f"{options.results}: {error}") from error
    cpu = f"{results['machine']['cpu']}, {results['machine']['cores']} cores"
    title = "RoBERTa-large, 128 tokens a text: memory against batch size"
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(draw(lines, title=title, source=f"bench.memory on {cpu}"), encoding="utf-8")
    progress(f"Drawn: {options.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
