"""Sends texts to the daemon, in batches that fit in one request each, and shows how many there were."""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, TypeVar

from pocketllm.cli.common import Common, connected, make_console
from pocketllm.errors import CommandError, DaemonRefused, Document, Interrupted
from pocketllm.readers.base import Text

if TYPE_CHECKING:
    from pocketllm.client import Client

Item = TypeVar("Item")
#: Called with the reason and the place of a text that is left out.
Skip = Callable[[str, str], None]

#: A request is one transaction of the daemon, so it stays below a megabyte; a longer text has one to itself.
BATCH_BYTES = 900_000
BATCH_TEXTS = 1000
#: The daemon's `max_body_bytes`, less what stands around a text.
REQUEST_BYTES = 7_900_000
#: More refused texts than this, such as ones with an unknown label, end an import: the cause must be a larger one.
MAX_REFUSED = 50
MAX_PLACE = 50  # characters of a place that a terminal's line has room for


def send(options: Common, texts: Iterable[Text], skip: Skip | None = None) -> Document:
    """Store the texts and return the sum of the daemon's answers: ids, created, duplicates and refused.

    A text that no request can hold, or that the daemon refuses, is left out and passed to `skip`; without `skip` it
    is an error. Raises CommandError, or Interrupted on Ctrl-C, which say how many texts are stored.
    """
    sent: Document = {"ids": [], "created": 0, "duplicates": 0, "refused": 0}
    # Without `skip` nothing is sent when one of the texts is too long.
    ready = list(batches(texts, None)) if skip is None else batches(texts, skip)
    try:
        with connected(options) as client:
            client.get("health")  # better now than after hours of reading
            for batch in ready:
                store(client, batch, sent, skip)
    except KeyboardInterrupt as error:
        raise Interrupted(f"Stopped by Ctrl-C. {stored_so_far(sent)}") from error
    except CommandError as error:
        if not sent["ids"]:
            raise
        raise CommandError(f"{error} {stored_so_far(sent)}") from error
    return sent


def stored_so_far(sent: Document) -> str:
    """Return how many texts are stored, and how to go on."""
    return (
        f"{len(sent['ids']):,} texts are stored; run the same command again for the rest (stored texts count as "
        "duplicates)."
    )


def batches(texts: Iterable[Text], skip: Skip | None) -> Iterator[list[Text]]:
    """Yield the texts in order, in lists that fit in one request each."""
    batch: list[Text] = []
    total = 0
    for text in texts:
        size = request_bytes(text)
        if size > REQUEST_BYTES:
            reject(text.place, "too long for one request", skip)
            continue
        if batch and (total + size > BATCH_BYTES or len(batch) == BATCH_TEXTS):
            yield batch
            batch, total = [], 0
        batch.append(text)
        total += size
    if batch:
        yield batch


def request_bytes(text: Text) -> int:
    """Return how many bytes a text takes in a request."""
    return len(json.dumps(text.item, ensure_ascii=False).encode()) + 2


def store(client: "Client", batch: list[Text], sent: Document, skip: Skip | None) -> None:
    """Store a batch and add the answer to `sent`. Without a text that the daemon refuses, the batch is sent again."""
    while batch:
        try:
            answer = client.post("texts", body=[text.item for text in batch])
        except DaemonRefused as error:
            number, reason = refused_item(error)
            if not 1 <= number <= len(batch):
                raise
            place = batch[number - 1].place
            if skip is None:
                raise DaemonRefused(error.document | {"detail": f"{place}: {reason}"}) from error
            sent["refused"] += 1
            if sent["refused"] > MAX_REFUSED:
                raise CommandError(f"{place}: {reason} Stopped after more than {MAX_REFUSED} refused texts.") from error
            skip(f"refused by the daemon: {reason}", place)
            batch = batch[: number - 1] + batch[number:]
        else:
            for name in ("ids", "created", "duplicates"):
                sent[name] += answer[name]
            return


def reject(place: str, reason: str, skip: Skip | None) -> None:
    """Pass a text that cannot be sent to `skip`. Raises CommandError without it."""
    if skip is None:
        raise CommandError(f"{place}: {reason}. Split it into several texts (`--split` makes one per paragraph).")
    skip(reason, place)


def refused_item(error: DaemonRefused) -> tuple[int, str]:
    """Return the number of the item that was refused, and why; 0 when the refusal is of no single item."""
    found = re.match(r"item (\d{1,9}): ", str(error))
    return (int(found[1]), str(error)[found.end() :]) if found else (0, "")


def counted(items: Iterable[Item], *, quiet: bool, place: Callable[[Item], str] = lambda item: "") -> Iterator[Item]:
    """Yield the items, which are texts; a terminal shows how many there were, and where the last one is from."""
    console = make_console(stderr=True)
    if quiet or not console.is_terminal:
        yield from items
        return
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from pocketllm.cli.views import printable

    columns = (
        SpinnerColumn(),
        TextColumn("{task.completed:,.0f} texts", markup=False),
        TextColumn("{task.description}", markup=False),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("", total=None)
        for item in items:
            bar.update(task, advance=1, description=printable(place(item))[-MAX_PLACE:])
            yield item
