"""`pocketllm classify`: which label a text has."""

from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, make_console, shared_options
from pocketllm.cli.errors import Document, UsageError
from pocketllm.cli.texts.add import from_argument, read_stdin

EPILOG = examples(
    'pocketllm classify "Invoice 8123 is due"                        among the labels of your texts',
    'pocketllm classify "Invoice 8123 is due" --label work --label home',
    "cat letter.txt | pocketllm classify -",
)


@shared_options
def classify(
    options: Common,
    text: Annotated[str, typer.Argument(metavar="TEXT", help='The text; "-" reads stdin.')],
    label: Annotated[
        list[str] | None,
        typer.Option(help="A label to choose from; give several. Default: those of the texts that you have added."),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Ask the model as it was before it learned.")] = False,
) -> None:
    """Say which label a text has, with the probability of each.

    Labels are learned from examples: `pocketllm add --jsonl FILE` with lines like {"text": "...", "label": "work"}.
    """
    if label is not None and len(label) < 2:
        raise UsageError("One label leaves no choice. Give --label twice or more.")
    words = read_stdin().removesuffix("\n") if text == "-" else from_argument(text)
    request: Document = {"text": words, "adapter": "base" if base else "serving"}
    with connected(options) as client:
        answer = client.classify(request | ({} if label is None else {"labels": label}))
    if options.json:
        emit(answer)
        return
    from pocketllm.cli.views import printable

    console = make_console()
    for one in answer["labels"]:
        console.print(f"{one['probability']:6.1%}  {printable(one['label'])}", markup=False, highlight=False)
