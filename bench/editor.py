"""How long an editor waits for a suggestion: from the key to the language server's answer, beside /suggest's own time.

python -m bench.editor --text FILE [--quick]

A daemon gets the file's first 1,000 words, and its next words are typed letter by letter into a document of pygls' own
client. At every second letter /suggest is asked directly, at the others by the language server: each finds the cache
that the letter before left. Letters for which the server had no answer in its time, or no suggestion, are counted.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import quantiles
from typing import TYPE_CHECKING, Any

from lsprotocol import types
from pygls.lsp.client import LanguageClient

from bench.common.harness import Limit, finish, start, table
from bench.common.world import daemon_on
from bench.common.writers import measure_each, options_of, some_words, texts_of

if TYPE_CHECKING:
    from pocketllm.client import Client

LIMITS = {"server_p99_ms": Limit(at_most=160)}  # it gives up after 150
_URI = "file:///typed.md"
_FULL, _QUICK = (1000, 2000), (100, 20)  #: words of the owner, letters that are typed


async def typed(client: Client, folder: Path, text: str, before: int, count: int) -> dict[str, list[float]]:
    """Milliseconds of each answer for each of `count` letters behind the first `before`; and the letters unanswered."""
    editor = LanguageClient("bench", "1")
    await editor.start_io(sys.executable, "-m", "pocketllm", "lsp", "--data-dir", str(folder))
    await editor.initialize_async(types.InitializeParams(types.ClientCapabilities()))
    editor.text_document_did_open(types.DidOpenTextDocumentParams(types.TextDocumentItem(_URI, "markdown", 0, "")))
    found: dict[str, list[float]] = {"suggest": [], "server": [], "unanswered": []}

    def asked_directly(shown: str) -> None:
        began = time.perf_counter()
        client.post("suggest", body={"context": shown, "timeout_ms": 60_000})
        found["suggest"].append(1000 * (time.perf_counter() - began))

    async def asked_by_the_server(shown: str, version: int) -> None:
        row, column = shown.count("\n"), len(shown) - shown.rfind("\n") - 1
        began = time.perf_counter()
        identifier = types.VersionedTextDocumentIdentifier(uri=_URI, version=version)
        change = types.TextDocumentContentChangeWholeDocument(shown)
        editor.text_document_did_change(types.DidChangeTextDocumentParams(identifier, [change]))
        place = types.CompletionParams(types.TextDocumentIdentifier(_URI), types.Position(row, column))
        answer: Any = await editor.text_document_completion_async(place)
        passed = 1000 * (time.perf_counter() - began)
        found["server" if answer.items else "unanswered"].append(passed)

    client.post("suggest", body={"context": text[:before], "timeout_ms": 60_000})  # loads the model
    for size in range(before + 1, before + 1 + count):
        if size % 2:
            asked_directly(text[:size])
        else:
            await asked_by_the_server(text[:size], size)
    await editor.shutdown_async(None)
    editor.exit(None)
    await editor.stop()  # type: ignore[no-untyped-call]
    return found


def measured(file: Path, model: Path, sizes: tuple[int, int], scratch: Path) -> dict[str, list[float]]:
    """Everything about one writer."""
    texts = texts_of(file)
    known = list(some_words(texts, sizes[0]))
    text = "\n\n".join(texts[: len(known) + 50])
    with daemon_on(scratch / file.stem, model) as client:
        client.post("texts", body=[{"text": one, "source": "writer"} for one in known])
        return asyncio.run(typed(client, scratch / file.stem, text, len("\n\n".join(known)), sizes[1]))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = options_of(arguments, "bench.editor", "How long an editor waits for a suggestion.")
    raw = measure_each(options, measured, full=_FULL, quick=_QUICK)
    values: dict[str, float | None] = {}
    for way in ("suggest", "server"):
        spent = quantiles([ms for one in raw.values() for ms in one[way]], n=100, method="inclusive")
        values |= {f"{way}_p50_ms": spent[49], f"{way}_p99_ms": spent[98]}
    unanswered, answered = (sum(len(one[name]) for one in raw.values()) for name in ("unanswered", "server"))
    values["unanswered_percent"] = 100 * unanswered / (unanswered + answered)
    rows = [[way, f"{values[f'{way}_p50_ms']:.0f}", f"{values[f'{way}_p99_ms']:.0f}"] for way in ("suggest", "server")]
    shown = table("From key to answer, in ms", ["by", "p50", "p99"], rows)
    return finish("editor", [shown], values=values, limits=LIMITS, raw=raw, options=options)


if __name__ == "__main__":
    sys.exit(start(main))
