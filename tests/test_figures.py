"""The figures in the Markdown files are those of the committed results."""

import json
from pathlib import Path

import pytest

from bench.harness import ROOT
from bench.readme import filled_in, markdown_files

TABLE = """<!-- results: step -->
| value | measured | limit | |
|---|---|---|---|
| over_floor | 1.538 | at most 1.5 | missed |
| speed | 2 | at least 1 | ok |
| unlimited | - |  |  |

2026-11-27, 0123456789, A CPU, 2 cores.
<!-- end -->"""


@pytest.fixture
def results(tmp_path: Path) -> Path:
    summary = {
        "commit": "0123456789abcdef",
        "date": "2026-11-27T01:02Z",
        "machine": {"cpu": "A CPU", "cores": 2},
        "values": {"over_floor": 1.53821, "speed": 2.0, "unlimited": None},
        "limits": {"over_floor": 1.5, "speed": 1},
        "at_least": ["speed"],
    }
    (tmp_path / "step.json").write_text(json.dumps(summary))
    return tmp_path


@pytest.mark.parametrize("file", [pytest.param(file, id=str(file.relative_to(ROOT))) for file in markdown_files()])
def test_marked_figures_are_the_results(file: Path) -> None:
    text = file.read_text()
    assert text == filled_in(text), "run `python -m bench.readme`"


def test_a_table_holds_values_and_limits(results: Path) -> None:
    assert filled_in("<!-- results: step --><!-- end -->", results) == TABLE
    assert filled_in(TABLE, results) == TABLE


@pytest.mark.parametrize(
    ("mark", "shown"),
    [("step over_floor", "1.54"), ("step over_floor .1f", "1.5"), ("step over_floor .0f *100", "154")],
)
def test_a_wrong_figure_is_corrected(mark: str, shown: str, results: Path) -> None:
    text = f"It takes <!-- figure: {mark} -->9.99<!-- end --> times."
    assert filled_in(text, results) == text.replace("9.99", shown)


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("a <!-- figure: step no_such_value -->1<!-- end -->", id="unknown value"),
        pytest.param("a <!-- figure: stairs over_floor -->1<!-- end -->", id="unknown bench"),
        pytest.param("a <!-- figure: step unlimited -->1<!-- end -->", id="not measured"),
        pytest.param("a\n<!-- figure: step over_floor -->1<!-- end -->", id="begins a line"),
        pytest.param("a <!-- figure: step speed -->1 <!-- figure: step speed -->1<!-- end -->", id="without an end"),
    ],
)
def test_a_mark_that_cannot_be_filled_in_is_refused(text: str, results: Path) -> None:
    with pytest.raises(ValueError, match="<!-- "):
        filled_in(text, results)
