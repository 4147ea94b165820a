"""`pocketllm suggest`: the likeliest next words."""

import sys
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, make_console, shared_options
from pocketllm.errors import Document, UsageError

#: The first question loads the model.
PATIENCE_MS = 60_000
#: A smaller probability is shown as less than this.
LEAST_SHOWN = 0.001

EPILOG = examples(
    'pocketllm suggest "We met at the "',
    'pocketllm suggest "We met at the sta"             endings of the last word',
    'pocketllm suggest "I am looking" --words 3        short phrases',
    "pocketllm suggest                                 as you type, a line at a time",
)


@shared_options
def suggest(
    options: Common,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="Text typed so far. Default: lines from stdin.")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=10, help="Number of suggestions.")] = 3,
    words: Annotated[int, typer.Option(min=1, max=5, help="Words per suggestion.")] = 1,
    base: Annotated[bool, typer.Option("--base", help="Use the base model, without an adapter.")] = False,
    adapter: Annotated[
        str | None, typer.Option(metavar="ID", help="Use this adapter. Default: the one being served.")
    ] = None,
) -> None:
    """Suggest endings of the last word of TEXT, or the next words if TEXT ends with a space.

    The first request loads the model, which takes a few seconds.
    """
    if base and adapter is not None:
        raise UsageError("--base and --adapter exclude each other. Give only one.")
    request: Document = {"n": number, "words": words, "adapter": "base" if base else adapter or "serving"}
    request["timeout_ms"] = PATIENCE_MS
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
            else:
                _show(answer)


def _show(answer: Document) -> None:
    """A line for each suggestion: its probability and its words."""
    from pocketllm.cli.views import printable

    console = make_console()
    for one in answer["suggestions"]:
        likely = f"{one['probability']:.1%}" if one["probability"] >= LEAST_SHOWN else f"<{LEAST_SHOWN:.1%}"
        console.print(f"{likely:>6}  {printable(one['text'])}", markup=False, highlight=False)
    if not answer["suggestions"]:
        console.print("The model knows no word that begins like this.", style="dim")
    if answer["adapter"] is None:
        make_console(stderr=True).print("From the base model, without an adapter.", style="dim")
