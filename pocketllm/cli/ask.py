"""Commands that ask the model: generate, suggest, classify, chat, mcp, and the language server."""

import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.api.security.tokens import Scope
from pocketllm.cli.importing import from_argument, read_stdin
from pocketllm.cli.program import Common, connected, emit, given, make_console, program
from pocketllm.errors import CommandError, Document, UsageError
from pocketllm.home import find_target

if TYPE_CHECKING:
    from pocketllm.client import Client

PANEL = "Writing"
#: The first request loads the model.
SUGGEST_MS = 60_000
#: A smaller probability is shown as less than this.
LEAST_SHOWN = 0.001
#: What is typed in a chat and is no message.
ANEW, END = "/new", "/bye"

Base = Annotated[bool, typer.Option("--base", help="Use the base model, without an adapter.")]
Adapter = Annotated[str | None, typer.Option(metavar="ID", help="Use this adapter. Default: the one being served.")]
MaxTokens = Annotated[int | None, typer.Option(min=1, help="Maximum length of an answer, in tokens.")]


def fields(base: bool, adapter: str | None = None, **others: object) -> Document:
    """Return what was given as the fields of a request: what was not is left to the daemon. Raises UsageError."""
    if base and adapter is not None:
        raise UsageError("--base and --adapter exclude each other. Give only one.")
    return given(adapter="base" if base else adapter, **others)


@program.command(
    'pocketllm generate "Dear Anna, the weather here"',
    'pocketllm generate "Dear Anna, the weather here" --base --seed 1',
    'pocketllm generate --chat "Write a short note to my neighbour"',
    'pocketllm generate --chat --recall "When does the ferry leave?"',
    "cat letter.txt | pocketllm generate - --max-tokens 60 --stop $'\\n'",
    panel=PANEL,
)
def generate(
    options: Common,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='Beginning of the text; "-" reads stdin.')],
    base: Base = False,
    adapter: Adapter = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a chat message.")] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 always takes the likeliest token; higher values vary more.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Sample from the likeliest tokens with this total probability.")
    ] = None,
    max_tokens: MaxTokens = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; can be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.")] = None,
    recall: Annotated[
        bool, typer.Option("--recall", help="Give the model matching passages of your texts first.")
    ] = False,
) -> None:
    """Continue a prompt with the personal model.

    The first request loads the model, which takes a few seconds.
    """
    words = _words(prompt)
    request: Document = {"messages": [{"role": "user", "content": words}]} if chat else {"prompt": words}
    more = {"temperature": temperature, "top_p": top_p, "max_tokens": max_tokens, "stop": stop or None, "seed": seed}
    request |= fields(base, adapter, context="recall" if recall else None, **more)
    with connected(options) as client:
        answer = client.post("generate", body=request) if options.json else write_stream(client, request)
    if options.json:
        emit(answer)
        return
    from pocketllm.cli.views import one_line

    console = make_console(stderr=True)
    for one in answer["recalled"]:
        console.print(f"Read in {one['text_id']}: {one_line(one['passage'])}", style="dim", soft_wrap=True)
    if console.is_terminal:
        console.print(facts(answer), style="dim")


def write_stream(client: "Client", request: Document) -> Document:
    """Write each token to stdout as it comes; returns the final document."""
    answer, end = Document(), ""
    try:
        for event in client.stream("generate", body=request):
            end = "\n"
            if event.event == "token":
                write(event.json()["text"])
            else:
                answer = event.json()
    finally:  # a message that follows begins on a line of its own
        write(end)
    return answer


def write(text: str) -> None:
    """Write a model's words to stdout at once; a terminal gets none of their control characters."""
    from pocketllm.cli.views import printable

    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def facts(answer: Document) -> str:
    """Return what to know of an answer, in a line."""
    by = f" with adapter {answer['adapter']}" if answer["adapter"] else ", no adapter"
    speed = answer["tokens_per_second"]
    rate = "" if speed is None else f" {speed:.1f} tokens/s,"
    ending = "cut at --max-tokens" if answer["finish_reason"] == "length" else "ended by the model or --stop"
    return f"{answer['model']}{by}, {answer['completion_tokens']} tokens,{rate} seed {answer['seed']}, {ending}"


def _words(argument: str) -> str:
    return read_stdin().removesuffix("\n") if argument == "-" else from_argument(argument)


@program.command(
    'pocketllm suggest "We met at the "',
    'pocketllm suggest "We met at the railway sta"     endings of the last word',
    "pocketllm suggest                                 as you type, a line at a time",
    panel=PANEL,
)
def suggest(
    options: Common,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="Text typed so far. Default: lines from stdin.")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=10, help="Number of suggestions.")] = 3,
    base: Base = False,
    adapter: Adapter = None,
) -> None:
    """Suggest endings of the last word of TEXT, or the next words if it is finished or TEXT ends with a space.

    Prints each one's share among words that begin as typed. The first request loads the model, which takes a while.
    """
    request = fields(base, adapter, n=number, timeout_ms=SUGGEST_MS)
    with connected(options) as client:
        if text is None and sys.stdin.isatty():
            make_console(stderr=True).print(
                "Type the beginning of a sentence, then press Enter. Ctrl-D quits.", style="dim"
            )
        for line in [text] if text is not None else sys.stdin:
            with make_console(stderr=True).status("Thinking ..."):
                answer = client.post("suggest", body=request | {"context": line.rstrip("\r\n")})
            if options.json:
                emit(answer)
                continue
            _show_likely(answer["suggestions"], "text", "share")
            if not answer["suggestions"]:
                make_console().print("The model knows no word that begins like this.", style="dim")
            if answer["adapter"] is None:
                by = "base model" if base else "base model and your words"
                make_console(stderr=True).print(f"From the {by}, without an adapter.", style="dim")


@program.command(
    'pocketllm classify "Invoice 8123 is due"                        among the labels of your texts',
    'pocketllm classify "Invoice 8123 is due" --label work --label home',
    "cat letter.txt | pocketllm classify -",
    panel=PANEL,
)
def classify(
    options: Common,
    text: Annotated[str, typer.Argument(metavar="TEXT", help='Text to classify; "-" reads stdin.')],
    label: Annotated[
        list[str] | None,
        typer.Option(help="Label to choose from; give at least two. Default: the labels of your texts."),
    ] = None,
    base: Base = False,
) -> None:
    """Classify a text: print each label with its probability.

    Each label needs three examples: `pocketllm add --label work TEXT`, or `pocketllm import FILE` for many at once.
    """
    if label is not None and len(label) < 2:
        raise UsageError("Give --label at least twice.")
    request = fields(base, text=_words(text), labels=label)
    with connected(options) as client:
        answer = client.post("classify", body=request)
    emit(answer) if options.json else _show_likely(answer["labels"], "label", "probability")


def _show_likely(rows: list[Document], name: str, value: str) -> None:
    """A line for each, with its probability or share."""
    from pocketllm.cli.views import printable

    for one in rows:
        likely = f"{one[value]:.1%}" if one[value] >= LEAST_SHOWN else f"<{LEAST_SHOWN:.1%}"
        make_console().print(f"{likely:>6}  {printable(one[name].strip())}")


@program.command(
    "pocketllm chat",
    "pocketllm chat --base",
    "printf 'Hello\\nAnd then?\\n' | pocketllm chat",
    panel=PANEL,
    without=("json_wanted",),
)
def chat(
    options: Common,
    base: Base = False,
    adapter: Adapter = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message for the model.")] = None,
    max_tokens: MaxTokens = None,
) -> None:
    """Chat with the personal model. Each line is a message; /new starts over, /bye or Ctrl-D quits.

    Ctrl-C stops an answer. Nothing in the chat is stored or learned.
    """
    parameters = fields(base, adapter, max_tokens=max_tokens)
    opening = [{"role": "system", "content": system}] if system else []
    messages: list[Document] = list(opening)
    with connected(options) as client:
        client.get("health")  # rather now than after the first message
        for line in _lines():
            if not line or line == ANEW:
                messages = list(opening) if line else messages
                continue
            messages.append({"role": "user", "content": line})
            try:
                answer = write_stream(client, {"messages": messages, **parameters})
            except KeyboardInterrupt:
                messages.pop()  # it was not answered
            except CommandError as error:
                if not sys.stdin.isatty():
                    raise
                messages.pop()
                make_console(stderr=True).print(f"Not answered: {error}", style="red", soft_wrap=True)
            else:
                messages.append({"role": "assistant", "content": answer["text"]})


def _lines() -> Iterator[str]:
    """The messages; at a terminal they are asked for."""
    try:
        while (line := input("> " if sys.stdin.isatty() else "").strip()) != END:
            yield line
    except EOFError:
        sys.stdout.write("\n" * sys.stdin.isatty())


@program.command("pocketllm mcp --scope recall --scope generate", panel=PANEL, without=("json_wanted",))
def mcp(options: Common, scope: Annotated[list[Scope], typer.Option(help="Of the token; can be repeated.")]) -> None:
    """Serve tools to an assistant on stdin and stdout (MCP). The assistant's program starts this command.

    The tools are search_my_texts (scope recall), continue_like_me and which_label (generate), and remember (ingest).
    POCKETLLM_TOKEN is an access token of the assistant's own: `pocketllm token create NAME --scope recall`.
    """
    if not os.environ.get("POCKETLLM_TOKEN"):
        raise UsageError("POCKETLLM_TOKEN is not set. `pocketllm token create NAME --scope recall` creates a token.")
    try:
        from pocketllm.mcp import serve
    except ImportError as error:
        raise CommandError("The package mcp is missing: pip install 'pocketllm[mcp]'") from error
    said = "An assistant that runs in a cloud sends on what it reads here: your texts, with the scope recall."
    make_console(stderr=True).print(said, soft_wrap=True)
    serve(options.url, options.data_dir, scope)


@program.command("pocketllm lsp                   for an editor's settings", panel=PANEL, without=("json_wanted",))
def lsp(options: Common) -> None:
    """Run a language server on stdin and stdout, which suggests next words in an editor's files of prose.

    Editors start it: see examples/editors.md. It asks the running daemon, and stores nothing that you type.
    """
    try:
        from pocketllm.lsp import serve
    except ModuleNotFoundError as error:
        raise CommandError(f"{error.name} is not installed. Install it: pip install 'pocketllm[lsp]'") from error
    serve(lambda: find_target(options.url, options.data_dir))
