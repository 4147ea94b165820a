"""Names and sentences use the field's words: what the project called otherwise for a while does not come back."""

import io
import re
import tokenize
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ("api", "backprop", "daemon", "engine", "mezo", "pocketllm/cli", "pocketllm/readers", "storage")
#: Former name -> the field's. Names that only libraries may use (typer.Context, gguf.Keys) stand behind a dot.
NAMES = {
    "aiming": "(went with the guide)",
    "carrying": "(went with the guide)",
    "trunk": "(went with the guide)",
    "guide": "(went with the guide)",
    "descent": "optimizer",
    "kept_aside": "validation split",
    "patience": "early stopping",
    "Keeper": "trainer",
    "insight": "report",
    "Rise": "token shift",
    "Leak": "verbatim recall",
    "lexicon": "tokenizer",
    "joined": "fused",
    "Walk": "ForwardContext",
    "Trained": "Weight",
    "LowRank": "LoRABranch",
    "Theta": "Trainable",
    "Buckets": "Batches",
    "entering": "the input",
    "wanted": "targets, requested",
    "NO_TARGET": "IGNORE_INDEX",
    "lanes": "replicas",
    "rows_at_once": "micro-batch",
    "led_back": "vjp",
    "sided": "perturbed forward",
    "see": "update, observe",
    "turn": "step, orthonormalize, slot",
    "look": "evaluate, read",
    "move": "add_scaled",
    "use": "set_parameters",
    "separator": "eos",
    "ends": "stop_ids",
    "Wish": "request, preference",
    "seat": "logind idle",
    "senses": "sensor set",
    "told": "reported",
    "division": "data split",
    "judge": "evaluate",
    "guarding": "checkpointing",
    "situation": "context",
    "ledger": "runs",
    "journal": "step log",
    "held": "paused by the owner",
    "LookersFirst": "ReadPriorityMiddleware",
    "Frame": "response builder",
    "chosen": "selected, found",
    "Signing": "SessionsDep",
    "Keys": "CredentialsDep",
    "Context": "ServicesDep",
}
PHRASES = re.compile(r"\bso many\b|\bto be had\b|\bhas no say\b|\bkept aside\b|\bwhat enters\b|\bwhat is kept\b")
#: Loop variables over a chat's turns.
ALLOWED = {("engine/data/examples.py", "turn")}


def files() -> list[Path]:
    return [path for folder in SOURCE for path in sorted((ROOT / folder).rglob("*.py")) if "versions" not in path.parts]


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_names(path: Path) -> None:
    before, found = "", set()
    for token in tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline):
        if token.type == tokenize.NAME and token.string.strip("_") in NAMES and before != ".":
            found.add(token.string)
        before = token.string
    assert not {f"{name}: say {NAMES[name.strip('_')]}" for name in found if (name_of(path), name) not in ALLOWED}


@pytest.mark.parametrize("path", [*files(), ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=name_of)
def test_phrases(path: Path) -> None:
    assert not PHRASES.findall(path.read_text(encoding="utf-8"))
