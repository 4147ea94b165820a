"""`pocketllm chat`: a conversation with the personal model, in the terminal."""

import sys
from typing import Annotated

import typer

from pocketllm.cli.common import DataDir, Url, common, connected, examples, make_console
from pocketllm.cli.models.generate import write_stream
from pocketllm.errors import CommandError, Document, UsageError

EPILOG = examples("pocketllm chat", "pocketllm chat --base", "printf 'Hello\\nAnd then?\\n' | pocketllm chat")

#: What is said here is no message.
_ANEW, _END = "/new", "/bye"


def chat(
    ctx: typer.Context,
    base: Annotated[bool, typer.Option("--base", help="Use the base model, without an adapter.")] = False,
    adapter: Annotated[
        str | None, typer.Option(metavar="ID", help="Use this adapter. Default: the one being served.")
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System message for the model.")] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum length of an answer, in tokens.")] = None,
    url: Url = None,
    data_dir: DataDir = None,
) -> None:
    """Chat with the personal model. Each line is a message; /new starts over, /bye or Ctrl-D quits.

    Ctrl-C stops an answer. Nothing in the chat is stored or learned.
    """
    options = common(ctx, url, data_dir, False)
    if base and adapter is not None:
        raise UsageError("--base and --adapter exclude each other. Give only one.")
    parameters = {"adapter": "base" if base else adapter, "max_tokens": max_tokens}
    given = {name: value for name, value in parameters.items() if value is not None}
    opening = [{"role": "system", "content": system}] if system else []
    messages: list[Document] = list(opening)
    with connected(options) as client:
        client.get("health")  # rather now than after the first message
        while (line := _line()) not in (None, _END):
            if not line or line == _ANEW:
                messages = list(opening) if line else messages
                continue
            messages.append({"role": "user", "content": line})
            try:
                answer = write_stream(client, {"messages": messages, **given})
            except KeyboardInterrupt:
                messages.pop()  # it was not answered
            except CommandError:
                if not sys.stdin.isatty():
                    raise
                messages.pop()
                make_console(stderr=True).print(
                    "The message was not answered; the daemon's log may say why.", style="red"
                )
            else:
                messages.append({"role": "assistant", "content": answer["text"]})


def _line() -> str | None:
    """The next message; None at the end. At a terminal it is asked for."""
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        if sys.stdin.isatty():
            sys.stdout.write("\n")
        return None
