"""`pocketllm generate`: generate text."""

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, make_console, shared_options
from pocketllm.cli.importing import from_argument, read_stdin
from pocketllm.errors import CommandError, Document, UsageError

if TYPE_CHECKING:
    from pocketllm.client import Client

EPILOG = examples(
    'pocketllm generate "Dear Anna, the weather here"',
    'pocketllm generate "Dear Anna, the weather here" --base --seed 1',
    'pocketllm generate --chat "Write a short note to my neighbour"',
    'pocketllm generate --chat --recall "When does the ferry leave?"',
    "cat letter.txt | pocketllm generate - --max-tokens 60 --stop $'\\n'",
)


@shared_options
def generate(
    options: Common,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT", help='Beginning of the text; "-" reads stdin.')],
    base: Annotated[bool, typer.Option("--base", help="Use the base model, without an adapter.")] = False,
    adapter: Annotated[
        str | None, typer.Option(metavar="ID", help="Use this adapter. Default: the one being served.")
    ] = None,
    chat: Annotated[bool, typer.Option("--chat", help="Send the prompt as a chat message.")] = False,
    temperature: Annotated[
        float | None, typer.Option(min=0, help="0 always takes the likeliest token; higher values vary more.")
    ] = None,
    top_p: Annotated[
        float | None, typer.Option(min=0, max=1, help="Sample from the likeliest tokens with this total probability.")
    ] = None,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="Maximum length of the answer, in tokens.")] = None,
    stop: Annotated[list[str] | None, typer.Option(help="Stop before this text; can be repeated.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="The same seed gives the same text.")] = None,
    recall: Annotated[
        bool, typer.Option("--recall", help="Give the model matching passages of your texts first.")
    ] = False,
    stream: Annotated[
        bool, typer.Option("--stream/--no-stream", help="Print tokens as they arrive, or the whole text at the end.")
    ] = True,
) -> None:
    """Continue a prompt with the personal model.

    The first request loads the model, which takes a few seconds.
    """
    if base and adapter is not None:
        raise UsageError("--base and --adapter exclude each other. Give only one.")
    words = read_stdin().removesuffix("\n") if prompt == "-" else from_argument(prompt)
    request: Document = {"messages": [{"role": "user", "content": words}]} if chat else {"prompt": words}
    parameters = {
        "adapter": "base" if base else adapter,
        "temperature": temperature,
        "top_p": top_p,
        "max_tokens": max_tokens,
        "stop": stop or None,
        "seed": seed,
        "context": "recall" if recall else None,
    }
    # What was not given is not sent, so that the daemon's defaults stand in one place.
    request |= {name: value for name, value in parameters.items() if value is not None}
    with connected(options) as client:
        if options.json:
            emit(client.post("generate", body=request))
            return
        answer = write_stream(client, request) if stream else write_whole(client, request)
    console = make_console(stderr=True)
    from pocketllm.cli.views import one_line

    for one in answer["recalled"]:
        console.print(f"Read in {one['text_id']}: {one_line(one['passage'])}", style="dim", soft_wrap=True)
    if console.is_terminal:
        console.print(facts(answer), style="dim")


def write_stream(client: "Client", request: Document) -> Document:
    """Write each token to stdout as it comes; returns the final document."""
    answer: Document = {}
    begun = False
    try:
        for event in client.stream("generate", body=request):
            if event.event == "token":
                begun = True
                write(event.json()["text"])
            elif event.event == "done":
                answer = event.json()
    except (CommandError, KeyboardInterrupt):
        if begun:  # the message that follows begins on a line of its own
            write("\n")
        raise
    write("\n")
    return answer


def write_whole(client: "Client", request: Document) -> Document:
    """Write the finished text to stdout; returns the final document."""
    answer = client.post("generate", body=request)
    write(answer["text"] + "\n")
    return answer


def write(text: str) -> None:
    """Write a model's words to stdout at once; a terminal gets none of their control characters."""
    from pocketllm.cli.views import printable

    sys.stdout.write(printable(text) if sys.stdout.isatty() else text)
    sys.stdout.flush()


def facts(answer: Document) -> str:
    """Return what to know of an answer, in a line."""
    model = (
        f"{answer['model']} with adapter {answer['adapter']}" if answer["adapter"] else f"{answer['model']}, no adapter"
    )
    speed = answer.get("tokens_per_second")
    parts = [model, f"{answer['completion_tokens']} tokens"]
    parts += [f"{speed:.1f} tokens/s"] if speed is not None else []
    ending = "cut at --max-tokens" if answer["finish_reason"] == "length" else "ended by the model or --stop"
    return ", ".join([*parts, f"seed {answer['seed']}", ending])
