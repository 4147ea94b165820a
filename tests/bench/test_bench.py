"""The benches' frame and peers: a limit is a limit, a process is measured, and peers compute what they claim to."""

import math
import re
import socket
import sqlite3
import sys
from contextlib import closing
from datetime import datetime
from pathlib import Path

import pytest
import torch

from bench.common import cgroups, measured, peers
from bench.common.child import command
from bench.common.harness import Limit, is_ok, machine, parser, provenance, stored_runs
from bench.common.int8 import Int8Linear
from bench.common.measured import MIB
from bench.common.rates import search
from bench.common.turns import in_turns
from bench.learn.curve import best_runs
from bench.learn.peers import ChunkedLoss
from bench.load.bare import running_bare
from bench.load.clients import load
from pocketllm.engine.data.batches import IGNORE_INDEX


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


@pytest.mark.parametrize(
    ("limit", "value", "full", "quick"),
    [
        (Limit(at_most=1), 1.0, True, True),
        (Limit(at_most=1), 1.1, False, True),  # a quick run proves no figures
        (Limit(at_most=1), math.nan, False, True),
        (Limit(at_least=2), 1.0, False, True),
        (Limit(at_least=2), 3.0, True, True),
        (Limit(at_most=1, always=True), 9.0, False, False),
        (Limit(at_most=1), None, False, False),
        (Limit(at_most=1, where_measurable=True), None, True, True),
        (Limit(at_most=1, where_measurable=True), 2.0, False, True),
    ],
)
def test_ok_says_whether_a_limit_is_missed(limit: Limit, value: float | None, full: bool, quick: bool) -> None:
    found = [is_ok({"a": value}, {"a": limit}, quick=form) for form in (False, True)]
    assert found == [full, quick]


def test_results_say_what_they_were_measured_on_and_not_whose_it_is() -> None:
    options = parser("bench.some", "").parse_args(["--results", "/a/b"])
    options.text = [Path("/home/somebody/diary.txt")]
    found = provenance(options)
    assert found["arguments"] == {"quick": False, "text": ["diary.txt"]}
    assert re.fullmatch(r"[0-9a-f]{40}(\+dirty)?|unknown", found["commit"])
    assert datetime.fromisoformat(found["date"]).tzinfo is not None
    description = machine()
    assert description["cores"] and description["memory_bytes"] and description["torch"] != "absent"
    assert socket.gethostname() not in description.values()
    assert not any(str(value).startswith("/") for value in description.values())


def test_a_rate_that_was_lucky_with_one_seed_gives_way() -> None:
    found = [
        ("autograd", 8e-3, 0, 1.1),
        ("autograd", 8e-3, 1, 0.7),
        ("autograd, chunks", 4e-3, 0, 1.0),
        ("exact", None, 0, 2.0),
    ]
    runs = [{"contender": who, "rate": rate, "seed": seed, "reduction": nats} for who, rate, seed, nats in found]
    assert best_runs(runs, "autograd") == runs[2:3]
    assert best_runs(runs, "mezo") == []


def test_runs_of_two_products_are_not_compared(tmp_path: Path) -> None:
    options = parser("bench.learn", "").parse_args(["--results", str(tmp_path)])
    options.resume = True
    assert stored_runs("learn", options, seconds=120) == {"seconds": 120, "runs": []}
    file = tmp_path / "raw/learn.json"
    file.parent.mkdir()
    file.write_text(f'{{"commit": "{options.commit}", "raw": {{"seconds": 120, "runs": [{{}}]}}}}')
    assert stored_runs("learn", options, seconds=120) == {"seconds": 120, "runs": [{}]}
    options.commit = "HEAD"  # another name, the same product
    file.write_text('{"commit": "HEAD~0", "raw": {"seconds": 120, "runs": [{}]}}')
    assert stored_runs("learn", options, seconds=120)["runs"]
    options.commit = "of tomorrow"
    with pytest.raises(SystemExit, match="commit"):
        stored_runs("learn", options, seconds=120)


def test_a_process_is_measured_and_ended_when_it_makes_no_headway() -> None:
    lines = "import time", "from bench.common.child import write_line"
    holds = "; ".join((*lines, "x = b'x' * (64 << 20)", "time.sleep(0.2)", "write_line({'n': 3})"))
    found = measured.run(python(holds))
    assert found.completed and found.report == {"n": 3} and not found.timed_out
    assert found.peak_rss_bytes > found.peak_anonymous_bytes > 64 * MIB
    failed = measured.run(python("raise SystemExit('it broke')"))
    assert (failed.completed, failed.exit_code, failed.error, failed.report) == (False, 1, "it broke", {})
    with pytest.raises(SystemExit, match="The run failed: it broke"):
        measured.report_of(python("raise SystemExit('it broke')"), "The run")
    hung = measured.run(python("while True: pass"), timeout_seconds=0.1)
    assert hung.timed_out and hung.exit_code == -9


@pytest.mark.skipif(not cgroups.can_limit(), reason="memory cgroups cannot be written here")
def test_a_hard_limit_is_the_kernels_and_goes_away() -> None:
    grows = python("x = bytearray(b'x') * (300 << 20); print('{}')")
    assert measured.run(grows, limit_bytes=64 * MIB).exit_code == -9
    assert measured.run(grows, limit_bytes=512 * MIB).completed
    with cgroups.limited(64 * MIB) as in_group:
        folder = Path(in_group[-1]).parent
        assert folder.is_dir()
    assert not folder.exists()


def test_the_smallest_limit_is_found_by_halving() -> None:
    tried = []

    def completes(limit: int) -> bool:
        tried.append(limit)
        return limit >= 463 * MIB

    found = measured.smallest_limit(completes, floor=200 * MIB, ceiling=1024 * MIB)
    assert found is not None and 463 * MIB <= found < (463 + 16) * MIB and len(tried) == 7
    assert measured.smallest_limit(lambda _: False, floor=0, ceiling=64 * MIB) is None


def test_contenders_take_turns_and_one_that_fails_is_left_out() -> None:
    times_itself = command("unittest.mock", "Mock", "--turns", return_value={"seconds": 1.5})
    is_timed = command("unittest.mock", "Mock", "--turns")
    contenders = {"itself": times_itself, "timed": is_timed, "fails": python("1 / 0")}
    seconds = in_turns({name: (line, None) for name, line in contenders.items()}, rounds=2)
    assert seconds.keys() == {"itself", "timed"} and seconds["itself"] == [1.5, 1.5]
    assert len(seconds["timed"]) == 2 and max(seconds["timed"]) < 1


@pytest.mark.parametrize(
    ("best_at", "tried"), [(4e-3, [2, 4, 8]), (16e-3, [2, 4, 8, 16, 32]), (1e-3, [2, 4, 8, 1, 0.5])]
)
def test_a_rate_is_searched_while_the_best_is_at_an_edge(best_at: float, tried: list[float]) -> None:
    seen = []

    def score(rate: float) -> float:
        seen.append(rate)
        return -abs(math.log(rate / best_at))

    assert search((2e-3, 4e-3, 8e-3), score) == best_at
    assert seen == [rate / 1000 for rate in tried]
    assert search((1.0, 2.0), lambda rate: rate, max_rates=4) == 8.0  # one that finds no end ends


def test_a_micro_batch_changes_nothing_and_the_textbook_step_only_the_update() -> None:
    model = peers.build("llama-tiny").float()
    batch = peers.random_batch(model, batch=5, tokens=8)
    whole, parts = peers.forward_step(model, batch, 5)(), peers.forward_step(model, batch, 2)()
    assert parts == pytest.approx(whole, rel=1e-5)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    peers.textbook_step(model, batch, 5)()
    moved = [(new.detach() - old).abs().max() for new, old in zip(model.parameters(), before, strict=True)]
    assert 0 < max(moved) < peers.EPSILON / 10


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


def test_clients_are_told_of_each_text_that_is_on_disk(tmp_path: Path) -> None:
    database = tmp_path / "bare.db"
    with running_bare(database) as port:
        report = load(port=port, label="test", clients=4, seconds=0.5)
        paced = load(port=port, label="paced", clients=2, seconds=1, pace_seconds=0.25)
        refused = load(port=port, label="refused", clients=1, seconds=0.3, ask_every=1)
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT id, text FROM note").fetchall()
    assert sorted([*report.ids(), *paced.ids()], key=int) == [str(identity) for identity, _ in sorted(rows)]
    assert len({text for _, text in rows}) == len(rows)
    assert 0 < report.posts_in_time <= len(report.posts) == report.statuses["201"] and report.errors == 0
    assert len(paced.posts) <= 10
    assert set(refused.statuses) == {"404"} and not refused.asks and refused.errors == 0
