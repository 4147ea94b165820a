"""What suggestions are worth: next words among the top three, keystrokes saved, and how long they take.

python -m bench.keys --text FILE [FILE ...] [--quick]

Each file is a writer's: texts, oldest first, with blank lines between. The daemon learns the first 10,000 words by a
default job, and another one the first 1,000; later texts are held out. There, before each of some hundred words in a
row, the base and what is served then suggest three. Then the same is typed letter by letter: a word that is suggested
takes one more key, any other one all of its letters and a space. A value with a limit is that of the writer for whom it
is worst, and of latency the longest; any other one is the mean over the writers.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean, quantiles
from typing import TYPE_CHECKING, Any

from bench.harness import Limit, finish, progress, start, table
from bench.world import daemon_on, until
from bench.writers import learned, measure_each, options_of, some_words, texts_of

if TYPE_CHECKING:
    from pocketllm.client import Client

LIMITS = {
    "top3_gain": Limit(at_least=6),
    "top3_gain_1k": Limit(at_least=2),
    "suggest_p50_ms": Limit(at_most=50),
    "suggest_p99_ms_training": Limit(at_most=250),
}
_TOP = 3
#: As suggestions have them: letters and digits, with apostrophes.
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")  # noqa: RUF001


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is learned and measured."""

    words: int  #: to learn
    few_words: int
    places: int  #: held-out words
    typed: int  #: of which so many are typed
    training: int  #: suggestions while a job runs


_FULL = Sizes(words=10_000, few_words=1_000, places=500, typed=80, training=400)
_QUICK = Sizes(words=300, few_words=100, places=6, typed=2, training=5)


@dataclass(kw_only=True)
class Suggestions:
    """Asks for suggestions, and measures the time of each answer."""

    client: Client
    milliseconds: list[float] = field(default_factory=list)

    def __call__(self, adapter: str, context: str, prefix: str) -> list[str]:
        """What is suggested behind a text, for a word that begins like this."""
        began = time.perf_counter()
        request = {"context": context, "prefix": prefix, "n": _TOP, "adapter": adapter}
        found = [one["text"] for one in self.client.suggest(request)["suggestions"]]
        self.milliseconds.append(1000 * (time.perf_counter() - began))
        return found


def places(texts: Sequence[str], count: int) -> list[tuple[str, str]]:
    """(The text before, the word) of the first words of these texts, the first word of each text aside."""
    found = [(text[: word.start()], word[0]) for text in texts for word in _WORD.finditer(text) if word.start()]
    return found[:count]


def top3(ask: Suggestions, adapter: str, held_out: Sequence[tuple[str, str]]) -> list[bool]:
    """Before each word: whether it is among the three that are suggested."""
    return [word in ask(adapter, before, "") for before, word in held_out]


def keys(ask: Suggestions, adapter: str, held_out: Sequence[tuple[str, str]]) -> tuple[int, int]:
    """The keys that typing these words takes with suggestions, and without: a letter or a space each."""
    pressed = 0
    for before, word in held_out:
        typed = 0
        while typed < len(word) and word not in ask(adapter, before, word[:typed]):
            typed += 1
        pressed += typed + 1
    return pressed, sum(len(word) + 1 for _, word in held_out)


def measured(file: Path, model: Path, sizes: Sizes, scratch: Path) -> dict[str, Any]:
    """Everything about one writer."""
    texts = texts_of(file)
    known = list(some_words(texts, sizes.words))
    held_out = places(texts[len(known) :], sizes.places)
    if len(held_out) < sizes.places:
        raise SystemExit(f"{file} has too few words behind the first {sizes.words:,}. Give a longer text.")
    found: dict[str, Any] = {}
    with daemon_on(scratch / f"{file.stem}-few", model) as client:
        progress(f"{file.stem}: {sizes.few_words:,} words ...")
        few = learned(client, list(some_words(texts, sizes.few_words)))
        hits = {name: top3(Suggestions(client=client), name, held_out) for name in ("base", few)}
        found["top3_base"], found["top3_few"] = (100 * mean(hits[name]) for name in ("base", few))
    with daemon_on(scratch / file.stem, model) as client:
        progress(f"{file.stem}: {sizes.words:,} words ...")
        personal = learned(client, known)
        found["top3_personal"] = 100 * mean(top3(Suggestions(client=client), personal, held_out))
        progress(", ".join(f"{name} {found[f'top3_{name}']:.1f}" for name in ("base", "few", "personal")))
        typed = held_out[: sizes.typed]
        for name, adapter in (("base", "base"), ("personal", personal)):
            ask = Suggestions(client=client)
            pressed, all_keys = keys(ask, adapter, typed)
            found[f"saved_{name}"] = 100 * (1 - pressed / all_keys)
        found["milliseconds"] = ask.milliseconds[1:]  # the first one takes a new adapter into memory
        found["milliseconds_training"] = while_training(client, personal, held_out, sizes.training)
    return found


def while_training(client: Client, adapter: str, held_out: Sequence[tuple[str, str]], count: int) -> list[float]:
    """How long suggestions take, letter by letter, while a job runs."""
    job = str(client.start_job(steps=100_000)["id"])
    until(lambda: client.job(job)["step"] >= 1, "a step", between_seconds=0.2)
    ask = Suggestions(client=client)
    for before, word in held_out:
        for size in range(len(word)):
            ask(adapter, before, word[:size])
        if len(ask.milliseconds) > count:
            break
    if client.job(job)["state"] != "running":
        raise SystemExit("The job did not run all the time.")
    client.cancel_job(job)
    return ask.milliseconds[1:]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = options_of(arguments, "bench.keys", "What suggestions are worth to a writer, and how long they take.")
    raw = measure_each(options, measured, full=_FULL, quick=_QUICK)
    writers = raw.values()
    values: dict[str, float | None] = {
        "top3_gain": min(one["top3_personal"] - one["top3_base"] for one in writers),
        "top3_gain_1k": min(one["top3_few"] - one["top3_base"] for one in writers),
        "top3_personal": mean(one["top3_personal"] for one in writers),
        "keystrokes_saved": mean(one["saved_personal"] for one in writers),
        "keystrokes_saved_base": mean(one["saved_base"] for one in writers),
        "suggest_p50_ms": max(_percentile(one["milliseconds"], 50) for one in writers),
        "suggest_p99_ms": max(_percentile(one["milliseconds"], 99) for one in writers),
        "suggest_p99_ms_training": max(_percentile(one["milliseconds_training"], 99) for one in writers),
    }
    names = ("top3_base", "top3_few", "top3_personal", "saved_base", "saved_personal")
    rows = [[name, *(f"{one[column]:.1f}" for column in names)] for name, one in raw.items()]
    columns = ["writer", "top 3, base", "1,000 words", "10,000 words", "keys saved, base", "personal"]
    shown = table(
        "Suggestions, per cent",
        columns,
        rows,
        caption=f"Of {(_QUICK if options.quick else _FULL).places} held-out words of each writer.",
    )
    return finish("keys", [shown], values=values, limits=LIMITS, raw=raw, options=options)


def _percentile(values: Sequence[float], percent: int) -> float:
    return quantiles(values, n=100, method="inclusive")[percent - 1]


if __name__ == "__main__":
    sys.exit(start(main))
