"""A language server on stdin and stdout: next words in an editor, from the running daemon's /suggest.

What is typed is held in memory alone, and neither stored nor logged: pygls' own log has whole messages, so it is off.
"""

import asyncio
import io
import logging
import signal
import sys
from collections.abc import Callable

from lsprotocol import types
from pygls.lsp.server import LanguageServer

from pocketllm import __version__
from pocketllm.client import AsyncClient
from pocketllm.errors import CommandError, DaemonRefused, Document
from pocketllm.home import Target

#: An answer that takes longer is not given; and the part of that which the daemon has.
ANSWER_SECONDS, _DAEMON_MS = 0.15, 130
#: What editors call files of prose.
PROSE = {"asciidoc", "git-commit", "gitcommit", "latex", "mail", "markdown", "message", "org", "plaintext", "quarto"}
PROSE |= {"restructuredtext", "rst", "scminput", "tex", "text", "typst"}
#: Of a long text as many characters are sent, at most twice as many. Its beginning moves in steps of this size, so that
#: the daemon's cache of it stays valid meanwhile.
_CHARACTERS = 4000


class Server(LanguageServer):
    """Answers an editor. The daemon is looked for anew with each request, since it may have been restarted."""

    def __init__(self, find: Callable[[], Target]) -> None:
        # Full: pygls sees more line ends in a text than the protocol does, so it would edit parts at wrong places.
        super().__init__("pocketllm", __version__, text_document_sync_kind=types.TextDocumentSyncKind.Full)
        self._find = find
        self._client: AsyncClient | None = None
        self.deadlines = set[asyncio.Timeout]()  #: of the requests under way
        self._is_told = False  #: that the daemon does not answer

    def report_server_error(self, *_: object) -> None:
        """Show nothing: the message could hold what was typed."""

    async def suggested(
        self, params: types.CompletionParams | types.InlineCompletionParams
    ) -> list[tuple[str, types.TextEdit]]:
        """The words suggested at a place, likeliest first, each with the edit that takes it; none where it is late."""
        document = self.workspace.text_documents.get(params.text_document.uri)
        if document is None or document.language_id not in PROSE:
            return []
        lines = [*io.StringIO(document.source, newline="").readlines(), ""]
        row, codec = min(params.position.line, len(lines) - 1), document.position_codec
        line = lines[row].rstrip("\r\n")
        place = types.Position(0, min(params.position.character, codec.client_num_units(line)))
        column = codec.position_from_client_units([line], place).character
        before, typed = "".join(lines[:row]) + line[:column], line[:column]
        if line[column : column + 1].isalnum() or not before.strip():
            return []
        answer = await self._answer(before[max(0, len(before) // _CHARACTERS - 1) * _CHARACTERS :])
        replaced = types.Range(
            types.Position(row, codec.client_num_units(typed[: len(typed) - answer["replaces"]])),
            types.Position(row, codec.client_num_units(typed)),
        )
        # A word behind a finished one is shown with that, by which some editors filter.
        word = "" if answer["replaces"] else typed.rpartition(" ")[2]
        return [(word + one["text"], types.TextEdit(replaced, one["text"])) for one in answer["suggestions"]]

    async def _answer(self, context: str) -> Document:
        """The daemon's answer; an empty one if it comes too late, or if the text has changed meanwhile."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS) as deadline:
                self.deadlines.add(deadline)
                target = self._find()
                if self._client is None or self._client.target != target:
                    self._client = AsyncClient(target)
                answer = await self._client.post("suggest", body={"context": context, "timeout_ms": _DAEMON_MS})
                self._is_told = False
                return answer
        except TimeoutError:
            pass
        except CommandError as error:
            is_late = isinstance(error, DaemonRefused) and error.document.get("error", {}).get("code") == "not_in_time"
            if not self._is_told and not is_late:
                self.window_show_message(types.ShowMessageParams(types.MessageType.Warning, f"PocketLLM: {error}"))
                self._is_told = True
        finally:
            self.deadlines.discard(deadline)
        return {"suggestions": [], "replaces": 0}


def serve(find: Callable[[], Target]) -> None:
    """Answer an editor until it closes stdin. find: where the daemon is; may raise CommandError."""
    logging.disable()
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # pygls would wait for its thread, which reads stdin
    protocol, sys.stdout = sys.stdout.buffer, sys.stderr
    server = Server(find)

    @server.feature(types.TEXT_DOCUMENT_COMPLETION)
    async def completion(params: types.CompletionParams) -> types.CompletionList:
        kind = types.CompletionItemKind.Text
        items = [
            types.CompletionItem(words, kind=kind, sort_text=f"{place:02}", filter_text=words, text_edit=edit)
            for place, (words, edit) in enumerate(await server.suggested(params))
        ]
        return types.CompletionList(is_incomplete=True, items=items)

    @server.feature(types.TEXT_DOCUMENT_INLINE_COMPLETION, types.InlineCompletionOptions())
    async def inline_completion(params: types.InlineCompletionParams) -> types.InlineCompletionList:
        edits = [edit for _, edit in await server.suggested(params)]
        return types.InlineCompletionList([types.InlineCompletionItem(one.new_text, range=one.range) for one in edits])

    @server.feature(types.TEXT_DOCUMENT_DID_CHANGE)
    def changed(_: types.DidChangeTextDocumentParams) -> None:
        while server.deadlines:  # they are of another text
            server.deadlines.pop().reschedule(0)

    server.start_io(stdout=protocol)
