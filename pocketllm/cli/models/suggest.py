"""`pocketllm suggest`: the likeliest next words."""

import sys
from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, make_console, shared_options
from pocketllm.cli.errors import Document, UsageError

#: The first question loads the model.
PATIENCE_MS = 60_000
#: A smaller probability is shown as less than this.
LEAST_SHOWN = 0.001

EPILOG = examples(
    'pocketllm suggest "We met at the "',
    'pocketllm suggest "We met at the sta"             endings of a word',
    'pocketllm suggest "I am looking" --words 3        short phrases',
    "pocketllm suggest                                 as you type, a line at a time",
)


@shared_options
def suggest(
    options: Common,
    text: Annotated[
        str | None, typer.Argument(metavar="[TEXT]", help="What is typed so far; without it, lines from stdin.")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", min=1, max=10, help="How many.")] = 3,
    words: Annotated[int, typer.Option(min=1, max=5, help="Words of each suggestion.")] = 1,
    base: Annotated[bool, typer.Option("--base", help="Ask the model as it was before it learned.")] = False,
    adapter: Annotated[
        str | None, typer.Option(metavar="ID", help="Ask a certain adapter; by default the one being served.")
    ] = None,
) -> None:
    """Suggest the next words, or endings of the word that TEXT ends with: end it with a space for the next one.

    The first question loads the model, which takes a few seconds.
    """
    if base and adapter is not None:
        raise UsageError("--base and --adapter exclude each other. Give one of them.")
    request: Document = {"n": number, "words": words, "adapter": "base" if base else adapter or "serving"}
    request["timeout_ms"] = PATIENCE_MS
    with connected(options) as client:
        if text is None and sys.stdin.isatty():
            make_console(stderr=True).print("Type the beginning of a sentence, then Enter. Ctrl-D ends.", style="dim")
        for line in [text] if text is not None else sys.stdin:
            with make_console(stderr=True).status("Thinking ..."):
                answer = client.suggest(request | {"context": line.rstrip("\r\n")})
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
        console.print("No word that the model knows begins so.", style="dim")
    if answer["adapter"] is None:
        make_console(stderr=True).print("By the base model: nothing that was learned is served.", style="dim")
