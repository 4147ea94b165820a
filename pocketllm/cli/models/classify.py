"""`pocketllm classify`: which label a text has."""

from typing import Annotated

import typer

from pocketllm.cli.common import Common, connected, emit, examples, make_console, shared_options
from pocketllm.cli.importing import from_argument, read_stdin
from pocketllm.errors import Document, UsageError

EPILOG = examples(
    'pocketllm classify "Invoice 8123 is due"                        among the labels of your texts',
    'pocketllm classify "Invoice 8123 is due" --label work --label home',
    "cat letter.txt | pocketllm classify -",
)


@shared_options
def classify(
    options: Common,
    text: Annotated[str, typer.Argument(metavar="TEXT", help='Text to classify; "-" reads stdin.')],
    label: Annotated[
        list[str] | None,
        typer.Option(help="Label to choose from; give at least two. Default: the labels of your texts."),
    ] = None,
    base: Annotated[bool, typer.Option("--base", help="Use the base model, without an adapter.")] = False,
) -> None:
    """Classify a text: print each label with its probability.

    Each label needs three examples: `pocketllm add --label work TEXT`, or `pocketllm import FILE` for many at once.
    """
    if label is not None and len(label) < 2:
        raise UsageError("Give --label at least twice.")
    words = read_stdin().removesuffix("\n") if text == "-" else from_argument(text)
    request: Document = {"text": words, "adapter": "base" if base else "serving"}
    with connected(options) as client:
        answer = client.post("classify", body=request | ({} if label is None else {"labels": label}))
    if options.json:
        emit(answer)
        return
    from pocketllm.cli.views import printable

    console = make_console()
    for one in answer["labels"]:
        console.print(f"{one['probability']:6.1%}  {printable(one['label'])}", markup=False, highlight=False)
