"""What suggestions are worth: keystrokes saved, next words among the top three, non-words, and how long they take.

python -m bench.keys --text FILE [FILE ...] [--words LIST] [--quick]

Each file is a writer's: texts, oldest first, with blank lines between. A daemon gets the first 100 words, one the first
10,000, and learns them by a default job, but for the 100, which start none; later texts are held out. A thousand of
their words are typed letter by letter: a word that is suggested takes one more key, any other one all of its letters
and a space. That is done by the base model, with the owner's words counted beside it, by the adapter alone, and by
both. Before each of the first five hundred words the base and what is served also suggest three next words. Non-words
are those of what is served after the most words: at every letter, and before each of the five hundred.
A value with a limit is that of the writer for whom it is worst, and of latency the longest; any other one is the
mean over the writers. `_error` is a standard error, of a mean over the typed words. LIST has a word a line.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from math import sqrt
from pathlib import Path
from statistics import mean, quantiles, stdev
from typing import TYPE_CHECKING, Any

from bench.common.harness import Limit, finish, progress, start, table
from bench.common.world import daemon_on, until
from bench.common.writers import learned, measure_each, options_of, some_words, texts_of
from pocketllm.engine.generate.word_counts import WORD

if TYPE_CHECKING:
    from pocketllm.client import Client

LIMITS = {
    "non_words": Limit(at_most=0),
    "keystrokes_saved_gain": Limit(at_least=7),
    "suggest_p50_ms": Limit(at_most=45),
    "suggest_p99_ms": Limit(at_most=200),
    "suggest_p99_ms_training": Limit(at_most=250),
}
_TOP = 3
#: The first answer loads the model.
_TIMEOUT_MS = 60_000
#: Parts of words behind an apostrophe, such as the s of "it's", are no longer.
_SHORT = 3


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is learned and measured."""

    words: tuple[int, ...]  #: to learn; a job of the first ones is too small
    places: int  #: held-out words before which three are suggested
    typed: int  #: held-out words that are typed
    training: int  #: suggestions while a job runs


_FULL = Sizes(words=(100, 10_000), places=500, typed=1000, training=400)
_QUICK = Sizes(words=(30, 300), places=6, typed=2, training=5)


@dataclass(kw_only=True)
class Suggestions:
    """Asks for suggestions, and measures the time of each answer."""

    client: Client
    adapter: str
    counts: bool
    milliseconds: list[float] = field(default_factory=list)
    said: set[str] = field(default_factory=set)  #: all suggestions

    def __call__(self, context: str, prefix: str) -> list[str]:
        """What is suggested behind a text, for a word that begins like this."""
        began = time.perf_counter()
        request = {"context": context, "prefix": prefix, "n": _TOP, "adapter": self.adapter, "counts": self.counts}
        answer = self.client.post("suggest", body=request | {"timeout_ms": _TIMEOUT_MS})
        found = [one["text"] for one in answer["suggestions"]]
        self.milliseconds.append(1000 * (time.perf_counter() - began))
        self.said.update(found)
        return found


def places(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """(The text before, the word) of the first words of these texts, the first word of each text aside."""
    found = [(text[: word.start()], word[0]) for text in texts for word in WORD.finditer(text) if word.start()]
    return found[:count]


def keys(ways: Sequence[Suggestions], held_out: Sequence[tuple[str, str]]) -> list[list[int]]:
    """The keys that typing each of these words takes with suggestions, by each of these ways of one adapter.

    At each letter all are asked before the next letter, so that only the first needs a pass of the model.
    """
    pressed: list[list[int]] = [[] for _ in ways]
    for before, word in held_out:
        waiting = list(range(len(ways)))
        for typed in range(len(word) + 1):
            done = [way for way in waiting if typed == len(word) or word in ways[way](before, word[:typed])]
            for way in done:
                pressed[way].append(typed + 1)
            waiting = [way for way in waiting if way not in done]
    return pressed


def measured(file: Path, model: Path, sizes: Sizes, scratch: Path) -> dict[str, Any]:
    """Everything about one writer."""
    texts = texts_of(file)
    known = list(some_words(texts, sizes.words[-1]))
    held_out = places(texts[len(known) :], max(sizes.typed, sizes.places))
    if len(held_out) < max(sizes.typed, sizes.places):
        raise SystemExit(f"{file} has too few words behind the first {sizes.words[-1]:,}. Give a longer text.")
    typed = held_out[: sizes.typed]
    found: dict[str, Any] = {"keys": sum(len(word) + 1 for _, word in typed), "pressed": {}}
    for size in sizes.words:
        with daemon_on(scratch / f"{file.stem}-{size}", model) as client:
            progress(f"{file.stem}: {size:,} words ...")
            some = list(some_words(texts, size))
            if size == sizes.words[0]:
                client.post("texts", body=[{"text": text, "source": "writer"} for text in some])
                personal = "base"
            else:
                personal = learned(client, some)
            groups = [("base", ("counts",) if found["pressed"] else ("neither", "counts"))]
            groups += [] if personal == "base" else [(personal, ("both", "adapter"))]
            for adapter, names in groups:
                asks = [
                    Suggestions(client=client, adapter=adapter, counts=name in ("counts", "both")) for name in names
                ]
                for name, pressed in zip(names, keys(asks, typed), strict=True):
                    found["pressed"][f"{name} {size}"] = pressed
                    progress(f"{name} {size}: {100 * (1 - sum(pressed) / found['keys']):.1f} % of the keys saved")
            ask = asks[0]
            ask.milliseconds.pop(0)  # the first one took a new adapter into memory
            if size == sizes.words[-1]:
                found["milliseconds"] = ask.milliseconds
                for name, adapter in (("base", "base"), ("personal", personal)):
                    three = Suggestions(client=client, adapter=adapter, counts=False)
                    hits = [word in three(before, "") for before, word in held_out[: sizes.places]]
                    found[f"top3_{name}"] = 100 * mean(hits)
                found["said"] = sorted(ask.said | three.said)
                found["milliseconds_training"] = while_training(client, personal, held_out, sizes.training)
    return found


def while_training(client: Client, adapter: str, held_out: Sequence[tuple[str, str]], count: int) -> list[float] | None:
    """How long suggestions take, letter by letter, while a job runs; None if it was paused meanwhile. It begins where
    the generator is unloaded, as jobs do: after thousands of answers by two models, the two together may be above the
    memory that all may take.
    """
    client.post("generate", body={"prompt": "The", "max_tokens": 1, "keep_alive": 0})
    job = str(client.post("jobs", body={"steps": 100_000})["id"])
    until(lambda: client.get("jobs", job)["step"] >= 1, "a step", between_seconds=0.2)
    ask = Suggestions(client=client, adapter=adapter, counts=True)
    for before, word in held_out:
        for size in range(len(word)):
            ask(before, word[:size])
        if len(ask.milliseconds) > count:
            break
    found = client.get("jobs", job)
    client.post("jobs", job, "cancel")
    if found["state"] != "running":
        progress(f"The job did not run all the time: it is {found['state']}, {'; '.join(found['reasons'])}.")
        return None
    return ask.milliseconds[1:]


def gain(one: dict[str, Any], row: str) -> tuple[float, float]:
    """The keys saved beyond the base model's, in per cent of all keys, and the standard error."""
    base, pressed = next(iter(one["pressed"].values())), one["pressed"].get(row)
    if pressed is None:
        return 0.0, 0.0
    saved = [before - now for before, now in zip(base, pressed, strict=True)]
    return 100 * sum(saved) / one["keys"], 100 * stdev(saved) * sqrt(len(saved)) / one["keys"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = options_of(arguments, "bench.keys", "What suggestions are worth to a writer, and how long they take.")
    words = None
    if options.words is not None:
        words = {line.strip().lower() for line in options.words.read_text(encoding="utf-8").splitlines()}
    sizes = _QUICK if options.quick else _FULL
    raw = measure_each(options, measured, full=_FULL, quick=_QUICK)
    for file in options.text:
        own = {word.lower() for word in WORD.findall(file.read_text(encoding="utf-8"))}
        said = raw[file.stem].pop("said")
        raw[file.stem]["non_words"] = None if words is None else [one for one in said if not is_word(one, words | own)]
    writers = list(raw.values())
    rows = list(dict.fromkeys(row for one in writers for row in one["pressed"]))
    last = sizes.words[-1]
    values: dict[str, float | None] = {
        "non_words": None if words is None else max(len(one["non_words"]) for one in writers),
        "keystrokes_saved_gain": min(gain(one, f"both {last}")[0] for one in writers),
        "keystrokes_saved_gain_error": max(gain(one, f"both {last}")[1] for one in writers),
        "keystrokes_saved_base": mean(100 * (1 - sum(one["pressed"][rows[0]]) / one["keys"]) for one in writers),
        "top3_gain": min(one["top3_personal"] - one["top3_base"] for one in writers),
        "top3_personal": mean(one["top3_personal"] for one in writers),
        "suggest_p50_ms": max(_percentile(one["milliseconds"], 50) for one in writers),
        "suggest_p99_ms": max(_percentile(one["milliseconds"], 99) for one in writers),
        "suggest_p99_ms_training": None
        if any(one["milliseconds_training"] is None for one in writers)
        else max(_percentile(one["milliseconds_training"], 99) for one in writers),
    }
    gains = {row: [gain(one, row) for one in writers] for row in rows[1:]}
    values |= {f"gain/{row}": mean(value for value, _ in of_row) for row, of_row in gains.items()}
    values |= {f"gain/{row}/{name}": of[0] for row, ofs in gains.items() for name, of in zip(raw, ofs, strict=True)}
    lines = [[row, *(f"{value:+.1f} ({error:.1f})" for value, error in of_row)] for row, of_row in gains.items()]
    shown = table(
        "Keys saved beyond the base model's, in points (standard error)",
        ["by, after words", *raw],
        lines,
        caption=f"Of {sizes.typed} held-out words of each writer, typed letter by letter.",
    )
    return finish("keys", [shown], values=values, limits=LIMITS, raw=raw, options=options)


def is_word(text: str, words: Collection[str]) -> bool:
    """Whether it is a word of the list, a number, or such with an apostrophe in it."""
    text = text.lower().replace("’", "'")  # noqa: RUF001
    parts = text.split("'")
    return text in words or all(part in words or part.isdecimal() or len(part) < _SHORT for part in parts)


def _percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    sys.exit(start(main))
