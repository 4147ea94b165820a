"""`pocketllm export`: every text leaves as a file that `pocketllm import` reads back to the same ids."""

import json
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pocketllm.cli.texts import PAGE_TEXTS, as_given
from tests.support.commands import WAIT_SECONDS, Run, child_environment, commands
from tests.support.real_daemon import Daemon, running

GIVEN: list[dict[str, str]] = [
    *({"text": f"Note {number}.", "source": "notes"} for number in range(2 * PAGE_TEXTS + 3)),
    {"text": " kept as\r\nit is \u2028 \0 \\u0041", "source": "a\0b"},
    {"prompt": "Who?", "completion": " Anna.", "source": "chat"},
    {"text": "good day", "label": "positive", "source": "diary"},
]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with running(tmp_path_factory.mktemp("export") / "data") as started:
        assert started.client.post("/texts", json=GIVEN).json()["created"] == len(GIVEN)
        yield started


@pytest.fixture
def real(daemon: Daemon) -> Run:
    return commands(daemon.folder)


def ids(daemon: Daemon) -> set[str]:
    return {text["id"] for text in daemon.client.get("/texts", params={"limit": 500}).json()["data"]}


def key(document: dict[str, Any]) -> str:
    return json.dumps(document, sort_keys=True)


def test_what_is_exported_is_imported_to_the_same_ids(real: Run, daemon: Daemon, tmp_path: Path) -> None:
    result = real("export", str(tmp_path / "all.jsonl"))
    assert result.exit_code == 0, result.stderr
    assert result.stdout.startswith(f"Wrote {tmp_path / 'all.jsonl'}: {len(GIVEN)} texts, ")
    # Not splitlines(): a JSON text may hold other line separators as they are.
    lines = (tmp_path / "all.jsonl").read_text(encoding="utf-8").split("\n")
    assert sorted(key(json.loads(line)) for line in lines if line) == sorted(map(key, GIVEN))
    assert "Added 0 texts. 106 were already stored." in real("import", str(tmp_path / "all.jsonl")).stdout
    with running(tmp_path / "other") as other:
        assert "Added 106 texts." in commands(other.folder)("import", str(tmp_path / "all.jsonl")).stdout
        assert ids(other) == ids(daemon)


def test_the_file_is_its_owners_and_nothing_else_is_left(real: Run, tmp_path: Path) -> None:
    document = json.loads(real("export", str(tmp_path / "all.jsonl"), "--json").stdout)
    assert document == {
        "file": str(tmp_path / "all.jsonl"),
        "texts": len(GIVEN),
        "bytes": (tmp_path / "all.jsonl").stat().st_size,
    }
    assert stat.S_IMODE((tmp_path / "all.jsonl").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["all.jsonl"]


def test_a_file_that_is_there_stays_unless_forced(real: Run, tmp_path: Path) -> None:
    (tmp_path / "all.jsonl").write_text("mine")
    refused = real("export", str(tmp_path / "all.jsonl"))
    assert refused.exit_code == 1
    assert "already exists. Give another name, or replace it with --force" in refused.stderr
    assert (tmp_path / "all.jsonl").read_text() == "mine"
    assert real("export", str(tmp_path / "all.jsonl"), "--force").exit_code == 0
    assert (tmp_path / "all.jsonl").read_text() != "mine"


def test_a_file_that_cannot_be_written(real: Run, tmp_path: Path) -> None:
    assert "is a folder" in real("export", str(tmp_path)).stderr
    assert "There is no folder" in real("export", str(tmp_path / "none" / "a")).stderr


def test_without_a_daemon_nothing_is_written(tmp_path: Path) -> None:
    result = commands(tmp_path / "nothing")("export", str(tmp_path / "all.jsonl"))
    assert result.exit_code == 1
    assert "No daemon answers" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_stdout(daemon: Daemon, real: Run, tmp_path: Path) -> None:
    real("export", str(tmp_path / "all.jsonl"))
    child = subprocess.run(
        [sys.executable, "-m", "pocketllm", "export", "-"],
        env=child_environment(daemon.folder) | {"PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=WAIT_SECONDS,
    )
    assert (child.returncode, child.stderr) == (0, b"")
    assert child.stdout == (tmp_path / "all.jsonl").read_bytes()


def test_a_reader_that_has_seen_enough(daemon: Daemon) -> None:
    command = f"{sys.executable} -m pocketllm export - | head -1 >/dev/null"
    child = subprocess.run(
        command, shell=True, env=child_environment(daemon.folder), capture_output=True, timeout=WAIT_SECONDS
    )
    assert child.stderr == b""


def test_json_and_stdout_do_not_go_together(real: Run) -> None:
    assert real("export", "-", "--json").exit_code == 2


def test_a_chat_is_passed_on_as_it_is() -> None:
    messages = [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}]
    listed = {"id": "text-1", "kind": "chat", "text": "", "messages": messages, "source": "x", "words": 2}
    assert as_given(listed) == {"messages": messages, "source": "x"}
