"""The Markdown files: figures are those of the committed results, reference is the code's, and links lead somewhere."""

import json
import re
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


#: Of the README.
MAX_WORDS = 1300


def test_the_readme_is_one_page_and_links_every_other() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= MAX_WORDS
    missing = [page.name for page in (ROOT / "docs").glob("*.md") if f"](docs/{page.name}" not in text]
    assert not missing


@pytest.mark.parametrize("file", [pytest.param(file, id=str(file.relative_to(ROOT))) for file in markdown_files()])
def test_links_lead_to_files_and_headings(file: Path) -> None:
    for target, heading in re.findall(r"\]\((?!https?:)([^)#]*)(?:#([^)]*))?\)", file.read_text()):
        path = file.parent / target if target else file
        assert path.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
            assert heading in [re.sub(r"[^a-z0-9 -]", "", found.lower()).replace(" ", "-") for found in headings]


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
def test_what_is_marked_is_filled_in(file: Path) -> None:
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
        pytest.param("<!-- routes: nowhere --><!-- end -->", id="no such tag"),
        pytest.param("<!-- settings: nowhere --><!-- end -->", id="no such section"),
        pytest.param("a <!-- figure: step speed -->1 <!-- figure: step speed -->1<!-- end -->", id="without an end"),
    ],
)
def test_a_mark_that_cannot_be_filled_in_is_refused(text: str, results: Path) -> None:
    with pytest.raises(ValueError, match="<!-- "):
        filled_in(text, results)
