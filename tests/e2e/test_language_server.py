"""The language server with pygls' own client and a real daemon with a tiny model."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from lsprotocol import types
from pygls.exceptions import JsonRpcException
from pygls.lsp.client import LanguageClient

from tests.support.daemon.commands import run_process
from tests.support.daemon.real_daemon import DEADLINE_SECONDS, Daemon, environment
from tests.support.daemon.tiny_daemon import tiny_daemon
from tests.support.other_server import other_server

pytestmark = pytest.mark.anyio

URI = "file:///nowhere/letter.md"
SECRET = "beneath the zinc heron"


@pytest.fixture
def anyio_backend() -> str:
    """What runs the tests that are coroutines."""
    return "asyncio"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon whose owner often writes one name."""
    with tiny_daemon(tmp_path_factory.mktemp("editor") / "data") as made:
        made.client.post("/texts", json=[{"text": "Quillfeather rowed. " * 40, "source": "notes"}])
        yield made


class Editor(LanguageClient):
    """An editor with one document, and the messages that it was told to show."""

    def __init__(self) -> None:
        super().__init__("editor", "1")
        self.shown: list[str] = []
        self.changes = 0
        self.feature(types.WINDOW_SHOW_MESSAGE)(lambda params: self.shown.append(params.message))

    @property
    def process(self) -> asyncio.subprocess.Process:
        """The server's."""
        assert self._server is not None
        return self._server

    def open(self, text: str, language: str = "markdown") -> None:
        """Open a document."""
        item = types.TextDocumentItem(URI, language, self.changes, text)
        self.text_document_did_open(types.DidOpenTextDocumentParams(item))

    def type(self, text: str) -> None:
        """The document's new text."""
        self.changes += 1
        identifier = types.VersionedTextDocumentIdentifier(uri=URI, version=self.changes)
        change = types.TextDocumentContentChangeWholeDocument(text)
        self.text_document_did_change(types.DidChangeTextDocumentParams(identifier, [change]))

    async def complete(self, line: int, character: int) -> types.CompletionList:
        """What is suggested at a place."""
        place = types.CompletionParams(types.TextDocumentIdentifier(URI), types.Position(line, character))
        found = await self.text_document_completion_async(place)
        assert isinstance(found, types.CompletionList) and found.is_incomplete
        return found

    async def inline(self, line: int, character: int) -> list[types.InlineCompletionItem]:
        """The same within the line."""
        context = types.InlineCompletionContext(types.InlineCompletionTriggerKind.Automatic)
        place = types.Position(line, character)
        asked = types.InlineCompletionParams(context, types.TextDocumentIdentifier(URI), place)
        found = await self.text_document_inline_completion_async(asked)
        assert isinstance(found, types.InlineCompletionList)
        return list(found.items)

    async def until_complete(self, line: int, character: int) -> list[types.CompletionItem]:
        """The same once there are some: the model has to be loaded, and a busy machine is too late at times."""
        while not (found := await self.complete(line, character)).items:
            pass
        return list(found.items)


@asynccontextmanager
async def editing(folder: Path, *arguments: str) -> AsyncIterator[Editor]:
    """An editor that has started the server on a data folder; it ends it as the protocol says."""
    editor = Editor()
    command = ["-m", "pocketllm", "lsp", "--data-dir", str(folder), *arguments]
    async with asyncio.timeout(DEADLINE_SECONDS):
        await editor.start_io(sys.executable, *command, env=environment(folder, {}))
        ready = await editor.initialize_async(types.InitializeParams(types.ClientCapabilities()))
        assert ready.capabilities.inline_completion_provider and ready.capabilities.completion_provider
        editor.initialized(types.InitializedParams())
        yield editor
        await editor.shutdown_async(None)
        editor.exit(None)
        assert await editor.process.wait() == 0
        assert editor.process.stderr is not None and await editor.process.stderr.read() == b""
        await editor.stop()  # type: ignore[no-untyped-call]


@pytest.mark.smoke
async def test_suggestions_replace_what_is_typed_of_a_word(daemon: Daemon) -> None:
    async with editing(daemon.folder) as editor:
        text = "Båten.\r\n\u2028\f Då 😀 Qui\r\nUnd so"  # line ends of the protocol, and others
        editor.open(text)
        first, *_ = found = await editor.until_complete(1, 12)
        assert (first.label, first.filter_text) == ("Quillfeather", "Quillfeather")
        typed = types.Range(types.Position(1, 9), types.Position(1, 12))
        assert isinstance(first.text_edit, types.TextEdit)
        assert (first.text_edit.range, first.text_edit.new_text) == (typed, "Quillfeather")
        assert [one.sort_text for one in found] == sorted(str(one.sort_text) for one in found)
        while not (inline := await editor.inline(1, 12)):
            pass
        assert (inline[0].insert_text, inline[0].range) == ("Quillfeather", typed)
        editor.type(text + " w")  # the tiny model takes it for a word
        for one in await editor.until_complete(2, 8):
            assert isinstance(one.text_edit, types.TextEdit) and one.text_edit.new_text.startswith(" ")
            assert one.text_edit.range == types.Range(types.Position(2, 8), types.Position(2, 8))
            assert one.filter_text == one.label == f"w{one.text_edit.new_text}"
        assert not editor.shown


async def test_within_a_word_and_in_code_there_are_none(daemon: Daemon) -> None:
    async with editing(daemon.folder) as editor:
        editor.open("Then Qui")
        await editor.until_complete(0, 8)
        assert not (await editor.complete(0, 6)).items
        editor.open("Then Qui", language="python")
        assert not (await editor.complete(0, 8)).items
        assert not editor.shown


async def test_nothing_typed_is_stored_or_logged(daemon: Daemon) -> None:
    async with editing(daemon.folder) as editor:
        editor.open(f"It lies {SECRET}. Then Qui")
        await editor.until_complete(0, 99)  # behind the end of the line
    daemon.client.get("/status")
    files = [path for path in daemon.folder.rglob("*") if path.is_file()]
    assert {"pocketllm.db", "test-daemon.log"} <= {path.name for path in files}
    assert not [path for path in files if SECRET.encode() in path.read_bytes()]


@pytest.mark.smoke
async def test_without_a_daemon_it_says_so_once_until_one_has_answered(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    async with editing(folder) as editor:
        editor.open("Vinden ")
        for _ in range(3):
            assert not (await editor.complete(0, 7)).items
        [said] = editor.shown
        assert said.startswith("PocketLLM: No daemon answers at") and "pocketllm serve" in said
        assert not (folder / "daemon.json").exists()
        with tiny_daemon(folder):
            await editor.until_complete(0, 7)
        assert len(editor.shown) == 1
        for _ in range(3):
            assert not (await editor.complete(0, 7)).items
        assert len(editor.shown) == 2


async def test_an_outdated_request_is_answered_at_once_and_a_cancelled_one_not(tmp_path: Path) -> None:
    with other_server() as slow:
        async with editing(tmp_path, "--url", slow.url) as editor:
            editor.open("Vinden ")
            assert not (await editor.complete(0, 7)).items, "no answer in time"
            assert json.loads(slow.asked.get())["context"] == "Vinden " and slow.asked.empty()
            outdated = asyncio.create_task(editor.complete(0, 7))
            await asyncio.to_thread(slow.asked.get)
            editor.type("Vinden v")
            assert not (await outdated).items
            place = types.CompletionParams(types.TextDocumentIdentifier(URI), types.Position(0, 8))
            request = editor.protocol.send_request(types.TEXT_DOCUMENT_COMPLETION, place, msg_id="mine")
            await asyncio.to_thread(slow.asked.get)
            editor.cancel_request(types.CancelParams("mine"))
            with pytest.raises(JsonRpcException, match="cancel"):
                await asyncio.wrap_future(request)
            assert not editor.shown


@pytest.mark.parametrize(("number", "code"), [(None, 0), (signal.SIGINT, -signal.SIGINT)])
def test_it_ends_without_a_word(tmp_path: Path, number: signal.Signals | None, code: int) -> None:
    command = [sys.executable, "-m", "pocketllm", "lsp"]
    content = json.dumps({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {"capabilities": {}}})
    with subprocess.Popen(command, stdin=-1, stdout=-1, stderr=-1, env=environment(tmp_path, {})) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdin.write(f"Content-Length: {len(content)}\r\n\r\n{content}".encode())
        process.stdin.flush()
        assert process.stdout.readline().startswith(b"Content-Length: "), "it answers"
        if number is not None:
            process.send_signal(number)
            assert process.wait(DEADLINE_SECONDS) == code
        _, said = process.communicate(timeout=DEADLINE_SECONDS)
        assert (process.returncode, said) == (code, b"")


def test_without_the_extra_it_says_what_to_install(tmp_path: Path) -> None:
    (tmp_path / "lsprotocol.py").write_text("raise ModuleNotFoundError('no', name='lsprotocol')\n")
    ended = run_process(tmp_path, "lsp", PYTHONPATH=f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "pip install 'pocketllm[lsp]'" in ended.stderr
