"""The frame of every bench: its options, the machine, a table for people, and a last line of JSON for machines."""

from __future__ import annotations

import argparse
import json
import os
import platform
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from math import isfinite
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.common.child import write_line
from pocketllm.daemon.child import CHILD_SETTINGS, child_environment

#: The checkout, where `python -m bench.NAME` runs.
ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"
#: What is measured.
_ROOMS = ("api", "backprop", "daemon", "engine", "mezo", "pocketllm", "storage")
#: A table that is piped into a file is not cut to 80 columns.
_PIPED_WIDTH = 150
_INTERRUPTED = 130  # what shells report for Ctrl-C

#: A value is None when it could not be measured here.
Values = Mapping[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Limit:
    """What a value may be. Exactly one of the two bounds is given."""

    at_most: float | None = None
    at_least: float | None = None
    where_measurable: bool = False  #: a machine on which the value cannot be measured does not miss the limit
    always: bool = False  #: holds for a quick run, too: correctness, not speed

    def __post_init__(self) -> None:
        if (self.at_most is None) == (self.at_least is None):
            raise ValueError("give either at_most or at_least")

    @property
    def bound(self) -> float:
        """The number itself."""
        bound = self.at_least if self.at_most is None else self.at_most
        assert bound is not None
        return bound

    def verdict(self, value: float | None) -> str:
        """ "ok", "missed" or "not measured"."""
        if value is None:
            return "not measured"
        # Written so that a value that is no number misses.
        met = value <= self.bound if self.at_least is None else value >= self.bound
        return "ok" if met else "missed"

    def __str__(self) -> str:
        return f"{'at most' if self.at_least is None else 'at least'} {self.bound:g}"


Limits = Mapping[str, Limit]


def is_ok(values: Values, limits: Limits, *, quick: bool) -> bool:
    """Whether no limit is missed. In a quick run a limit that is not `always` only needs a measured value."""

    def holds(name: str, limit: Limit) -> bool:
        verdict = limit.verdict(values.get(name))
        if verdict == "missed":
            return quick and not limit.always
        return verdict == "ok" or limit.where_measurable

    return all(holds(name, limit) for name, limit in limits.items())


def provenance(options: argparse.Namespace) -> dict[str, Any]:
    """What a figure was measured on: the commit the bench started from, the date (UTC) and its arguments.

    The commit ends in "+dirty" where the checkout differs from it, results aside. Of a path only the name is kept.
    """
    return {
        "commit": options.commit,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%MZ"),
        "arguments": {
            name: _without_folders(value)
            for name, value in vars(options).items()
            if name not in ("commit", "results", "models")
        },
    }


def _without_folders(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_folders(one) for one in value]
    return value.name if isinstance(value, Path) else value


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        changed = git("status", "--porcelain", "--", ".", ":!bench/results")
        return git("rev-parse", "HEAD") + ("+dirty" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine() -> dict[str, str | int]:
    """What figures depend on, without anything that tells whose machine it is. Memory is in bytes."""
    return {
        "cpu": _cpu_model(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "platform": f"{platform.system()} {platform.release()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": _version("torch"),
        "transformers": _version("transformers"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.machine()
    models = [line.partition(":")[2].strip() for line in lines if line.startswith(("model name", "Hardware"))]
    return models[0] if models else platform.machine()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "absent"


def parser(module: str, description: str) -> argparse.ArgumentParser:
    """The options that all benches share."""
    made = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    made.add_argument("--quick", action="store_true", help="tiny models, one round: does the bench work?")
    made.add_argument("--results", type=Path, default=RESULTS, help="folder for the results (bench/results)")
    made.set_defaults(commit=_commit())  # now: by the end of a long run the checkout may be another one
    return made


def progress(text: str) -> None:
    """Say on stderr what is being measured."""
    _console(stderr=True).print(text, style="dim", markup=False, highlight=False)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, caption: str = "") -> Table:
    """A table for people: names to the left, everything else to the right."""
    made = Table(title=title, caption=caption or None, title_justify="left", caption_justify="left")
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def finish(
    name: str, tables: Sequence[Table], *, values: Values, limits: Limits, raw: Any, options: argparse.Namespace
) -> int:
    """Print the tables and the last line, and keep the results. Returns the exit code: 0 when no limit is missed."""
    summary = keep(name, values=values, limits=limits, raw=raw, options=options)
    console = _console()
    for made in tables:
        console.print(made, markup=False)
    console.print(_verdicts(values, limits, quick=options.quick))
    write_line(summary)
    return 0 if summary["ok"] else 1


def keep(name: str, *, values: Values, limits: Limits, raw: Any, options: argparse.Namespace) -> dict[str, Any]:
    """Write raw/NAME.json with all of `raw`, and NAME.json with its tables; returns what both have besides."""
    summary: dict[str, Any] = {
        "bench": name,
        **provenance(options),
        "machine": machine(),
        # A failure may be told as infinity, which JSON has no word for.
        "values": {
            key: None if value is None or not isfinite(value) else _rounded(value) for key, value in values.items()
        },
        "limits": {key: limit.bound for key, limit in limits.items()},
        "ok": is_ok(values, limits, quick=options.quick),
        **({"quick": True} if options.quick else {}),
    }
    if floors := [key for key, limit in limits.items() if limit.at_most is None]:
        summary["at_least"] = floors  # the other limits are upper ones
    kept = whole = {"raw": raw}  # of a list of rows, which are shown, nothing goes
    if isinstance(raw, dict):  # git ignores raw/; what is committed still says of which products the runs were
        commits = {run["commit"] for run in raw.get("runs", ()) if "commit" in run}
        kept = {"tables": raw.get("tables", {}), "commits": sorted(commits)}
    for file, more in ((results_file(name, options), kept), (results_file(f"raw/{name}", options), whole)):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(summary | more, indent=1) + "\n", encoding="utf-8")
    return summary


def results_file(name: str, options: argparse.Namespace) -> Path:
    """Where `keep` writes; a quick run has files of its own."""
    return Path(options.results, f"{name}{'-quick' if options.quick else ''}.json")


def stored_runs(name: str, options: argparse.Namespace, *, seconds: float) -> dict[str, Any]:
    """Return the `raw` to go on with: with --resume what `keep` wrote. seconds: the length of a run.

    Raises SystemExit if they are of other runs, or if the product has changed since: all that is compared is of one.
    """
    file = results_file(f"raw/{name}", options)
    if not (options.resume and file.exists()):
        return {"seconds": seconds, "runs": []}
    stored = json.loads(file.read_text(encoding="utf-8"))
    raw: dict[str, Any] = stored["raw"]
    if raw["seconds"] != seconds or not same_product(stored["commit"], options.commit):
        raise SystemExit(f"{file} is of commit {stored['commit']}, {raw['seconds']:g} s a run: leave --resume out.")
    return raw


def same_product(commit: str, other: str) -> bool:
    """Tell whether the product's code is the same in both; False where one is not in this clone's history."""
    if commit == other:
        return True
    command = ["git", "diff", "--quiet", commit, other, "--", *_ROOMS]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


def _verdicts(values: Values, limits: Limits, *, quick: bool) -> Table:
    rows = []
    for name, value in values.items():
        limit = limits.get(name)
        shown = "-" if value is None else f"{_rounded(value):g}"
        verdict = limit.verdict(value) if limit else ""
        if limit and quick and verdict == "missed" and not limit.always:
            verdict = "measured"
        rows.append([name, shown, str(limit or ""), verdict])
    return table(
        "Values and limits" + (" (a quick run proves no figures)" if quick else ""),
        ["value", "measured", "limit", "verdict"],
        rows,
    )


def _rounded(value: float) -> float:
    """Six significant digits: more is noise."""
    return float(f"{value:.6g}")


def _console(*, stderr: bool = False) -> Console:
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPED_WIDTH)


def start(main: Callable[[], int]) -> int:
    """Run a bench's `main` as the daemon runs its children, and return the exit code.

    The process starts itself anew with the daemon's `child_environment`, since the C library and OpenMP read it
    when they are loaded; what it starts inherits it, but for peers that are to run `as_by_itself`.
    Ctrl-C and SIGTERM unwind, which ends child processes and removes temporary folders.
    """
    environment = child_environment()
    if environment != dict(os.environ):
        os.execve(sys.executable, [sys.executable, *sys.orig_argv[1:]], environment)
    signal.signal(signal.SIGTERM, _unwind)
    try:
        return main()
    except KeyboardInterrupt:
        progress("Interrupted.")
        return _INTERRUPTED


def as_by_itself() -> dict[str, str]:
    """The environment of a peer that runs as it does without PocketLLM: ours, less the daemon's own settings.

    Threads that sleep while they wait make a peer's backpropagation and decoding a third slower. What the user has
    set otherwise stays.
    """
    return {name: value for name, value in os.environ.items() if CHILD_SETTINGS.get(name) != value}


def _unwind(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)
