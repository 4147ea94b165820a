"""The commands, run as a user or a script runs them, against the real application."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

import pytest
import typer.main
from typer.testing import CliRunner

from pocketllm.api.security.tokens import Scope
from pocketllm.child import running_daemon
from pocketllm.cli.main import app
from pocketllm.cli.program import json_text
from tests.support.daemon.commands import WAIT_SECONDS, Run, commands, handed_to_browser, run_process
from tests.support.daemon.served import Served
from tests.support.executables import executable
from tests.support.models.tiny_models import tiny_model_folder
from tests.support.paths import ROOT


def test_help_and_version_need_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "numpy", "httpx", "fastapi", "pydantic", "sqlalchemy", "rich.progress"]
    code = f"import sys, pocketllm.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def commands_of(group: Any, *before: str) -> Iterator[list[str]]:
    """Every command and group of the program, as it is typed."""
    for name, command in getattr(group, "commands", {}).items():
        yield [*before, name]
        yield from commands_of(command, *before, name)


def test_every_help_has_an_example(subtests: pytest.Subtests) -> None:
    found = list(commands_of(typer.main.get_command(app)))
    assert len(found) > 40 and ["jobs", "show"] in found
    for command in found:
        with subtests.test(" ".join(command)):
            result = CliRunner(env={"TERMINAL_WIDTH": "200"}).invoke(app, [*command, "--help"])
            assert result.exit_code == 0
            assert f"$ pocketllm {' '.join(command)}" in result.stdout


def test_without_a_daemon_commands_say_how_to_start_one(alone: Run, subtests: pytest.Subtests) -> None:
    for line in ("status", "jobs", "jobs x", "jobs cancel x", "train", "generate x", "add x", "texts", "rollback"):
        with subtests.test(line):
            result = alone(*line.split())
            assert (result.exit_code, result.stdout) == (1, "")
            assert "No daemon answers at http://127.0.0.1:2407. Start one with `pocketllm serve`" in result.stderr
            result = alone(*line.split(), "--json")
            assert (result.exit_code, result.stdout) == (1, "")
            assert json.loads(result.stderr)["error"]["code"] == "no_daemon"


def test_json_is_the_only_thing_on_stdout(run: Run, served: Served, subtests: pytest.Subtests) -> None:
    adapter = served.learn()
    job = served.api.post("/jobs").json()["id"]
    lines = f"""
        status; jobs; jobs {job}; jobs show {job}; jobs pause {job}; jobs resume {job}; jobs cancel {job}; models;
        texts; add hello; train --no-follow; train; report; generate hello; adapters; adapters serve {adapter};
        rollback; token; token list; token create notes --scope ingest; token revoke notes; dashboard; snooze 5
    """
    for line in map(str.strip, lines.split(";")):
        if line == "train":
            served.play(served.finish)
        with subtests.test(line):
            result = run(*line.split(), "--json")
            assert (result.exit_code, result.stderr) == (0, "")
            assert isinstance(json.loads(result.stdout), dict)


def test_jobs_are_listed_for_who_has_no_token(served: Served, tmp_path: Path) -> None:
    """With fewer fields than the owner sees."""
    served.api.add("Wind west, glass rising.")
    assert served.api.post("/jobs", json={"steps": 40}).status_code == 202
    assert "job-" in commands(tmp_path).said("jobs", "--url", served.url)


def test_wrong_usage_ends_with_2(alone: Run) -> None:
    for line in ("--nonsense", "serve --port 70000", "snooze nan", "generate x --temperature inf"):
        result = alone(*line.split())
        assert (result.exit_code, result.stdout) == (2, ""), line
    refused = alone.refused("jobs", "--limit", "0", "--json", code=2)
    assert json.loads(refused)["error"]["code"] == "usage"


def test_a_text_after_two_dashes_may_look_like_an_option(run: Run, served: Served) -> None:
    assert run("add", "--", "--json").stdout == "Added 1 text.\n"
    assert [text["text"] for text in served.texts()] == ["--json"]


def test_a_file_that_cannot_be_written_is_no_traceback(alone: Run, tmp_path: Path) -> None:
    # A path through a file cannot be made by anyone, not even by root.
    (tmp_path / "file").write_text("x")
    file = str(tmp_path / "file" / "below")
    assert "Not a directory" in alone.refused("adapters", "export", "adapter-1", "--format", "gguf", "--to", file)


def test_json_text_fits_the_stream() -> None:
    assert "é" in json_text({"a": "é"}, "utf-8")
    assert "\\u00e9" in json_text({"a": "é"}, "ascii")


def test_the_dashboard_is_opened_by_a_code(run: Run, served: Served) -> None:
    address, _, code = run("dashboard", "--no-browser").stdout.strip().partition("#code=")
    assert address == f"{served.url}/"
    assert served.api.post("/sessions/redeem", token=code).status_code == 200


def test_the_browser_is_handed_a_file_that_only_the_owner_can_read(served: Served) -> None:
    """Under a relative data folder, too. Every user of the device can read command lines, and so addresses in them."""
    page = Path(url2pathname(urlsplit(handed_to_browser(served.home)).path))
    assert page.parent.samefile(served.home) and page.stat().st_mode & 0o777 == 0o600
    assert f"{served.url}/#code=" in page.read_text()


def test_apps_are_let_in_and_out_with_scopes_of_the_api(run: Run, served: Served) -> None:
    assert "No app has an access token" in run("token", "list").stdout
    for scopes in ([], ["--scope", "everything"]):
        run.refused("token", "create", "notes", *scopes, code=2)
    told = run("token", "create", "--help").stdout
    assert all(scope in told for scope in Scope)
    made = run("token", "create", "notes", "--scope", "ingest", "--scope", "generate").stdout
    token = made.removesuffix("\n")  # nothing else, so that it can be put into a variable
    assert served.api.post("/texts", token=token, json={"text": "Wind west."}).status_code == 201
    assert "generate; ingest" in run("token", "list").stdout
    assert run("token", "revoke", "notes").stdout == "Revoked notes's token.\n"
    assert served.api.get("/tokens").json()["data"] == []


class TestJobs:
    @pytest.fixture
    def job(self, served: Served) -> str:
        """A job that waits."""
        served.api.add("Wind west, glass rising.")
        return str(served.api.post("/jobs", json={"steps": 40}).json()["id"])

    def test_pause_resume_and_cancel(self, run: Run, job: str) -> None:
        assert f"pocketllm jobs resume {job}" in run("jobs", "pause", job).stdout
        assert run.json("jobs", job)["paused_by_owner"]
        assert "continues when the conditions allow it" in run("jobs", "resume", job).stdout
        assert not run.json("jobs", job)["paused_by_owner"]
        assert run("jobs", "cancel", job).stdout == f"Job {job} is cancelled.\n"

    def test_list(self, run: Run, served: Served, job: str) -> None:
        ids = [job]
        for seed in range(3):
            served.api.clock.advance(1)
            ids.insert(0, served.api.post("/jobs", json={"seed": seed}).json()["id"])
        assert [line.split()[0] for line in run("jobs").stdout.splitlines()] == ["Id", *ids]
        assert f"pocketllm jobs --after {ids[2]}" in run("jobs", "--limit", "3").stdout
        assert run.json("jobs", "--limit", "3")["has_more"] is True
        assert [one["id"] for one in run.json("jobs", "--after", ids[2])["data"]] == ids[3:]

    def test_show(self, run: Run, served: Served) -> None:
        job = served.learn().replace("adapter-", "job-")
        for arguments in (["jobs", job], ["jobs", "show", job], ["jobs", job[:8]]):
            text = run(*arguments).stdout
            assert "Block tokens" in text and "a worker has started" in text and "Ended because" in text
        [window] = run.json("jobs", job)["runs"]
        assert window["ended_because"] == "the job has ended: succeeded"

    def test_options_may_stand_on_either_side(self, run: Run, alone: Run, served: Served, job: str) -> None:
        for arguments in (["jobs", "--json", job], ["jobs", job, "--json"]):
            assert json.loads(run(*arguments).stdout)["id"] == job
        folder = str(served.home)
        for arguments in (["jobs", "--data-dir", folder, job], ["jobs", job, "--data-dir", folder]):
            assert job in alone(*arguments).stdout
        for arguments in (["jobs", "--url", served.url, job], ["jobs", job, "--url", served.url]):
            assert f"names no running daemon at {served.url}" in alone(*arguments).stderr


def test_a_terminal_that_is_not_utf_8(served: Served) -> None:
    served.words.words = [" t\u00e9a"]
    served.api.add("Wind west, glass rising.")
    served.play(served.finish)
    for arguments, words in ((["generate", "x"], " t?a"), (["status"], "Can train now"), (["train"], "-7.1 %")):
        child = run_process(served.home, *arguments, PYTHONIOENCODING="ascii")
        assert child.returncode == 0 and words in child.stdout


def completed(bin_folder: Path, *words: str) -> list[str]:
    """What bash offers behind some words: the real shell, with the script that the program gives it."""
    script = """
        eval "$(pocketllm --show-completion)"
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1))
        _pocketllm_completion pocketllm
        printf '%s\\n' "${COMPREPLY[@]}"
    """
    child = subprocess.run(
        ["bash", "--norc", "-c", script, "bash", *words],
        env=os.environ | {"PATH": f"{bin_folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=WAIT_SECONDS,
    )
    assert (child.returncode, child.stderr) == (0, "")
    return child.stdout.split()


def test_bash_offers_the_verbs(tmp_path: Path) -> None:
    program = "import sys; sys.argv[0] = 'pocketllm'; from pocketllm.cli.main import main; main()"
    executable(tmp_path, "pocketllm", f'exec {sys.executable} -c "{program}" "$@"')
    verbs = {
        "demo",
        "models",
        "serve",
        "status",
        "add",
        "import",
        "texts",
        "export",
        "train",
        "jobs",
        "generate",
        "token",
    }
    assert set(completed(tmp_path, "pocketllm", "")) >= verbs
    assert completed(tmp_path, "pocketllm", "texts", "") == ["show", "delete"]
    assert completed(tmp_path, "pocketllm", "import", "--dr") == ["--dry-run"]
    assert set(completed(tmp_path, "pocketllm", "import", "--format", "")) >= {"notes", "mbox", "whatsapp"}


@pytest.mark.smoke
def test_the_commands_against_the_real_daemon(tmp_path: Path) -> None:
    """One way through everything: serve, add, train, ask, look, stop."""
    tiny_model_folder(tmp_path / "models", name="tiny")
    run = commands(tmp_path)
    # The interpreter writes each import to the log, where the last lines of this test look for them.
    serve = [sys.executable, "-X", "importtime", "-m", "pocketllm", "serve", "--model", "tiny"]
    with running_daemon(tmp_path, serve, start_seconds=WAIT_SECONDS) as client:
        assert run.said("token").strip() == client.target.token
        notes = [f"Note {number}. Wind from the west, two mugs of tea, and the boat is dry." for number in range(40)]
        assert run.json("add", *notes)["created"] == 40
        assert run.json("add", notes[0])["duplicates"] == 1
        job = run.json("train", "--steps", "3", "--seed", "0")
        assert (job["state"], job["step"], job["seed"]) == ("succeeded", 3, 0)
        assert [listed["id"] for listed in run.json("jobs")["data"]] == [job["id"]]
        assert run.json("jobs", job["id"])["events"]
        chosen = ["--max-tokens", "5", "--seed", "1"]
        whole = run.json("generate", "Wind", *chosen, "--adapter", job["adapter"])
        assert run.said("generate", "Wind", *chosen, "--adapter", job["adapter"]) == whole["text"] + "\n"
        assert run.json("generate", "Wind", *chosen, "--base")["adapter"] is None
        assert run.json("status")["jobs"]["succeeded"] == 1
        assert run.refused("jobs", "cancel", job["id"]).startswith("Error: ")
    assert not (tmp_path / "daemon.json").exists()
    run.refused("status")
    imported = set(re.findall(r"^import time:.*\|\s+(\w+)$", (tmp_path / "daemon.log").read_text(), re.MULTILINE))
    assert "uvicorn" in imported
    assert not imported & {"torch", "transformers", "httpx", "numpy"}
