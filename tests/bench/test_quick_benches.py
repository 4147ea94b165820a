"""Each bench in its quick form, every night: it runs, and measures what it has limits for."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bench.common import measured
from bench.common.child import command
from bench.common.harness import RESULTS, ROOT
from bench.learn import __main__ as learn
from pocketllm.daemon.child import child_environment

pytestmark = pytest.mark.slow

#: Short texts, as the tiny model's context is.
DIARY = "\n\n".join(f"{number} wind west rain mugs" for number in range(150))
LOGBOOK = "\n\n".join(f"On {day} the wind was in the west, and it rained." for day in range(150))
GOOD, BAD = ("fine", "sweet", "warm", "kind"), ("dull", "loud", "cold", "sad")
FILMS = ["sentence\tlabel", *(f"a {word} film\t{int(word in GOOD)}" for word in (*GOOD, *BAD)), ""]
MODELS, WRITER = ["--models", "{}/models"], ["--text", "{}/diary.txt"]
ROWS = [
    *("opt13_lora_bs8", "opt13_exact_bs8", "smollm2_directions", "opt13_int8_bs8"),
    *("opt13_backprop_bs64_micro8", "roberta_backprop_bs8"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the benches run: writers, a task, and the models, which all share."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "sst2").mkdir()
    films = "\n".join(FILMS)
    texts = {"diary.txt": DIARY, "logbook.txt": LOGBOOK, "words.txt": "wind\nwest\nrain\nmugs\n"}
    for name, text in (texts | {"sst2/train.tsv": films, "sst2/dev.tsv": films}).items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("bench", "arguments"),
    [
        ("memory", [*MODELS, "--rows", *ROWS]),
        ("models", MODELS),
        ("parity", MODELS),
        ("harm", MODELS),
        ("idle", MODELS),
        ("promotion", []),
        ("nights", []),
        ("passes", MODELS),
        ("split", MODELS),
        ("folders", []),
        ("load", MODELS),
        ("tasks", [*MODELS, "--seeds", "1"]),
        ("step", MODELS),
        ("keys", [*MODELS, *WRITER, "--words", "{}/words.txt"]),
        ("editor", [*MODELS, *WRITER]),
        ("recall", [*MODELS, *WRITER]),
        ("tasks.labels", [*MODELS, "--data", "{}/sst2", "--seeds", "1", "--text", "{}/logbook.txt", "{}/logbook.txt"]),
    ],
)
def test_it_measures_all_that_it_has_limits_for(bench: str, arguments: list[str], files: Path) -> None:
    arguments = ["--quick", "--results", str(files), *(one.format(files) for one in arguments)]
    line = [sys.executable, "-m", f"bench.{bench}", *arguments]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, env=child_environment(), check=False)
    assert done.returncode == 0, done.stderr
    last: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    always = {"bench", "commit", "date", "arguments", "machine", "values", "limits", "ok", "quick"}
    assert last["ok"] and last["quick"] and last.keys() - {"at_least"} == always
    assert json.loads((files / f"{last['bench']}-quick.json").read_text())["values"] == last["values"]


def test_an_interrupted_bench_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    options, file = ["--quick", "--seeds", "2", "--results", str(tmp_path)], tmp_path / "raw/learn-quick.json"
    assert learn.main(options) == 0
    whole = json.loads(file.read_text())
    runs = whole["raw"]["runs"]
    assert {run["commit"] for run in runs} == {whole["commit"]}
    # With the second seed all take turns.
    methods = [run["contender"].partition(",")[0] for run in runs if run["seed"] == 1]
    assert methods == ["prompt", "mezo", "textbook", "exact", "autograd"]
    kept = whole["raw"]["runs"] = [run for run in runs if run["contender"] != "prompt"]
    file.write_text(json.dumps(whole))
    learn.main([*options, "--resume"])
    runs = json.loads(file.read_text())["raw"]["runs"]
    assert runs[: len(kept)] == kept
    assert [run["contender"] for run in runs[len(kept) :][:2]] == ["prompt"] * 2  # others may be the best now


def test_a_peer_that_is_refused_memory_says_how_large_it_was() -> None:
    work = {"peer": "adam", "shape": "opt-tiny", "batch": 4096, "tokens": 128, "count": 1, "cap_gb": 1}
    report = measured.report_of(command("bench.common.peers", "steps", **work), "The peer")
    assert report["died_bytes"] > 0 and report["died_because"]


def test_peers_run_without_our_import_shims() -> None:
    code = "import sys, bench.learn.peers, bench.step.floor; sys.exit('pocketllm.engine.import_shim' in sys.modules)"
    assert measured.run([sys.executable, "-c", code]).completed


def test_the_plot_of_memory_has_all_three_lines(tmp_path: Path) -> None:
    from bench.memory import plot  # matplotlib takes a while to import

    plot.draw(RESULTS / "memory.json", tmp_path / "memory.svg")
    drawn = (tmp_path / "memory.svg").read_text()
    assert all(words in drawn for words in ("MeZO, ours", "LoRA by backpropagation", "Adam on all parameters"))
