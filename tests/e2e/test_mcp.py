"""`pocketllm mcp`, asked by the SDK's own client on stdin and stdout, beside a real daemon with a tiny model."""

import asyncio
import json
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters
from mcp.client.stdio import stdio_client
from mcp.types import TextContent

from tests.support.daemon.commands import child_environment
from tests.support.daemon.real_daemon import Daemon
from tests.support.daemon.tiny_daemon import tiny_daemon
from tests.support.paths import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.smoke]

NOTE = "The ferry to Lunna leaves at nine."
LABELLED = [{"text": f"{letter * 4} {letter * size}", "label": letter} for letter in "qz" for size in (4, 5, 6)]
ALL = {"recall": ["search_my_texts"], "generate": ["continue_like_me", "which_label"], "ingest": ["remember"]}
SAID = "An assistant that runs in a cloud sends on what it reads here: your texts, with the scope recall.\n"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with tiny_daemon(tmp_path_factory.mktemp("mcp") / "data") as made:
        assert made.client.post("/texts", json=[{"text": NOTE, "source": "notes"}, *LABELLED]).status_code == 201
        yield made


class Assistant:
    """One run of the command: what it lists, answers and says."""

    def __init__(self, folder: Path, token: str, *scopes: str, calls: Mapping[str, dict[str, Any]] | None = None):
        arguments = ["-m", "pocketllm", "mcp", "--data-dir", str(folder)]
        self.server = StdioServerParameters(
            command=sys.executable,
            args=[*arguments, *(part for scope in scopes for part in ("--scope", scope))],
            env=child_environment(folder) | {"POCKETLLM_TOKEN": token},
        )
        self.tools: dict[str, str | None] = {}
        self.answers: dict[str, str] = {}
        self.errors: dict[str, str] = {}
        self.strange: list[object] = []  #: what came on stdout and is no message of the protocol
        said = folder.parent / "stderr"
        with said.open("w") as errlog:
            asyncio.run(self._ask(calls or {}, errlog))
        self.said = said.read_text()

    async def _ask(self, calls: Mapping[str, dict[str, Any]], errlog: Any) -> None:
        async def look(message: object) -> None:
            if isinstance(message, Exception):
                self.strange.append(message)

        async with Client(stdio_client(self.server, errlog=errlog), message_handler=look) as client:
            self.tools = {tool.name: tool.description for tool in (await client.list_tools()).tools}
            for name, arguments in calls.items():
                result = await client.call_tool(name, arguments)
                [content] = result.content
                assert isinstance(content, TextContent)
                (self.errors if result.is_error else self.answers)[name] = content.text


def test_each_tool_answers(daemon: Daemon) -> None:
    calls: dict[str, dict[str, Any]] = {
        "search_my_texts": {"words": "When does the ferry leave?"},
        "continue_like_me": {"text": "Wind west,", "max_tokens": 4},
        "which_label": {"text": "qqqq qqqq", "labels": ["q", "z"]},
        "remember": {"text": "Glass rising, as Anna said."},
    }
    asked = Assistant(daemon.folder, daemon.app_token("all", *ALL), *ALL, calls=calls)
    assert not asked.errors and list(asked.tools) == [name for names in ALL.values() for name in names]
    assert asked.answers["search_my_texts"] == NOTE
    assert isinstance(asked.answers["continue_like_me"], str)
    first, second = asked.answers["which_label"].splitlines()
    assert first.startswith("q: ") and second.startswith("z: ") and first.endswith("%")
    newest = daemon.client.get("/texts", params={"limit": 1}).json()["data"][0]
    assert (newest["text"], newest["source"]) == (calls["remember"]["text"], "assistant")
    receipt = daemon.client.delete("/apps/all/texts").json()
    assert receipt["texts"] == 1, "it is the assistant's"


def test_tools_of_other_scopes_are_not_there(daemon: Daemon) -> None:
    made = daemon.app_token("reader", "recall")
    asked = Assistant(daemon.folder, made, "recall", calls={"search_my_texts": {"words": "xylophone"}})
    assert list(asked.tools) == ["search_my_texts"]
    assert asked.answers == {"search_my_texts": "No text contains any of these words."}
    more = Assistant(daemon.folder, made, "recall", "ingest", calls={"remember": {"text": "Kept?"}})
    assert "has the scope recall; this route requires ingest" in more.errors["remember"], "the daemon's word counts"


def test_nothing_that_is_asked_or_read_is_logged(daemon: Daemon) -> None:
    secret = "Lunna4711"
    calls: dict[str, dict[str, Any]] = {
        "search_my_texts": {"words": f"ferry {secret}", "limit": 3},
        "continue_like_me": {"text": secret, "max_tokens": -1},
        "which_label": {"text": secret, "labels": [secret]},
        "remember": {"text": secret, "words": [secret]},
    }
    asked = Assistant(daemon.folder, daemon.app_token("canary", *ALL), *ALL, calls=calls)
    assert asked.answers["search_my_texts"] == NOTE and {"continue_like_me", "which_label"} <= set(asked.errors)
    assert asked.said == SAID and asked.strange == []
    assert secret not in daemon.log and "ferry" not in daemon.log


def test_without_a_daemon_a_tool_says_what_to_do(tmp_path: Path) -> None:
    asked = Assistant(tmp_path / "none", "pllm_x", "recall", calls={"search_my_texts": {"words": "ferry"}})
    assert "`pocketllm serve`" in asked.errors["search_my_texts"] and asked.said == SAID
    assert not (tmp_path / "none").exists(), "and starts none"


def test_the_recipes_list_is_read_and_its_command_starts(daemon: Daemon) -> None:
    page = (ROOT / "examples" / "assistants.md").read_text()
    [block] = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    [server] = json.loads(block)["mcpServers"].values()
    assert server["command"] == "pocketllm" and list(server["env"]) == ["POCKETLLM_TOKEN"]
    first, *options = server["args"]
    scopes = options[1::2]
    assert (first, set(options[::2])) == ("mcp", {"--scope"}) and " ".join(options) in server["env"]["POCKETLLM_TOKEN"]
    asked = Assistant(daemon.folder, daemon.app_token("recipe", *scopes), *scopes)
    assert list(asked.tools) == [name for scope in scopes for name in ALL[scope]]
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \|", page, re.MULTILINE)
    assert rows == [(name, scope) for scope, names in ALL.items() for name in names]


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    def refused(code: int, **more: str) -> str:
        run = "import sys; sys.modules['mcp'] = None; from pocketllm.cli.main import main; main()"
        command = [sys.executable, "-c", run, "mcp", "--scope", "recall"]
        environment = child_environment(tmp_path) | more
        ended = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert (ended.returncode, ended.stdout) == (code, "")
        return ended.stderr

    assert "pip install 'pocketllm[mcp]'" in refused(1, POCKETLLM_TOKEN="x")
    assert "pocketllm token create NAME --scope recall" in refused(2)
