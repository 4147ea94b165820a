"""Yields the texts in files and folders, and counts what was read and what was left out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pocketllm.readers.base import Document, Example, Kind, Ownerless, ReadOptions, Skipped, item_words
from pocketllm.readers.reading import read, source_name
from pocketllm.readers.walk import walk

#: Places that are kept for each reason why something was left out.
MAX_PLACES = 3
#: What is counted for each kind of file.
COUNTED = ("files", "texts", "words")


@dataclass(kw_only=True)
class Tally:
    """Counts of everything that was found."""

    kinds: dict[Kind, Counter[str]] = field(default_factory=dict)  #: by COUNTED
    skipped: Counter[str] = field(default_factory=Counter)  #: by reason
    places: dict[str, list[str]] = field(default_factory=dict)  #: the first ones of each reason
    writers: Counter[str] = field(default_factory=Counter)  #: of messages whose owner is unknown
    ownerless: list[str] = field(default_factory=list)  #: the files that hold these

    def total(self, name: str) -> int:
        """Return one of COUNTED over all kinds; a text that is there twice counts twice."""
        return sum(count[name] for count in self.kinds.values())

    def skip(self, reason: str, place: str) -> None:
        """Count something that was left out."""
        self.skipped[reason] += 1
        if self.skipped[reason] <= MAX_PLACES:
            self.places.setdefault(reason, []).append(place)

    def as_document(self) -> Document:
        """Return the counts as JSON values."""
        skipped = [{"reason": reason, "count": n, "places": self.places[reason]} for reason, n in self.skipped.items()]
        return {
            **{name: self.total(name) for name in COUNTED},
            "kinds": {kind.value: {name: count[name] for name in COUNTED} for kind, count in self.kinds.items()},
            "skipped": skipped,
            "writers": dict(self.writers.most_common()),
        }


def gather(paths: list[Path], read_options: ReadOptions, tally: Tally, *, source: str | None) -> Iterator[Example]:
    """Yield the texts below some paths and count them in `tally`.

    source: of all texts. Without it, a text's source is the one in its line, else its file.
    """
    for entry in walk(paths):
        kind, found = read(entry, read_options)
        if kind is not None:
            tally.kinds.setdefault(kind, Counter())["files"] += 1
        for one in found:
            if isinstance(one, Ownerless):
                tally.writers.update(one.messages)
                tally.ownerless.append(entry.name)
                continue
            place = " ".join(filter(None, [entry.name, one.place]))
            if isinstance(one, Skipped):
                tally.skip(one.reason, place)
            elif kind is not None:
                tally.kinds[kind].update(texts=1, words=item_words(one.item))
                default = {"source": source_name(kind, entry.name)}
                yield Example(item=default | one.item | ({"source": source} if source else {}), place=place)
