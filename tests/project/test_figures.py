"""The Markdown files: figures are those of the committed results, reference is the code's, and links lead somewhere.

The results: each says what it was measured on, and its limits are the code's.
"""

import json
import re
import subprocess
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from bench.common.harness import RESULTS, ROOT, same_product
from bench.readme import filled_in, limits_of, markdown_files

#: Git's name of a tree without files, which every clone knows.
NO_FILES = "4b825dc642cb6eb9a060e54bf8d69288fbee4904"
#: Of the README.
MAX_WORDS = 1300
COMMITTED = [file for file in sorted(RESULTS.glob("*.json")) if "-quick" not in file.stem]


def test_the_readme_is_one_page_and_links_every_other() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(re.sub("<!--.*?-->", "", text).split()) <= MAX_WORDS
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name}" not in text]
    assert not missing


def headings_of(file: Path) -> set[str]:
    """The headings as GitHub's links name them."""
    found = re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)
    return {re.sub(r"[^a-z0-9 -]", "", heading.lower()).replace(" ", "-") for heading in found}


def test_links_lead_to_files_and_headings(subtests: pytest.Subtests) -> None:
    for file in markdown_files():
        for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", file.read_text()):
            path = file.parent / target if target else file
            with subtests.test(file=str(file.relative_to(ROOT)), link=f"{target}#{heading}"):
                assert path.exists()
                assert not heading or heading in headings_of(path)


def read(file: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads(file.read_text())
    return summary


def test_a_result_says_what_it_was_measured_on_and_its_limits_are_the_codes(subtests: pytest.Subtests) -> None:
    for file in COMMITTED:
        summary, limits = read(file), limits_of(file.stem)
        with subtests.test(result=file.stem):
            assert re.fullmatch(r"[0-9a-f]{40}", summary.get("commit", "")), "run the bench on a commit"
            assert datetime.fromisoformat(summary["date"]).tzinfo is not None
            assert summary["arguments"]["quick"] is False and summary["machine"]["cpu"]
            assert summary["limits"] == {name: limit.bound for name, limit in limits.items()}, "run the bench again"
            assert set(summary.get("at_least", ())) == {name for name, limit in limits.items() if limit.at_most is None}
            assert limits.keys() <= summary["values"].keys()


def test_what_is_compared_was_measured_of_one_product(subtests: pytest.Subtests) -> None:
    """Each run at its own commit, without changes. The rows of bench.memory are not compared with each other."""
    for file in COMMITTED:
        summary = read(file)
        with subtests.test(result=file.stem):
            commits = {row["commit"] for row in summary["raw"]} if file.stem == "memory" else set(summary["commits"])
            assert all(len(commit) == 40 for commit in commits)
            known = [commit for commit in commits | {summary["commit"]} if in_history(commit)]
            assert file.stem == "memory" or all(same_product(commit, known[0]) for commit in known)


def test_raw_runs_are_not_committed() -> None:
    assert not [file.name for file in RESULTS.glob("*.*") if file.stat().st_size > 40_000]


def in_history(commit: str) -> bool:
    """A shallow clone has a part of it."""
    command = ["git", "cat-file", "-e", commit]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.fixture
def results(tmp_path: Path) -> Path:
    summary = {
        "bench": "step",
        "commit": "0123456789abcdef",
        "date": "2026-11-27T01:02Z",
        "machine": {"cpu": "A CPU", "cores": 2},
        "values": {"over_floor": 1.53821, "speed": 2.0, "unlimited": None},
        "limits": {"over_floor": 1.5, "speed": 1},
        "at_least": ["speed"],
    }
    (tmp_path / "step.json").write_text(json.dumps(summary))
    return tmp_path


def test_what_is_marked_is_filled_in(subtests: pytest.Subtests) -> None:
    for file in markdown_files():
        text = file.read_text()
        with subtests.test(file=str(file.relative_to(ROOT))):
            if "<!-- older: all" in text and not all(in_history(read(result)["commit"]) for result in COMMITTED):
                pytest.skip("a shallow clone")
            assert text == filled_in(text), "run `python -m bench.readme`"


def test_all_missed_limits_are_listed(results: Path) -> None:
    rows = ["| bench | value | measured | limit |", "|---|---|---|---|", "| step | over_floor | 1.538 | at most 1.5 |"]
    assert filled_in("<!-- missed: all --><!-- end -->", results).splitlines()[1:-1] == rows
    assert "<!-- missed: all -->" in (ROOT / "docs/benchmarks.md").read_text()


def test_a_result_older_than_its_bench_is_listed(results: Path) -> None:
    for commit, shown in (("HEAD", ""), (NO_FILES, f"- 2026-11-27, {NO_FILES[:10]}: step")):
        (results / "step.json").write_text(json.dumps(read(results / "step.json") | {"commit": commit}))
        assert filled_in("<!-- older: all --><!-- end -->", results).splitlines()[1:-1] == [shown]


def test_a_wrong_figure_is_corrected(results: Path) -> None:
    for mark, shown in (
        ("step over_floor", "1.54"),
        ("step over_floor .1f", "1.5"),
        ("step over_floor .0f *100", "154"),
        ("step unlimited", "(not measured)"),
        ("pause bit_equal", "(not measured)"),
    ):
        text = f"It takes <!-- figure: {mark} -->9.99<!-- end --> times."
        assert filled_in(text, results) == text.replace("9.99", shown)


def test_a_mark_that_cannot_be_filled_in_is_refused(results: Path, subtests: pytest.Subtests) -> None:
    for reason, text in (
        ("unknown value", "a <!-- figure: step no_such_value -->1<!-- end -->"),
        ("unknown bench", "a <!-- figure: stairs over_floor -->1<!-- end -->"),
        ("begins a line", "a\n<!-- figure: step over_floor -->1<!-- end -->"),
        ("no such tag", "<!-- routes: nowhere --><!-- end -->"),
        ("no such section", "<!-- settings: nowhere --><!-- end -->"),
        ("without an end", "a <!-- figure: step speed -->1 <!-- figure: step speed -->1<!-- end -->"),
    ):
        with subtests.test(reason), pytest.raises(ValueError, match="<!-- "):
            filled_in(text, results)
