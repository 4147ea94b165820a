"""Memory of a step: ours and the peers', each in a fresh process, beside what the paper needed.

python -m bench.memory [--quick] [--rows PATTERN ...] [--resume] [--skip-peers] [--models DIR] [--cap-gb GB]

With --resume the rows that the results have are kept, but for those that --rows names. MB are 10^6 bytes. Models have
random weights: memory does not depend on the values.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from bench.common import cgroups, measured
from bench.common.child import available_bytes
from bench.common.harness import Limit, finish, parser, progress, provenance, results_file, start, table
from bench.common.measured import MIB
from bench.common.shapes import SMOLLM2, ensure, models_folder
from bench.memory.rows import EXACT, OUR_ROWS, OURS, PEER_ROWS, Row, chosen
from pocketllm.engine.formats.model_folder import WEIGHTS_NAME

GIB_BYTES = 1 << 30
_MB = 1e6
#: A limited run takes longer, as it reads its weights anew; one that takes this much longer makes no headway.
_PATIENCE = 10
#: No swap behind a limit: below this share of the anonymous memory a run cannot fit, whatever it reads anew.
_SURELY_TOO_SMALL = 0.7
_QUICK_RESOLUTION_BYTES = 256 * MIB
#: At most: batch 64 over batch 8, and the relative error of a prediction.
_FLAT, _PREDICTION_ERROR = 1.05, 0.15

LIMITS = {
    "opt13_lora_bs8_peak_mb": Limit(at_most=520),
    "opt13_lora_bs64_peak_mb": Limit(at_most=520),
    "opt13_lora_bs8_anon_mb": Limit(at_most=350),
    "opt13_smallest_cgroup_mb": Limit(at_most=GIB_BYTES / _MB, where_measurable=True),
    "opt13_exact_bs8_peak_mb": Limit(at_most=650),
    "opt13_exact_bs64_peak_mb": Limit(at_most=690),
    "opt13_exact_cgroup_mb": Limit(at_most=GIB_BYTES / _MB, where_measurable=True),
    "smollm2_exact_peak_mb": Limit(at_most=640),
    "smollm2_exact_small_peak_mb": Limit(at_most=480),
    "smollm2_exact_over_peer": Limit(at_most=0.35),
    "gemma270_exact_peak_mb": Limit(at_most=1000),
    "roberta_lora_bs8_peak_mb": Limit(at_most=450),
    "roberta_lora_bs64_peak_mb": Limit(at_most=450),
    "opt13_bs64_over_bs8": Limit(at_most=_FLAT),
    "roberta_bs64_over_bs8": Limit(at_most=_FLAT),
    "opt13_full_peak_mb": Limit(at_most=3200),
    "roberta_full_peak_mb": Limit(at_most=1200),
    "llama7b_peak_mb": Limit(at_most=GIB_BYTES / _MB),
    "llama7b_cgroup_mb": Limit(at_most=GIB_BYTES / _MB, where_measurable=True),
    "predicted_error_worst": Limit(at_most=_PREDICTION_ERROR),
}


#: A row with what was measured, as it is kept.
Measured = dict[str, Any]


def measure(row: Row, models: Path, *, cap_gb: float, limits: bool, quick: bool) -> Measured:
    """Measure one row; under hard limits too where the row wants it and `limits` says that it is possible."""
    folder = ensure(models, row.shape, row.dtype) if row.ours or row.shape == SMOLLM2 else None
    command = row.command(folder, cap_gb)
    progress(f"{row.key}: {row.label}, {row.batch} x {row.tokens} ...")
    free = measured.run(command)
    # The resident memory at which it died, refused more or killed.
    died = free.peak_rss_bytes if free.exit_code < 0 else free.report.get("died_bytes")
    found: Measured = asdict(row) | {
        "tokens": free.report.get("tokens", row.tokens),
        "peak_rss_mb": _mb(free.peak_rss_bytes if free.completed and died is None else None),
        "peak_anonymous_mb": _mb(free.peak_anonymous_bytes),
        "predicted_mb": _mb(free.report.get("predicted_bytes")),  # None for peers
        "seconds_a_step": min(free.report.get("seconds") or [], default=None),  # of the fastest
        "fits_1gib": None,  # not tried, or not possible here
        "smallest_limit_mb": None,  # also when not even 1 GiB is enough
        "died_mb": _mb(died),
        "error": free.report.get("died_because") or ("" if free.completed else free.error),
    }
    progress(f"  peak {found['peak_rss_mb']} MB, {free.seconds:.0f} s in all {found['error']}")
    if not (limits and free.completed and folder and row.ours and row.under_limit):
        return found

    def completes(limit: int) -> bool:
        limited = measured.run(
            command, limit_bytes=limit, evict=[folder / WEIGHTS_NAME], timeout_seconds=_PATIENCE * free.seconds
        )
        progress(f"  under {limit / _MB:.0f} MB: {'completes' if limited.completed else 'does not complete'}")
        return limited.completed

    if not row.search_limit:
        return found | {"fits_1gib": completes(GIB_BYTES)}
    smallest = measured.smallest_limit(
        completes,
        floor=int(_SURELY_TOO_SMALL * free.peak_anonymous_bytes),
        ceiling=GIB_BYTES,
        resolution=_QUICK_RESOLUTION_BYTES if quick else measured.RESOLUTION_BYTES,
    )
    return found | {"fits_1gib": smallest is not None, "smallest_limit_mb": _mb(smallest)}


def values_of(rows: Sequence[Measured]) -> dict[str, float | None]:
    """The bench's values; those of a peer that was not measured, and a failed row's, are None."""
    ours = {row["key"]: row for row in rows if row["method"] in (OURS, EXACT)}
    values: dict[str, float | None] = {f"{row.key}_peak_mb": None for row in PEER_ROWS}
    values |= {f"{row['key']}_peak_mb": row["peak_rss_mb"] for row in rows}
    values |= {f"{row['key']}_died_mb": row["died_mb"] for row in rows if row["died_mb"]}
    if first := ours.get("opt13_lora_bs8"):
        values["opt13_lora_bs8_anon_mb"] = first["peak_anonymous_mb"] if first["peak_rss_mb"] else None
        values["opt13_smallest_cgroup_mb"] = _survived(first, first["smallest_limit_mb"])
    for key, value in (("llama7b", "llama7b_cgroup_mb"), ("opt13_exact_bs8", "opt13_exact_cgroup_mb")):
        if limited := ours.get(key):
            values[value] = _survived(limited, _mb(GIB_BYTES))
    for model in ("opt13", "roberta"):
        small, large = ours.get(f"{model}_lora_bs8"), ours.get(f"{model}_lora_bs64")
        if small and large:
            values[f"{model}_bs64_over_bs8"] = _ratio(large["peak_rss_mb"], small["peak_rss_mb"])
    if exact := ours.get("smollm2_exact"):
        values["smollm2_exact_over_peer"] = _ratio(exact["peak_rss_mb"], values["smollm2_peer_peak_mb"])
    if ours:
        errors = [abs((_ratio(row["predicted_mb"], row["peak_rss_mb"]) or math.nan) - 1) for row in ours.values()]
        values["predicted_error_worst"] = None if any(map(math.isnan, errors)) else max(errors)
    return values


def _ratio(large: float | None, small: float | None) -> float | None:
    return large / small if large and small else None


def _survived(row: Measured, limit_mb: float | None) -> float | None:
    """The limit in MB under which the row ran to its end; infinity when 1 GiB was not enough; None: not tried."""
    if row["fits_1gib"] is None:
        return None
    return limit_mb if row["fits_1gib"] else math.inf


def _mb(size: int | None) -> float | None:
    return None if size is None else round(size / _MB, 1)


def _cells(measured_row: Measured) -> list[str]:
    row = Row(**{field.name: measured_row[field.name] for field in fields(Row) if field.name in measured_row})

    def shown(number: float | None, digits: int = 0) -> str:
        return "" if number is None else f"{number:,.{digits}f}"

    peak, died, fits = measured_row["peak_rss_mb"], measured_row["died_mb"], measured_row["fits_1gib"]
    return [
        row.label,
        f"{row.batch} x {row.tokens}",
        shown(peak) if peak else f"died at {died / 1000:.1f} GB" if died else "failed",
        shown(measured_row["peak_anonymous_mb"] if peak else None),
        shown(measured_row["predicted_mb"]),
        shown(measured_row["seconds_a_step"], 1),
        "" if fits is None else "fits" if fits else "does not fit",
        shown(measured_row["smallest_limit_mb"]),
        shown(None if row.paper_gb is None else row.paper_gb * 1000),
    ]


_COLUMNS = (
    *("row", "texts x tokens", "peak RSS, MB", "anonymous, MB", "predicted, MB", "s a step", "hard 1 GiB"),
    *("smallest limit, MB", "paper, MB"),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = _options(arguments)
    try:
        rows = chosen(options.rows, skip_peers=options.skip_peers, quick=options.quick)
    except ValueError as error:
        raise SystemExit(f"--rows: {error}") from error
    can_limit = cgroups.can_limit()
    if not can_limit:
        progress("Memory cgroups cannot be written here; the columns of hard limits stay empty.")
    kept = _kept(results_file("memory", options)) if options.resume else {}
    found = dict(kept)
    with models_folder(options.models) as models:
        for row in rows:
            if options.rows is not None or row.key not in kept:
                result = measure(row, models, cap_gb=options.cap_gb, limits=can_limit, quick=options.quick)
                found[row.key] = provenance(options) | result
    raw = [found[row.key] for row in (*OUR_ROWS, *PEER_ROWS) if row.key in found]
    values = values_of(raw)
    limits = {name: limit for name, limit in LIMITS.items() if name in values}  # of the rows that were chosen
    caption = f"A peer dies when it asks for more than the cap ({options.cap_gb:.1f} GB)."
    shown = table("Memory of a training step", _COLUMNS, [_cells(row) for row in raw], caption=caption)
    return finish("memory", [shown], values=values, limits=limits, raw=raw, options=options)


def _kept(file: Path) -> Mapping[str, Measured]:
    """The rows in the results, by key. A row without a commit of its own is of the results' commit."""
    if not file.exists():
        return {}
    stored = json.loads(file.read_text(encoding="utf-8"))
    about = {name: stored[name] for name in ("commit", "date", "arguments")}
    return {row["key"]: about | row for row in stored["raw"]}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.memory", "Memory of a training step, ours and the peers'.")
    made.add_argument("--resume", action="store_true", help="keep the rows that the results have")
    made.add_argument("--rows", nargs="+", metavar="PATTERN", help="only these rows, such as 'opt13_*'")
    made.add_argument("--skip-peers", action="store_true", help="only our own rows")
    made.add_argument("--models", type=Path, help="keep the models in this folder (7 GB), and use what is there")
    # Of what is free now, so that the machine stays usable while a peer grows.
    available = 0.8 * available_bytes() / 1e9
    made.add_argument("--cap-gb", type=float, default=available, help="memory at which a peer dies")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
