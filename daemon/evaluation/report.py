"""The report of a job: what the model has learned, in numbers and words. The worker makes it at the end of a job."""

import re
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pocketllm.daemon.evaluation.promotion import EvaluationVerdict
from pocketllm.daemon.process_memory import give_back_free_memory, out_of_memory
from pocketllm.engine.formats.model_folder import ModelFolder, open_model_folder
from pocketllm.engine.formats.tokenizer import Tokenizer, lean_tokenizer
from pocketllm.engine.generate.model_report import ModelReport, Sample, compare, observe
from pocketllm.engine.params.full import FullWeights
from pocketllm.engine.params.lora import Adapter
from pocketllm.engine.streamed.model import MEASURE_BLOCKS, LanguageModel
from pocketllm.storage.tables import Report, Text

Result = TypeVar("Result")

#: The most words in a report.
WORDS = 12
#: Words whose probability rose by this factor come before those that were frequent already.
TELLING_RATIO = 2.0


def attempt(work: Callable[[], Result], say: Callable[[str, str], None]) -> Result | None:
    """Do a part of a report; if that fails, add an event with the reason and return None.

    A job must not fail for want of a report. The event has the error's class only, since its message might contain the
    owner's words.
    """
    try:
        return work()
    except Exception as error:
        reason = "memory ran out" if out_of_memory(error) else type(error).__name__
        say("no report", f"the report is incomplete: {reason}")
        sys.stderr.write("".join(traceback.format_tb(error.__traceback__)))
        return None


def model_report(
    model: LanguageModel, trainable: Adapter | FullWeights, base: Path, places: Sample, micro_batch: int
) -> ModelReport:
    """Compare the trained model with the base model on a sample. base: the base model's folder."""
    rows = min(micro_batch, MEASURE_BLOCKS)
    if isinstance(trainable, FullWeights):
        # The model's own weights are the trained ones.
        before = observe(
            LanguageModel(open_model_folder(base), dtype=model.context.dtype, release_pages=True), places, rows
        )
    else:
        model.set_parameters(None)
        before = observe(model, places, rows)
    give_back_free_memory()
    model.set_parameters(trainable)
    return compare(places, before, observe(model, places, rows))


def report(
    job_id: str, verdict: EvaluationVerdict, found: ModelReport | None = None, content: dict[str, Any] | None = None
) -> Report:
    """The whole report; the verdict is always present."""
    numbers = {"verdict": verdict.to_json(), "verbatim_recall": None if found is None else found.verbatim_recall}
    return Report(job_id=job_id, numbers=numbers, content=content)


def report_content(found: ModelReport, model_folder: ModelFolder, texts: Sequence[Text]) -> dict[str, Any]:
    """The words, completions and tokens per word. Loads the tokenizer, which takes much memory, and drops it."""
    tokenizer = lean_tokenizer(model_folder)
    words = sum(text.words for text in texts)
    tokens = sum(1 + len(tokenizer(text.text + (text.completion or ""))["input_ids"]) for text in texts)  # 1: its end
    return {
        "tokens_per_word": round(tokens / words, 3) if words else None,
        "words": _words(found.shifts, tokenizer, _words_of(texts)),
        "completions": [
            {
                "prompt": _text(tokenizer, prompt),
                "base": _behind(tokenizer, prompt, base),
                "personal": _behind(tokenizer, prompt, personal),
            }
            for prompt, base, personal in found.continuations
        ],
    }


def _words_of(texts: Iterable[Text]) -> set[str]:
    return {word for text in texts for part in (text.text, text.completion or "") for word in re.findall(r"\w+", part)}


def _words(shifts: Sequence[tuple[int, float, float]], tokenizer: Tokenizer, known: set[str]) -> list[dict[str, Any]]:
    """The tokens whose probability rose and that are words of the owner's texts; or all with a letter, if hardly any is
    a whole word, as in a script without spaces.
    """
    by_word: dict[str, dict[str, Any]] = {}  # by the case-folded word
    for token, base, personal in shifts:
        word = _text(tokenizer, [token]).strip()  # of a special token nothing
        if any(map(str.isalpha, word)):
            by_word.setdefault(word.casefold(), {"word": word, "base": base, "personal": personal})
    whole = [entry for entry in by_word.values() if entry["word"] in known]
    entries = whole if len(whole) >= WORDS // 2 else list(by_word.values())
    return sorted(entries, key=lambda entry: entry["personal"] < TELLING_RATIO * entry["base"])[:WORDS]


def _text(tokenizer: Tokenizer, tokens: Sequence[int]) -> str:
    text = tokenizer.decode(list(tokens), skip_special_tokens=True)
    assert isinstance(text, str)
    return text


def _behind(tokenizer: Tokenizer, prompt: Sequence[int], answer: Sequence[int]) -> str:
    """The answer's text after the prompt's: decoded alone, some tokenizers drop its first space."""
    whole, before = _text(tokenizer, [*prompt, *answer]), _text(tokenizer, prompt)
    return whole.removeprefix(before) if whole.startswith(before) else _text(tokenizer, answer)
