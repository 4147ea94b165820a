"""Fill in what the Markdown files take from elsewhere: figures from the committed results, reference from the code.

python -m bench.readme [--check]

A single figure inside a sentence, with a format such as .2f (without one: three significant digits), and a factor where
the unit is another one:

    The step takes <!-- figure: step lora_over_floor .2f -->1.54<!-- end --> times the floor,
    <!-- figure: load ingest_over_bare .0f *100 -->56<!-- end --> % of ...

The table of all limits that the committed results miss:

    <!-- missed: all -->
    <!-- end -->

The list of committed results whose bench has changed since, by the commits that they were measured at:

    <!-- older: all -->
    <!-- end -->

Without committed results a figure is "(not measured)". `python -m bench.NAME`, and then this command, renew both.

A table that a bench keeps in its results:

    <!-- table: nights mornings -->
    <!-- end -->

A table of the settings of a section, or of the routes with a tag (bench.common.reference):

    <!-- settings: training -->
    <!-- end -->
    <!-- routes: jobs -->
    <!-- end -->

A mark of a figure may not begin a line: Markdown would take the whole line for HTML. With --check nothing is written,
and the exit code is 1 where a file says something else than the results.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from difflib import unified_diff
from importlib import import_module
from pathlib import Path
from typing import Any

from bench.common.harness import RESULTS, ROOT, Limit
from bench.common.reference import markdown_table, routes_table, settings_table

_KINDS = "figure|missed|older|table|settings|routes"
#: Kinds of tables that are the code's: by their word.
_OF_CODE = {"settings": settings_table, "routes": routes_table}
_MARK = re.compile(rf"(<!-- ({_KINDS}): ([^>]*?) -->).*?(<!-- end -->)", re.DOTALL)
_BEGINNING = re.compile(rf"<!-- (?:{_KINDS}):")
_NOT_MEASURED = "(not measured)"
#: Results that are not named like a module: of a task, and of a second kind of processor.
_MODULES = {"sst2": "bench.tasks", "labels": "bench.tasks.labels", "step-amx": "bench.step"}


def markdown_files() -> list[Path]:
    """Those that may hold figures."""
    return [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "bench").glob("*.md")]


def limits_of(name: str) -> Mapping[str, Limit]:
    """The limits in the code of the bench or stress test of this name. Raises ModuleNotFoundError."""
    limits: Mapping[str, Limit] = import_module(_module_of(name)).LIMITS
    return limits


def _module_of(name: str) -> str:
    module = _MODULES.get(name, f"bench.{name}")
    modules = (f"{module}.__main__", module, f"tests.stress.test_{name}")
    return next((one for one in modules if (ROOT / f"{one.replace('.', '/')}.py").exists()), module)


def filled_in(text: str, results: Path = RESULTS) -> str:
    """The text with everything that is marked filled in. Raises ValueError naming a mark that is wrong."""

    def fill(found: re.Match[str]) -> str:
        opening, kind, what, closing = found.groups()
        name, *words = what.split()
        try:
            if kind in _OF_CODE:
                return f"{opening}\n{_OF_CODE[kind](name)}\n{closing}"
            if kind in ("missed", "older"):
                return f"{opening}\n{(_missed if kind == 'missed' else _older)(results)}\n{closing}"
            file, summary = results / f"{name}.json", None
            if file.exists():
                summary = json.loads(file.read_text(encoding="utf-8"))
            else:
                limits_of(name)  # there is such a bench
            if kind == "table":
                table = markdown_table(**summary["tables"][words[0]]) if summary else _NOT_MEASURED
                return f"{opening}\n{table}\n{closing}"
            if text[: found.start()].rpartition("\n")[2].strip() == "":
                raise ValueError("it begins a line")
            return f"{opening}{_figure(summary, words) if summary else _NOT_MEASURED}{closing}"
        except (OSError, ImportError, ValueError, LookupError, subprocess.CalledProcessError) as error:
            raise ValueError(f"{opening}: {error!r}") from error

    if len(_MARK.findall(text)) != len(_BEGINNING.findall(text)):
        raise ValueError("a mark has no <!-- end --> of its own")
    return _MARK.sub(fill, text)


def _figure(summary: dict[str, Any], words: Sequence[str]) -> str:
    said, values = " ".join(words), summary["values"]
    name = max((one for one in values if f"{said} ".startswith(f"{one} ")), key=len, default=words[0])
    rest = said.removeprefix(name).split()
    factors = [word for word in rest if word.startswith("*")]
    formats = [word for word in rest if not word.startswith("*")]
    value = values[name]
    if value is None:
        return _NOT_MEASURED
    for factor in factors:
        value *= float(factor[1:])
    return format(value, formats[0] if formats else ".3g")


def _limits(summary: dict[str, Any]) -> dict[str, Limit]:
    floors = summary.get("at_least", ())
    return {
        name: Limit(at_least=bound) if name in floors else Limit(at_most=bound)
        for name, bound in summary["limits"].items()
    }


def _missed(results: Path) -> str:
    rows = ["| bench | value | measured | limit |", "|---|---|---|---|"]
    for file in sorted(results.glob("*.json")):
        summary = json.loads(file.read_text(encoding="utf-8"))
        for name, limit in _limits(summary).items():
            value = summary["values"].get(name)
            if value is not None and limit.verdict(value) == "missed" and "quick" not in summary:
                rows.append(f"| {file.stem} | {name} | {value:.4g} | {limit} |")
    return "\n".join(rows)


def _older(results: Path) -> str:
    """A line for each commit. Raises CalledProcessError where git does not know one, as in a shallow clone."""
    lines: dict[tuple[str, str], list[str]] = {}
    for file in sorted(results.glob("*.json")):
        summary = json.loads(file.read_text(encoding="utf-8"))
        if "quick" not in summary and bench_changed_since(file.stem, summary["commit"]):
            lines.setdefault((summary["date"][:10], summary["commit"][:10]), []).append(file.stem)
    return "\n".join(f"- {date}, {commit}: {', '.join(names)}" for (date, commit), names in sorted(lines.items()))


def bench_changed_since(name: str, commit: str) -> bool:
    """Whether the files of the bench of this name differ from those at the commit. Raises CalledProcessError."""
    module = Path(*_module_of(name).removesuffix(".__main__").split("."))
    command = ["git", "diff", "--quiet", commit, "--", str(module), f"{module}.py"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, check=False)
    if done.returncode > 1:
        done.check_returncode()
    return done.returncode == 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Fill in the figures, or check them."""
    parser = argparse.ArgumentParser(prog="python -m bench.readme", description="Fill in figures and reference tables.")
    parser.add_argument("--check", action="store_true", help="write nothing; say where a file differs from the results")
    options = parser.parse_args(arguments)
    differs = False
    for file in markdown_files():
        text = file.read_text(encoding="utf-8")
        try:
            new = filled_in(text)
        except ValueError as error:
            raise SystemExit(f"{file.relative_to(ROOT)}: {error}") from error
        if options.check:
            name = str(file.relative_to(ROOT))
            sys.stdout.writelines(unified_diff(text.splitlines(True), new.splitlines(True), name, "by the results"))
            differs |= new != text
        elif new != text:
            file.write_text(new, encoding="utf-8")
    return int(differs)


if __name__ == "__main__":
    sys.exit(main())
