"""What bench.learn and bench.tasks make of their runs."""

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.harness import parser, stored_runs
from bench.int8 import Int8Linear
from bench.learn import __main__ as learn
from bench.learn.curve import seconds_to
from bench.learn.peers import ChunkedLoss
from bench.learn.text import Division, with_prompt
from bench.rates import search
from bench.tasks import __main__ as tasks
from bench.turns import in_turns
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.streamed.loss import IGNORE_INDEX


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_contenders_take_turns_and_one_that_fails_is_left_out() -> None:
    works = python("from bench.turns import serve; serve(lambda: None)")
    seconds = in_turns({"works": (works, None), "fails": (python("1 / 0"), None)}, rounds=2)
    assert seconds.keys() == {"works"} and len(seconds["works"]) == 2


def test_a_loss_in_chunks_is_the_same_loss_with_the_same_gradient() -> None:
    states, head = torch.randn(300, 16, requires_grad=True), torch.randn(50, 16)
    targets = torch.randint(50, (300,))
    targets[::7] = IGNORE_INDEX
    chunked: torch.Tensor = ChunkedLoss.apply(states, head, targets)  # type: ignore[no-untyped-call, unused-ignore]
    whole = torch.nn.functional.cross_entropy(states @ head.t(), targets, ignore_index=IGNORE_INDEX)
    assert chunked.item() == pytest.approx(whole.item(), rel=1e-6)
    (one,), (other,) = torch.autograd.grad(chunked * 3, states), torch.autograd.grad(whole * 3, states)
    assert torch.allclose(one, other, atol=1e-6)


def test_the_int8_peer_multiplies_and_propagates_as_a_dense_map_does() -> None:
    weight, scale, bias = torch.randint(-127, 128, (24, 32), dtype=torch.int8), torch.rand(24, 1), torch.randn(24)
    x = torch.randn(5, 32, requires_grad=True)
    one, other = Int8Linear(weight, scale, bias)(x), torch.nn.functional.linear(x, weight * scale, bias)
    assert torch.allclose(one, other)
    (ours,), (theirs,) = (torch.autograd.grad(y.square().sum(), x) for y in (one, other))
    assert torch.allclose(ours, theirs)


@pytest.mark.parametrize(
    ("best_at", "tried"),
    [
        pytest.param(4e-3, {2e-3, 4e-3, 8e-3}, id="inside the grid"),
        pytest.param(16e-3, {2e-3, 4e-3, 8e-3, 16e-3, 32e-3}, id="above it"),
        pytest.param(1e-3, {2e-3, 4e-3, 8e-3, 1e-3, 0.5e-3}, id="below it"),
    ],
)
def test_the_search_for_a_rate_goes_on_while_the_best_is_at_an_edge(best_at: float, tried: set[float]) -> None:
    seen = []

    def score(rate: float) -> float:
        seen.append(rate)
        return -abs(math.log(rate / best_at))

    assert search((2e-3, 4e-3, 8e-3), score) == best_at
    assert set(seen) == tried and len(seen) == len(tried)


def test_a_search_that_finds_no_end_ends() -> None:
    assert search((1.0, 2.0), lambda rate: rate, max_rates=4) == 8.0


def test_the_time_to_a_loss_is_read_between_a_curves_points() -> None:
    curve = [[0.0, 0, 5.0], [10.0, 3, 4.0], [20.0, 6, 4.5], [30.0, 9, 3.5]]
    assert seconds_to(curve, 4.5) == pytest.approx(5)
    assert seconds_to(curve, 4.0) == pytest.approx(10)
    assert seconds_to(curve, 3.75) == pytest.approx(27.5)
    assert seconds_to(curve, 3.0) == math.inf


def a_run(contender: str, *, writer: str = "diary", rate: float | None = None, **report: Any) -> dict[str, Any]:
    return {"writer": writer, "contender": contender, "rate": rate, "seed": 0, "peak_rss_bytes": 100, **report}


def test_the_values_of_learn_are_those_of_the_worst_writer_and_the_best_peer() -> None:
    def runs_of(writer: str, nats: float) -> list[dict[str, Any]]:
        curve = [[0.0, 0, 5.0], [100.0, 50, 5.0 - nats]]
        peer = [[0.0, 0, 5.0], [100.0, 50, 4.5]]
        return [
            a_run("inference", writer=writer),
            a_run(
                "exact", writer=writer, reduction=nats, curve=curve, prompted_reduction=nats + 0.1, samples_seconds=90.0
            ),
            a_run("autograd", writer=writer, rate=4e-3, reduction=0.4, curve=peer, peak_rss_bytes=150),
            a_run("autograd, chunks", writer=writer, rate=8e-3, reduction=0.5, curve=peer, peak_rss_bytes=200),
            a_run("autograd, checkpointing, chunks", writer=writer, rate=8e-3, reduction=0.49, peak_rss_bytes=125),
        ]

    values = learn.values_of([*runs_of("diary", 1.0), *runs_of("letters", 0.4)])
    assert values["exact_over_peer"] == pytest.approx(0.8) and values["exact_over_peer/diary"] == pytest.approx(2)
    assert values["seconds_to_equal_loss_ratio"] == 0  # it never gets there on one of them
    assert values["seconds_to_equal_loss_ratio/diary"] == pytest.approx(2)
    assert values["exact_peak_over_peer"] == 0.5 and values["exact_peak_over_our_inference"] == 1
    assert values["exact_peak_over_checkpointed"] == 0.8 and values["checkpointed_nats"] == pytest.approx(0.49)
    assert values["samples_seconds"] == 90
    assert values["adapter_and_prompt_over_adapter"] == pytest.approx((1.1 + 1.25) / 2)  # no limit: the mean
    assert values["mezo_over_textbook"] is None and values["exact_over_prompt960"] is None


def test_a_prompt_stands_in_front_of_each_held_out_block_and_predicts_nothing() -> None:
    blocks = [
        Batch(inputs=ids, targets=ids + 1) for ids in (torch.arange(40).view(5, 8), torch.arange(80, 96).view(2, 8))
    ]
    prompted = with_prompt(Division(training=blocks[0], held_out=blocks[1]), 12, seed=0)
    assert prompted.inputs[:, 12:].equal(blocks[1].inputs) and prompted.tokens == blocks[1].tokens
    assert (prompted.inputs[:, 1:12] - prompted.inputs[:, :11]).eq(1).all()  # a piece of the text in one go
    assert prompted.inputs[:, :12].max() < 32  # the last block is filled up, and no text
    with pytest.raises(SystemExit, match="too few"):
        with_prompt(Division(training=blocks[0], held_out=blocks[1]), 33, seed=0)


def test_exact_has_to_come_within_a_standard_error_of_autograd() -> None:
    def runs_of(method: str, rate: float | None, *accuracies: float) -> tasks.Runs:
        key = {"method": method, "rate": rate, "dev_rows": 900, "samples_seconds": 90.0}
        return [key | {"seed": seed, "accuracy": accuracy} for seed, accuracy in enumerate(accuracies)]

    runs = [*runs_of("autograd", 1e-3, 0.9, 0.9), *runs_of("autograd", 2e-3, 0.8), *runs_of("exact", None, 0.88, 0.9)]
    assert tasks.values_of(runs)["exact_minus_autograd_errors"] == pytest.approx(-1)
    assert tasks.values_of(runs)["samples_seconds"] == 90
    assert tasks.values_of([])["exact_minus_autograd_errors"] is None


@pytest.mark.slow
def test_an_interrupted_bench_goes_on_with_what_is_missing(tmp_path: Path) -> None:
    options, file = ["--quick", "--seeds", "2", "--results", str(tmp_path)], tmp_path / "learn-quick.json"
    learn.main(options)
    whole = json.loads(file.read_text())
    runs = whole["raw"]["runs"]
    assert {run["commit"] for run in runs} == {whole["commit"]}
    # With the second seed all take turns.
    assert [run["contender"].partition(",")[0] for run in runs if run["seed"] == 1] == [
        *("prompt", "mezo", "textbook", "exact", "autograd"),
    ]
    exact = next(run for run in runs if run["contender"] == "exact")
    assert 0 < exact["samples_seconds"] < exact["total_seconds"]
    whole["raw"]["runs"] = [run for run in runs if run["contender"] != "prompt"]
    file.write_text(json.dumps(whole))
    learn.main([*options, "--resume"])
    runs = json.loads(file.read_text())["raw"]["runs"]
    assert [run["contender"] for run in runs if run["arguments"]["resume"]] == ["prompt"] * 2


def test_runs_of_two_commits_are_not_compared(tmp_path: Path) -> None:
    options = parser("bench.learn", "").parse_args(["--results", str(tmp_path)])
    stored = {"commit": options.commit, "raw": {"seconds": 120, "runs": [{"seed": 0}]}}
    (tmp_path / "learn.json").write_text(json.dumps(stored))
    assert stored_runs("learn", options, seconds=120, key={"seed"}) == stored["raw"]
    (tmp_path / "learn.json").write_text(json.dumps(stored | {"commit": "of yesterday"}))
    with pytest.raises(SystemExit, match="commit"):
        stored_runs("learn", options, seconds=120, key={"seed"})
