"""`pocketllm export`: every text leaves as a file that `pocketllm import` reads back to the same ids."""

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pocketllm.cli.texts import PAGE_TEXTS, as_given
from tests.support.daemon.commands import WAIT_SECONDS, Run, child_environment, commands, run_process
from tests.support.daemon.served import Port, Served, serving

GIVEN: list[dict[str, Any]] = [
    *({"text": f"Note {number}.", "source": "notes"} for number in range(2 * PAGE_TEXTS + 3)),
    {"text": " kept as\r\nit is \u2028 \0 \\u0041", "source": "a\0b"},
    {"prompt": "Who?", "completion": " Anna.", "source": "chat"},
    {"text": "good day", "label": "positive", "source": "diary"},
    {"messages": [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}], "source": "x"},
]


@pytest.fixture(autouse=True)
def _texts(served: Served) -> None:
    assert served.api.post("/texts", json=GIVEN).json()["created"] == len(GIVEN)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where to export to, in a folder that is empty."""
    (tmp_path / "stick").mkdir()
    return tmp_path / "stick" / "all.jsonl"


def key(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


def test_what_is_exported_is_imported_to_the_same_ids(
    run: Run, served: Served, port: Port, file: Path, tmp_path: Path
) -> None:
    assert run.said("export", str(file)).startswith(f"Wrote {file}: {len(GIVEN)} texts, ")
    # Not splitlines(): a JSON text may hold other line separators as they are.
    lines = file.read_text(encoding="utf-8").split("\n")
    assert sorted(key(json.loads(line)) for line in lines if line) == sorted(map(key, GIVEN))
    assert "Added 0 texts. 107 were already stored." in run("import", str(file)).stdout
    with serving(tmp_path / "other", port) as other:
        assert "Added 107 texts." in commands(other.home)("import", str(file)).stdout
        assert {text["id"] for text in other.texts()} == {text["id"] for text in served.texts()}


def test_to_train_elsewhere_nothing_is_exported_that_judges_what_comes_back(
    run: Run, served: Served, file: Path
) -> None:
    run.said("export", "--train", str(file))
    texts = served.api.get("/texts", params={"limit": 500}).json()["data"]
    kept = {key(as_given(text)) for text in texts if not text["held_out"]}
    assert {key(json.loads(line)) for line in file.read_bytes().splitlines()} == kept
    assert 0 < len(kept) < len(texts)


def test_the_file_is_its_owners_and_nothing_else_is_left(run: Run, file: Path) -> None:
    document = run.json("export", str(file))
    assert document == {"file": str(file), "texts": len(GIVEN), "bytes": file.stat().st_size}
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(file.parent.iterdir()) == [file]


def test_a_file_that_is_there_stays_unless_forced(run: Run, file: Path) -> None:
    file.write_text("mine")
    assert "already exists. Give another name, or replace it with --force" in run.refused("export", str(file))
    assert file.read_text() == "mine"
    run.said("export", str(file), "--force")
    assert file.read_text() != "mine"


def test_what_cannot_be_written(run: Run, alone: Run, file: Path) -> None:
    assert "is a folder" in run.refused("export", str(file.parent))
    assert "There is no folder" in run.refused("export", str(file.parent / "none" / "a"))
    run.refused("export", "-", "--json", code=2)
    assert "No daemon answers" in alone.refused("export", str(file))
    assert list(file.parent.iterdir()) == []


def test_stdout(run: Run, home: Path, file: Path) -> None:
    run("export", str(file))
    child = run_process(home, "export", "-", PYTHONIOENCODING="ascii")
    assert (child.returncode, child.stderr) == (0, "")
    assert child.stdout.encode() == file.read_bytes()


def test_a_reader_that_has_seen_enough(home: Path) -> None:
    command = f"{sys.executable} -m pocketllm export - | head -1 >/dev/null"
    child = subprocess.run(command, shell=True, env=child_environment(home), capture_output=True, timeout=WAIT_SECONDS)
    assert child.stderr == b""
