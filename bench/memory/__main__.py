"""Memory of a step: ours and the peers', each in a fresh process, beside what the paper needed.

python -m bench.memory [--quick] [--rows PATTERN ...] [--skip-peers] [--models DIR] [--cap-gb GB]

MB are 10^6 bytes. Models have random weights: memory does not depend on the values.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from bench import cgroups, measured
from bench.child import available_bytes
from bench.harness import Limit, finish, parser, progress, start, table
from bench.measured import MIB, Measurement
from bench.memory.rows import Row, chosen
from bench.shapes import ensure, models_folder
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
    "smollm2_exact_peak_mb": Limit(at_most=560),
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


@dataclass(frozen=True, kw_only=True)
class Result:
    """A measured row."""

    row: Row
    free: Measurement  #: without a limit
    fits_1gib: bool | None  #: None: not tried, or not possible here
    smallest_limit_bytes: int | None  #: None also when not even 1 GiB is enough; `fits_1gib` tells

    @property
    def died_bytes(self) -> int | None:
        """The resident memory at which it died, refused more or killed; None when it ended otherwise."""
        if self.free.exit_code < 0:
            return self.free.peak_rss_bytes
        died: int | None = self.free.report.get("died_bytes")
        return died

    @property
    def peak_bytes(self) -> int | None:
        """Peak RSS of steps that were done; None when they were not."""
        return self.free.peak_rss_bytes if self.free.completed and self.died_bytes is None else None

    @property
    def outcome(self) -> str:
        """The peak in MB, or what happened instead."""
        if self.peak_bytes is not None:
            return f"{self.peak_bytes / _MB:,.0f}"
        if self.died_bytes is not None:
            return f"died at {self.died_bytes / _MB / 1000:.1f} GB"
        return "failed"

    @property
    def predicted_bytes(self) -> int | None:
        """What was said beforehand; None for peers."""
        predicted: int | None = self.free.report.get("predicted_bytes")
        return predicted

    @property
    def seconds_a_step(self) -> float | None:
        """Of the fastest step."""
        return min(self.free.report.get("seconds") or [], default=None)

    def to_json(self) -> dict[str, Any]:
        """For the raw results, from which the plot is drawn."""
        return asdict(self.row) | {
            "peak_rss_mb": _mb(self.peak_bytes),
            "peak_anonymous_mb": _mb(self.free.peak_anonymous_bytes),
            "predicted_mb": _mb(self.predicted_bytes),
            "seconds_a_step": self.seconds_a_step,
            "fits_1gib": self.fits_1gib,
            "smallest_limit_mb": _mb(self.smallest_limit_bytes),
            "died_mb": _mb(self.died_bytes),
            "error": self.free.report.get("died_because") or ("" if self.free.completed else self.free.error),
        }


def measure(row: Row, models: Path, *, cap_gb: float, limits: bool, quick: bool) -> Result:
    """Measure one row; under hard limits too where the row wants it and `limits` says that it is possible."""
    folder = ensure(models, row.shape, row.dtype) if row.ours else None
    command = row.command(folder, cap_gb)
    progress(f"{row.key}: {row.label}, {row.batch} x {row.tokens} ...")
    free = measured.run(command)
    result = Result(row=row, free=free, fits_1gib=None, smallest_limit_bytes=None)
    progress(f"  {result.outcome} MB, {free.seconds:.0f} s in all" if free.completed else f"  failed: {free.error}")
    if not (limits and free.completed and folder and row.under_limit):
        return result

    def completes(limit: int) -> bool:
        limited = measured.run(
            command, limit_bytes=limit, evict=[folder / WEIGHTS_NAME], timeout_seconds=_PATIENCE * free.seconds
        )
        progress(f"  under {limit / _MB:.0f} MB: {'completes' if limited.completed else 'does not complete'}")
        return limited.completed

    if not row.search_limit:
        return replace(result, fits_1gib=completes(GIB_BYTES))
    smallest = measured.smallest_limit(
        completes,
        floor=int(_SURELY_TOO_SMALL * free.peak_anonymous_bytes),
        ceiling=GIB_BYTES,
        resolution=_QUICK_RESOLUTION_BYTES if quick else measured.RESOLUTION_BYTES,
    )
    return replace(result, fits_1gib=smallest is not None, smallest_limit_bytes=smallest)


def values_of(results: Sequence[Result]) -> dict[str, float | None]:
    """The bench's values, of the rows that were measured; a failed row's are None."""
    by_key = {result.row.key: result for result in results}
    values: dict[str, float | None] = {}
    for key, result in by_key.items():
        if result.row.ours:
            values[f"{key}_peak_mb"] = _mb(result.peak_bytes)
    if first := by_key.get("opt13_lora_bs8"):
        values["opt13_lora_bs8_anon_mb"] = _mb(first.free.peak_anonymous_bytes) if first.peak_bytes else None
        values["opt13_smallest_cgroup_mb"] = _survived(first, first.smallest_limit_bytes)
    for key, value in (("llama7b", "llama7b_cgroup_mb"), ("opt13_exact_bs8", "opt13_exact_cgroup_mb")):
        if limited := by_key.get(key):
            values[value] = _survived(limited, GIB_BYTES)
    for model in ("opt13", "roberta"):
        small, large = by_key.get(f"{model}_lora_bs8"), by_key.get(f"{model}_lora_bs64")
        if small and large:
            values[f"{model}_bs64_over_bs8"] = _ratio(large.peak_bytes, small.peak_bytes)
    errors = [_prediction_error(result) for result in results if result.row.ours]
    if errors:
        known = [error for error in errors if error is not None]
        values["predicted_error_worst"] = max(known) if len(known) == len(errors) else None
    return values


def _ratio(large: int | None, small: int | None) -> float | None:
    return large / small if large and small else None


def _survived(result: Result, limit_bytes: int | None) -> float | None:
    """The limit in MB under which the row ran to its end; infinity when 1 GiB was not enough; None: not tried."""
    if result.fits_1gib is None:
        return None
    return _mb(limit_bytes) if result.fits_1gib else math.inf


def _prediction_error(result: Result) -> float | None:
    peak, predicted = result.peak_bytes, result.predicted_bytes
    return abs(predicted - peak) / peak if peak and predicted else None


def _mb(size: int | None) -> float | None:
    return None if size is None else round(size / _MB, 1)


def _cells(result: Result) -> list[str]:
    row = result.row

    def shown(number: float | None, digits: int = 0) -> str:
        return "" if number is None else f"{number:,.{digits}f}"

    anonymous = result.free.peak_anonymous_bytes if result.peak_bytes else None
    limit = "" if result.fits_1gib is None else "fits" if result.fits_1gib else "does not fit"
    return [
        row.label,
        f"{row.batch} x {result.free.report.get('tokens', row.tokens)}",
        result.outcome,
        shown(_mb(anonymous)),
        shown(_mb(result.predicted_bytes)),
        shown(result.seconds_a_step, 1),
        limit,
        shown(_mb(result.smallest_limit_bytes)),
        shown(None if row.paper_gb is None else row.paper_gb * 1000),
    ]


_COLUMNS = (
    "row",
    "texts x tokens",
    "peak RSS, MB",
    "anonymous, MB",
    "predicted, MB",
    "s a step",
    "hard 1 GiB",
    "smallest limit, MB",
    "paper, MB",
)
_CAPTION = (
    "Each row is a fresh process, and its numbers are of the whole process: Python, torch and the weights included. "
    "All run with the memory settings of the daemon's children (MALLOC_*, OMP_WAIT_POLICY). Peers: bf16, fused AdamW, "
    "factors of rank 8 in bf16; RoBERTa peers have a classification head, so no logits over the vocabulary. A peer "
    "dies when it asks for more than the cap ({cap:.1f} GB). A hard limit is a cgroup's, without swap; the pages of "
    "the weights file count."
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
    with models_folder(options.models) as models:
        results = [measure(row, models, cap_gb=options.cap_gb, limits=can_limit, quick=options.quick) for row in rows]
    values = values_of(results)
    shown = table(
        "Memory of a training step", _COLUMNS, [_cells(r) for r in results], caption=_CAPTION.format(cap=options.cap_gb)
    )
    return finish(
        "memory",
        [shown],
        values=values,
        limits=_limits_for(values),
        raw=[result.to_json() for result in results],
        options=options,
    )


def _limits_for(values: Mapping[str, float | None]) -> dict[str, Limit]:
    """Those of the rows that were chosen."""
    return {name: limit for name, limit in LIMITS.items() if name in values}


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    made = parser("bench.memory", "Memory of a training step, ours and the peers'.")
    made.add_argument("--rows", nargs="+", metavar="PATTERN", help="only these rows, such as 'opt13_*'")
    made.add_argument("--skip-peers", action="store_true", help="only our own rows")
    made.add_argument("--models", type=Path, help="keep the models in this folder (7 GB), and use what is there")
    # Of what is free now, so that the machine stays usable while a peer grows.
    available = 0.8 * available_bytes() / 1e9
    made.add_argument("--cap-gb", type=float, default=available, help="memory at which a peer dies")
    return made.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(start(main))
