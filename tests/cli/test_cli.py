"""The commands, run as a user or a script runs them, against a small real server."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from pocketllm.api.security.tokens import Scope
from pocketllm.child import running_daemon
from pocketllm.cli.common import json_text
from pocketllm.cli.main import app
from pocketllm.errors import EXIT_CONFIG
from tests.support.commands import WAIT_SECONDS, Run, child_environment, commands, environment
from tests.support.daemon_documents import JOB
from tests.support.daemon_double import TOKEN, DaemonDouble
from tests.support.tiny_models import tiny_model_folder


@pytest.fixture
def run_alone(tmp_path: Path) -> Run:
    """Run commands where there is no daemon."""
    return commands(tmp_path / "nothing")


def test_help_and_version_need_nothing_heavy() -> None:
    heavy = [
        "torch",
        "transformers",
        "numpy",
        "httpx",
        "fastapi",
        "pydantic",
        "sqlalchemy",
        "rich.progress",
        "rich.live",
    ]
    code = f"import sys, pocketllm.cli.main; print([name for name in {heavy!r} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_version() -> None:
    result = CliRunner().invoke(app, ["--version"])
    assert result.exit_code == 0
    assert result.stdout.startswith("pocketllm ")


COMMANDS = [
    *(["demo"], ["models"], ["models", "add"], ["serve"], ["status"], ["add"], ["train"]),
    *(
        ["jobs"],
        ["jobs", "show"],
        ["jobs", "cancel"],
        ["jobs", "pause"],
        ["jobs", "resume"],
        ["report"],
        ["replay"],
        ["plan"],
    ),
    *(
        ["doctor"],
        ["dashboard"],
        ["snooze"],
        ["service"],
        ["service", "install"],
        ["service", "uninstall"],
        ["service", "status"],
    ),
    *(["token"], ["token", "create"], ["token", "list"], ["token", "revoke"]),
    *(["generate"], ["chat"], ["adapters"], ["adapters", "serve"], ["rollback"]),
    *(["adapters", "delete"], ["adapters", "export"], ["import"], ["export"]),
    *(["texts"], ["texts", "show"], ["texts", "delete"]),
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_an_example(command: list[str]) -> None:
    result = CliRunner(env={"TERMINAL_WIDTH": "200"}).invoke(app, [*command, "--help"])
    assert result.exit_code == 0
    assert f"$ pocketllm {' '.join(command)}" in result.stdout


def test_help_lists_commands_in_the_order_of_use() -> None:
    text = CliRunner().invoke(app, ["--help"]).stdout
    lines = [line.split()[1] for line in text.splitlines() if line.startswith("│ ") and line[2].isalpha()]
    first = "demo serve service status dashboard snooze token models adapters rollback add import folders texts export"
    rest = "plan train jobs report generate suggest classify chat doctor backup restore verify replay"
    assert lines == f"{first} {rest}".split()


@pytest.mark.parametrize(
    "arguments",
    [
        ["status"],
        ["jobs"],
        ["jobs", "x"],
        ["jobs", "cancel", "x"],
        ["train"],
        ["generate", "x"],
        ["add", "x"],
        ["rollback"],
    ],
    ids=" ".join,
)
class TestWithoutDaemon:
    def test_says_how_to_start_one(self, run_alone: Run, arguments: list[str]) -> None:
        result = run_alone(*arguments)
        assert result.exit_code == 1
        assert result.stdout == ""
        assert "No daemon answers at http://127.0.0.1:2407. Start one with `pocketllm serve`" in result.stderr

    def test_json_gives_a_problem_document(self, run_alone: Run, arguments: list[str]) -> None:
        result = run_alone(*arguments, "--json")
        assert result.exit_code == 1
        assert result.stdout == ""
        assert json.loads(result.stderr)["error"]["code"] == "no_daemon"


@pytest.mark.parametrize(
    "arguments",
    [
        *(["status"], ["jobs"], ["jobs", "job-1"], ["jobs", "show", "job-1"], ["models"]),
        *(["jobs", "cancel", "job-1"], ["add", "hello"], ["train"], ["train", "--no-follow"], ["token"]),
        *(["generate", "hello"], ["adapters"], ["adapters", "serve", "adapter-1"], ["rollback"]),
        *(["token", "list"], ["token", "create", "notes", "--scope", "ingest"], ["token", "revoke", "notes"]),
        *(["jobs", "pause", "job-1"], ["jobs", "resume", "job-1"], ["dashboard"]),
    ],
    ids=" ".join,
)
def test_json_is_the_only_thing_on_stdout(run: Run, double: DaemonDouble, arguments: list[str]) -> None:
    double.jobs = [dict(JOB)]
    result = run(*arguments, "--json")
    assert result.exit_code == 0
    assert isinstance(json.loads(result.stdout), dict)
    assert result.stderr == ""


def test_a_wrong_token_is_explained(run: Run, double: DaemonDouble, home: Path) -> None:
    double.write_home(home, token="of an older daemon")
    result = run("generate", "x")
    assert result.exit_code == 1
    assert "A token is needed. (The token sent is not this daemon's" in result.stderr


@pytest.mark.parametrize("arguments", [["--nonsense"], ["jobs", "--limit", "0"], ["serve", "--port", "70000"]])
def test_wrong_usage_ends_with_2(run: Run, arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.stdout == ""


def test_wrong_usage_with_json_is_a_problem_document(run: Run) -> None:
    result = run("jobs", "--limit", "0", "--json")
    assert result.exit_code == 2
    assert json.loads(result.stderr)["error"]["code"] == "usage"


def test_a_text_after_two_dashes_may_look_like_an_option(run: Run, double: DaemonDouble) -> None:
    assert run("add", "--", "--json").stdout == "Added 1 text.\n"
    assert double.bodies("POST", "/texts")[0][0]["text"] == "--json"


def test_a_file_that_cannot_be_written_is_no_traceback(run: Run, tmp_path: Path) -> None:
    # A path through a file cannot be made by anyone, not even by root.
    (tmp_path / "file").write_text("x")
    result = run("adapters", "export", "adapter-1", "--format", "gguf", "--to", str(tmp_path / "file" / "below"))
    assert result.exit_code == 1
    assert "Not a directory" in result.stderr


def test_json_text_fits_the_stream() -> None:
    assert "é" in json_text({"a": "é"}, "utf-8")
    assert "\\u00e9" in json_text({"a": "é"}, "ascii")


def test_token(run: Run, run_alone: Run) -> None:
    assert run("token").stdout == f"{TOKEN}\n"
    alone = run_alone("token")
    assert alone.exit_code == 1
    assert alone.stdout == ""
    assert "pocketllm serve" in alone.stderr


def test_apps_are_let_in_and_out(run: Run, double: DaemonDouble) -> None:
    assert "No app has an access token" in run("token", "list").stdout
    made = run("token", "create", "notes", "--scope", "ingest", "--scope", "generate")
    assert made.stdout == "pllm_notes\n", "so that it can be put into a variable"
    assert double.bodies("POST", "/tokens") == [{"name": "notes", "scopes": ["ingest", "generate"]}]
    assert "ingest, generate" in run("token", "list").stdout
    assert run("token", "revoke", "notes").stdout == "Revoked notes's token.\n"
    assert double.tokens_of_apps == []


def test_the_dashboard_is_opened_by_a_code(run: Run, double: DaemonDouble) -> None:
    assert run("dashboard", "--no-browser").stdout == f"{double.url}/#code=code-1\n"


def test_a_token_without_a_scope_is_wrong_usage(run: Run) -> None:
    assert run("token", "create", "notes").exit_code == 2
    assert run("token", "create", "notes", "--scope", "everything").exit_code == 2


def test_every_scope_of_the_api_can_be_given(run: Run, double: DaemonDouble) -> None:
    told = run("token", "create", "--help").stdout
    for scope in Scope:
        assert scope in told and run("token", "create", f"app-{scope}", "--scope", scope).exit_code == 0
    assert [body["scopes"] for body in double.bodies("POST", "/tokens")] == [[scope] for scope in Scope]


def test_status(run: Run) -> None:
    assert "The battery is low. (31 %, limit 40 %)" in run("status").stdout


class TestJobs:
    def test_pause_and_resume(self, run: Run, double: DaemonDouble) -> None:
        double.jobs = [dict(JOB)]
        assert "pocketllm jobs resume job-1" in run("jobs", "pause", "job-1").stdout
        assert "continues when the conditions allow it" in run("jobs", "resume", "job-1").stdout
        assert [path for method, path, _ in double.requests if method == "POST"] == [
            "/jobs/job-1/pause",
            "/jobs/job-1/resume",
        ]

    def test_empty(self, run: Run) -> None:
        assert "No jobs yet" in run("jobs").stdout

    def test_list(self, run: Run, double: DaemonDouble) -> None:
        double.jobs = [JOB | {"id": "newer"}, JOB | {"id": "older"}]
        lines = run("jobs").stdout.splitlines()
        assert [line.split()[0] for line in lines] == ["Job", "newer", "older"]

    def test_limit(self, run: Run, double: DaemonDouble) -> None:
        double.jobs = [JOB | {"id": f"job-{number}"} for number in range(5)]
        assert "--limit" in run("jobs", "--limit", "3").stdout
        assert json.loads(run("jobs", "--limit", "3", "--json").stdout)["has_more"] is True

    @pytest.mark.parametrize("arguments", [["jobs", "job-1"], ["jobs", "show", "job-1"]], ids=" ".join)
    def test_show(self, run: Run, double: DaemonDouble, arguments: list[str]) -> None:
        double.jobs = [dict(JOB)]
        text = run(*arguments).stdout
        assert "learning_rate" in text
        assert "The worker started." in text

    @pytest.mark.parametrize("arguments", [["jobs", "--json", "job-1"], ["jobs", "job-1", "--json"]], ids=" ".join)
    def test_options_may_stand_on_either_side(self, run: Run, double: DaemonDouble, arguments: list[str]) -> None:
        double.jobs = [dict(JOB)]
        assert json.loads(run(*arguments).stdout)["id"] == "job-1"

    def test_url_may_stand_on_either_side(self, run_alone: Run, double: DaemonDouble) -> None:
        double.jobs = [dict(JOB)]
        for arguments in (["jobs", "--url", double.url, "job-1"], ["jobs", "job-1", "--url", double.url]):
            assert "The worker started." in run_alone(*arguments).stdout

    def test_cancel(self, run: Run, double: DaemonDouble) -> None:
        double.jobs = [dict(JOB)]
        assert run("jobs", "cancel", "job-1").stdout == "Job job-1 is cancelled.\n"

    def test_unknown_job(self, run: Run) -> None:
        result = run("jobs", "nope", "--json")
        assert result.exit_code == 1
        assert json.loads(result.stderr)["status"] == 404


def test_a_terminal_that_is_not_utf_8(double: DaemonDouble, home: Path) -> None:
    double.tokens = [" t\u00e9a"]
    ascii_only = child_environment(home) | {"PYTHONIOENCODING": "ascii"}
    for arguments, words in ((["generate", "x"], " t?a"), (["status"], "Can train now"), (["train"], "-7.1 %")):
        child = subprocess.run(
            [sys.executable, "-m", "pocketllm", *arguments],
            env=ascii_only,
            capture_output=True,
            text=True,
            timeout=WAIT_SECONDS,
        )
        assert child.returncode == 0
        assert words in child.stdout


def test_the_commands_against_the_real_daemon(tmp_path: Path) -> None:
    """One way through everything: serve, add, train, ask, look, stop."""
    tiny_model_folder(tmp_path / "models", name="tiny")
    runner = CliRunner(env=environment(tmp_path))

    def run(*arguments: str) -> Any:
        result = runner.invoke(app, [*arguments, "--json"])
        assert result.stderr == ""
        assert result.exit_code == 0
        return json.loads(result.stdout)

    # The interpreter writes each import to the log, where the last lines of this test look for them.
    serve = [sys.executable, "-X", "importtime", "-m", "pocketllm", "serve", "--model", "tiny"]
    with running_daemon(tmp_path, serve, start_seconds=WAIT_SECONDS) as client:
        assert runner.invoke(app, ["token"]).stdout.strip() == client.target.token
        assert run("jobs") == {"data": [], "has_more": False, "next": None}
        notes = [f"Note {number}. Wind from the west, two mugs of tea, and the boat is dry." for number in range(40)]
        assert run("add", *notes)["created"] == 40
        assert run("add", notes[0])["duplicates"] == 1
        job = run("train", "--steps", "3", "--seed", "0")
        assert (job["state"], job["step"], job["seed"]) == ("succeeded", 3, 0)
        assert [listed["id"] for listed in run("jobs")["data"]] == [job["id"]]
        assert run("jobs", job["id"])["events"]
        chosen = ["--max-tokens", "5", "--seed", "1"]
        whole = run("generate", "Wind", *chosen, "--adapter", job["adapter"])
        streamed = runner.invoke(app, ["generate", "Wind", *chosen, "--adapter", job["adapter"]])
        assert streamed.stdout == whole["text"] + "\n"
        assert run("generate", "Wind", *chosen, "--base")["adapter"] is None
        assert run("status")["jobs"]["succeeded"] == 1
        for arguments in (["status"], ["jobs"], ["jobs", job["id"]], ["models"]):
            assert runner.invoke(app, arguments).exit_code == 0
        finished = runner.invoke(app, ["jobs", "cancel", job["id"]])
        assert finished.exit_code == 1
        assert finished.stderr.startswith("Error: ")
        for arguments in (["jobs", "nope"], ["generate", "x", "--adapter", "nope"], ["generate", ""]):
            refused = runner.invoke(app, [*arguments, "--json"])
            assert refused.exit_code == 1
            assert json.loads(refused.stderr)["detail"]
    assert not (tmp_path / "daemon.json").exists()
    assert runner.invoke(app, ["status"]).exit_code == 1
    imported = set(re.findall(r"^import time:.*\|\s+(\w+)$", (tmp_path / "daemon.log").read_text(), re.MULTILINE))
    assert "uvicorn" in imported
    assert not imported & {"torch", "transformers", "httpx", "numpy"}


def test_serve_says_in_a_sentence_why_it_cannot(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, code, words in (
            (["--port", port], 1, f"Port {port} on 127.0.0.1 cannot be used"),
            (["--log-level", "loud"], EXIT_CONFIG, "Setting log_level has the value 'loud'"),
            (["--data-dir", str(tmp_path / "file")], 1, "cannot be used"),
        ):
            child = subprocess.run(
                [sys.executable, "-m", "pocketllm", "serve", *arguments],
                env=child_environment(tmp_path / "data"),
                capture_output=True,
                text=True,
                timeout=WAIT_SECONDS,
            )
            assert child.returncode == code
            assert words in child.stderr
            assert "Traceback" not in child.stderr
