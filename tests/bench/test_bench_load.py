"""The load bench counts right, and its bare endpoint keeps what it acknowledges. With --quick: test_bench.py."""

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from bench.load.__main__ import LIMITS, Load, Turn
from bench.load.bare import running_bare
from bench.load.clients import Plan, Report, load, quantile, spread
from bench.load.decode import Decoding

REPORT = Report(
    seconds=2,
    cpu_seconds=0.1,
    posts_in_time=100,
    posts=[0.01],
    asks=[0.002] * 99 + [0.008],
    statuses={"201": 1, "200": 100},
    broken=0,
    acknowledged=['{"ids": ["a", "b"]}'],
)


def test_clients_are_told_of_each_text_that_is_on_disk(tmp_path: Path) -> None:
    database = tmp_path / "bare.db"
    with running_bare(database) as port:
        report = load(Plan(port=port, label="test", clients=4, seconds=0.5))
    with closing(sqlite3.connect(database)) as connection:
        rows = connection.execute("SELECT id, text FROM note").fetchall()
    assert sorted(report.ids(), key=int) == [str(identity) for identity, _ in sorted(rows)]
    assert len({text for _, text in rows}) == len(rows) == report.statuses["201"] == len(report.posts)
    assert 0 < report.posts_in_time <= len(rows) and report.errors == 0


def test_clients_at_a_pace_leave_the_server_alone_in_between(tmp_path: Path) -> None:
    with running_bare(tmp_path / "bare.db") as port:
        report = load(Plan(port=port, label="test", clients=2, seconds=1, pace_seconds=0.25))
    assert len(report.posts) <= 10


def test_requests_that_nobody_answers_are_counted(tmp_path: Path) -> None:
    with running_bare(tmp_path / "bare.db") as port:
        report = load(Plan(port=port, label="test", clients=1, seconds=0.3, ask_every=1))
    assert set(report.statuses) == {"404"} and not report.asks and report.errors == 0
    assert replace(report, broken=2, statuses={"500": 1, "503": 2, "201": 3}).errors == 5


def test_quantiles_are_values_that_were_measured() -> None:
    assert [quantile([3, 1, 2], share) for share in (0.1, 0.5, 0.99, 1)] == [1, 2, 3, 3]
    assert spread([0.001, 0.003]) == {"n": 2, "p50": 1, "p90": 3, "p99": 3, "p100": 3}
    assert spread([]) == {"n": 0}


def found(**others: Report | list[Turn] | set[str]) -> Load:
    turn = Turn(report=REPORT, worker_cpu_seconds=1)
    bare = Turn(report=replace(REPORT, posts_in_time=50), worker_cpu_seconds=1)
    parts = {"idle": replace(REPORT, acknowledged=[]), "daemon": [turn], "bare": [bare], "paced": turn}
    return Load(**{**parts, "killed": REPORT, "kept": {"a", "b"}, **others})  # type: ignore[arg-type]


def test_every_value_comes_from_the_turns() -> None:
    values = found().values()
    assert (values["ingest_over_bare"], values["errors_5xx"], values["lost"]) == (2, 0, 0)
    assert values["jobs_p99_over_idle_p50"] == pytest.approx(1)
    slow = Turn(report=replace(REPORT, asks=[0.006] * 100), worker_cpu_seconds=1)
    assert found(daemon=[slow]).values()["jobs_p99_over_idle_p50"] == pytest.approx(3)


def test_a_text_that_is_gone_and_an_answer_that_failed_show() -> None:
    assert found(kept={"a"}).values()["lost"] == 1
    broken = Turn(report=replace(REPORT, broken=1, statuses={"503": 1}), worker_cpu_seconds=1)
    assert found(daemon=[broken]).values()["errors_5xx"] == 2
    # What the killed daemon left unanswered is its death.
    assert found(killed=replace(REPORT, broken=32)).values()["errors_5xx"] == 0


def test_speed_is_told_by_the_rounds_own_ratios() -> None:
    rates = {"bfloat16": [10.0, 20, 30], "float32": [5.0, 5, 5], "transformers": [20.0, 30, 30]}
    decoding = Decoding(rates=rates, peer="bfloat16", warm={"transformers": [1]}, cold={"transformers": [2]})
    assert decoding.over_peer("transformers") == 1.5
    assert decoding.over_peer("transformers", "float32") == 6
    assert decoding.over_peer("transformers", "llama-server") is None
    assert decoding.over_peer("llamacpp") is None and LIMITS["llamacpp_over_transformers"].where_measurable
    assert decoding.used == "transformers"
