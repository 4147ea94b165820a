"""Yields the texts in files and folders, and counts what was read and what was left out."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pocketllm.readers.base import Document, Example, Found, Kind, Ownerless, ReadOptions, Skipped, Text, item_words
from pocketllm.readers.reading import read, source_name
from pocketllm.readers.walk import Entry, walk

#: Places that are kept for each reason why something was left out.
MAX_PLACES = 3


@dataclass(kw_only=True)
class KindCount:
    """Counts of what was read from files of one kind."""

    files: int = 0
    texts: int = 0
    words: int = 0


@dataclass(kw_only=True)
class SkippedCount:
    """How often something was left out for one reason, and the first places."""

    count: int = 0
    places: list[str] = field(default_factory=list)


@dataclass(kw_only=True)
class Tally:
    """Counts of everything that was found."""

    kinds: dict[Kind, KindCount] = field(default_factory=dict)
    skipped: dict[str, SkippedCount] = field(default_factory=dict)
    writers: Counter[str] = field(default_factory=Counter)  #: of messages whose owner is unknown
    ownerless: list[str] = field(default_factory=list)  #: the files that hold these

    @property
    def files(self) -> int:
        """The number of files of a known kind."""
        return sum(kind.files for kind in self.kinds.values())

    @property
    def texts(self) -> int:
        """The number of texts; a text that is there twice counts twice."""
        return sum(kind.texts for kind in self.kinds.values())

    @property
    def words(self) -> int:
        """The number of words in the texts."""
        return sum(kind.words for kind in self.kinds.values())

    def skip(self, reason: str, place: str) -> None:
        """Count something that was left out."""
        counted = self.skipped.setdefault(reason, SkippedCount())
        counted.count += 1
        if len(counted.places) < MAX_PLACES:
            counted.places.append(place)

    def as_document(self) -> Document:
        """Return the counts as JSON values."""
        return {
            "files": self.files,
            "texts": self.texts,
            "words": self.words,
            "kinds": {kind.value: vars(count) for kind, count in self.kinds.items()},
            "skipped": [{"reason": reason, **vars(count)} for reason, count in self.skipped.items()],
            "writers": dict(self.writers.most_common()),
        }


def gather(paths: list[Path], read_options: ReadOptions, tally: Tally, *, source: str | None) -> Iterator[Text]:
    """Yield the texts below some paths and count them in `tally`.

    source: of all texts. Without it, a text's source is the one in its line, else its file.
    """
    for entry in walk(paths):
        kind, found = read(entry, read_options)
        if kind is not None:
            tally.kinds.setdefault(kind, KindCount()).files += 1
        for one in found:
            text = counted(one, entry, kind, tally)
            if text is not None and kind is not None:
                default = {"source": source_name(kind, entry.name)}
                yield Text(item=default | text.item | ({"source": source} if source else {}), place=text.place)


def counted(one: Found, entry: Entry, kind: Kind | None, tally: Tally) -> Text | None:
    """Count one thing that a reader yielded, and return it if it is an example."""
    if isinstance(one, Skipped):
        tally.skip(one.reason, " ".join(filter(None, [entry.name, one.place])))
    elif isinstance(one, Ownerless):
        tally.writers.update(one.messages)
        tally.ownerless.append(entry.name)
    elif isinstance(one, Example) and kind is not None:
        count = tally.kinds[kind]
        count.texts += 1
        count.words += item_words(one.item)
        return Text(item=one.item, place=" ".join(filter(None, [entry.name, one.place])))
    return None
