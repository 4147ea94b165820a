"""What the owner's own passages in front of a prompt are worth, and whether the search finds what it should.

python -m bench.recall --text FILE [FILE ...] [--quick]

Each file is a writer's: texts, oldest first, with blank lines between. The daemon stores the first 10,000 words, and
learns them by a default job; later texts are held out. The first thirty words of such a text are a prompt, for which
POST /generate recalls passages; the next words are scored by the base and by what is served, with these passages in
front and without. Gains are in nats a token, and next words among the top three in points. found_at_5: of passages that
were stored, how often three of their words find their text among five. Values are the mean over the writers.
"""

from __future__ import annotations

import random
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, Any

from bench.common.harness import Limit, finish, progress, start
from bench.common.world import as_owner, daemon_on
from bench.common.writers import learned, measure_each, options_of, some_words, texts_of
from pocketllm.api.native.recall import front
from pocketllm.storage.repositories.passages import passages_of

if TYPE_CHECKING:
    from pocketllm.client import Client

LIMITS = {
    "recall_over_base_nats": Limit(at_least=0),
    "recall_and_adapter_over_adapter_nats": Limit(at_least=0),
    "top3_gain_recall": Limit(at_least=3),
    "found_at_5": Limit(at_least=0.9),
}
_TOP, _QUERY_WORDS = 3, 3
#: Words that say something.
_LONG_WORD = re.compile(r"[^\W\d_]{4,}")
_SETTINGS = ("base", "base, recall", "personal", "personal, recall")


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """How much is learned and measured."""

    words: int  #: to learn
    texts: int  #: held-out ones that are scored
    queries: int
    prompt_words: int = 30
    scored_words: int = 60


_FULL = Sizes(words=10_000, texts=60, queries=200)
_QUICK = Sizes(words=100, texts=2, queries=5, prompt_words=2, scored_words=3)


@dataclass(frozen=True, kw_only=True)
class Score:
    """How a model foresees a text."""

    nats: Sequence[float]  #: the log-probability of each token
    hits: Sequence[bool]  #: of each token that begins a word: whether it is among the likeliest


def halves(text: str, sizes: Sizes) -> tuple[str, str]:
    """The words of a prompt, and those after them that are scored."""
    words = text.split(" ")
    end = sizes.prompt_words + sizes.scored_words
    return " ".join(words[: sizes.prompt_words]), " " + " ".join(words[sizes.prompt_words : end])


def score(folder: Path, client: Client, model: str, before: str, text: str) -> Score:
    """How well the model foresees a text behind another one."""
    body = {"model": model, "prompt": before + text, "max_tokens": 0, "echo": True, "logprobs": _TOP}
    url = f"{client.target.url}/v1/completions"
    found = as_owner(folder, "POST", url, json=body, timeout=600)["choices"][0]["logprobs"]
    rows = zip(found["text_offset"], found["tokens"], found["token_logprobs"], found["top_logprobs"], strict=True)
    scored = [row for row in rows if row[0] >= len(before)]
    return Score(
        nats=[nats for _, _, nats, _ in scored],
        hits=[sum(other > nats for other in top.values()) < _TOP for _, token, nats, top in scored if token[:1] == " "],
    )


def recalled(client: Client, prompt: str) -> str:
    """What POST /generate puts before a prompt."""
    answer = client.post("generate", body={"prompt": prompt, "max_tokens": 1, "adapter": "base", "context": "recall"})
    return front([one["passage"] for one in answer["recalled"]])


def found_share(client: Client, texts: Sequence[str], count: int) -> float:
    """The share of passages of which the text is among the first five that three of its words find."""
    drawn = random.Random(0)
    passages = [(text, part) for text in texts for part in passages_of(text, None)]
    found = []
    for text, part in drawn.sample(passages, min(count, len(passages))):
        words = sorted(set(_LONG_WORD.findall(part)))
        if len(words) >= _QUERY_WORDS:
            query = " ".join(drawn.sample(words, _QUERY_WORDS))
            found.append(text in [one["text"] for one in client.get("texts", limit=5, query=query)["data"]])
    return mean(found)


def measured(file: Path, model: Path, sizes: Sizes, scratch: Path) -> dict[str, Any]:
    """Everything about one writer."""
    texts = texts_of(file)
    known = list(some_words(texts, sizes.words))
    enough = sizes.prompt_words + sizes.scored_words
    held_out = [text for text in texts[len(known) :] if len(text.split(" ")) >= enough][: sizes.texts]
    if len(held_out) < sizes.texts:
        raise SystemExit(f"{file} has too few texts of {enough} words behind the first {sizes.words:,} words.")
    folder = scratch / file.stem
    with daemon_on(folder, model) as client:
        progress(f"{file.stem}: learning {sizes.words:,} words ...")
        served = learned(client, known)
        models = {"base": "pocketllm:base", "personal": "pocketllm:latest" if served != "base" else "pocketllm:base"}
        scores: dict[str, list[Score]] = {name: [] for name in _SETTINGS}
        for number, text in enumerate(held_out):
            prompt, rest = halves(text, sizes)
            passages = recalled(client, prompt)
            for name in _SETTINGS:
                before = passages + prompt if name.endswith("recall") else prompt
                scores[name].append(score(folder, client, models[name.partition(",")[0]], before, rest))
            progress(f"{file.stem}: {number + 1} of {len(held_out)} texts")
        return {
            "nats": {name: mean(nats for one in some for nats in one.nats) for name, some in scores.items()},
            "top3": {name: 100 * mean(hit for one in some for hit in one.hits) for name, some in scores.items()},
            "found": found_share(client, known, sizes.queries),
        }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the bench."""
    options = options_of(arguments, "bench.recall", "What the owner's own passages in front of a prompt are worth.")
    raw = measure_each(options, measured, full=_FULL, quick=_QUICK)
    writers = list(raw.values())

    def gain(what: str, one: str, other: str) -> float:
        return float(mean(writer[what][one] - writer[what][other] for writer in writers))

    values: dict[str, float | None] = {
        "recall_over_base_nats": gain("nats", "base, recall", "base"),
        "recall_and_adapter_over_adapter_nats": gain("nats", "personal, recall", "personal"),
        "adapter_over_base_nats": gain("nats", "personal", "base"),
        "top3_gain_recall": gain("top3", "personal, recall", "base, recall"),
        "found_at_5": mean(writer["found"] for writer in writers),
    }
    return finish("recall", [], values=values, limits=LIMITS, raw=raw, options=options)


if __name__ == "__main__":
    sys.exit(start(main))
