"""Draw memory against batch size, MeZO beside what backpropagates, from the results of bench.memory.

python -m bench.memory.plot    (bench/results/memory.json to memory.svg)
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from matplotlib import rc_context
from matplotlib.figure import Figure

from bench.common.harness import RESULTS, progress
from bench.memory.rows import ADAM, BACKPROP, OURS

#: What is drawn, from the lowest line to the highest: method and mode -> name and colour.
_SERIES = {
    (OURS, "lora"): ("MeZO, ours (int8, adapters)", "#0b6e4f"),
    (BACKPROP, "lora"): ("LoRA by backpropagation, with checkpointing", "#c46210"),
    (ADAM, "full"): ("Adam on all parameters", "#8b1e3f"),
}
#: Text stays text, and the same results make the same file.
_STYLE: Any = {"svg.fonttype": "none", "svg.hashsalt": "pocketllm", "axes.grid": True, "axes.grid.axis": "y"}


def draw(results: Path, output: Path) -> None:
    """Draw the rows of RoBERTa in a results file; a cross is where a peer died."""
    found = json.loads(results.read_text(encoding="utf-8"))
    rows = [row for row in found["raw"] if row["shape"].startswith("roberta") and not row["micro_batch"]]
    rows.sort(key=lambda row: row["batch"])
    batches = sorted({row["batch"] for row in rows})
    with rc_context(_STYLE):
        figure = Figure(figsize=(7.5, 4.5), layout="constrained")
        axes = figure.subplots()
        for (method, mode), (name, colour) in _SERIES.items():
            line = [row for row in rows if (row["method"], row["mode"]) == (method, mode)]
            sizes = [(row["peak_rss_mb"] or row["died_mb"]) / 1000 for row in line]
            axes.plot([row["batch"] for row in line], sizes, color=colour, label=name)
            for row, size in zip(line, sizes, strict=True):
                died = row["peak_rss_mb"] is None
                axes.plot(row["batch"], size, "x" if died else "o", color=colour)
                if row is line[-1]:
                    label, place = f"died at {size:.1f}" if died else f"{size:.2f}", (row["batch"], size)
                    axes.annotate(label, place, (0, 6), textcoords="offset points", ha="right", color=colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.set(xlabel="texts a step", ylabel="peak resident memory of the process, GB")
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
        axes.set_title("RoBERTa-large, 128 tokens a text: memory against batch size")
        axes.legend()
        machine = found["machine"]
        figure.supxlabel(f"bench.memory on {machine['cpu']}, {machine['cores']} cores", size=8)
        figure.savefig(output, format="svg", metadata={"Date": None})
    progress(f"Drawn: {output}")


if __name__ == "__main__":
    draw(RESULTS / "memory.json", RESULTS / "memory.svg")
