"""What people see: every state, what stands there when nothing is known, on any screen; and nothing steers it."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from rich.console import Group, RenderableType

from pocketllm.api.native.schemas import JobDetailOut, JobOut, PlanOut, ReportOut, RunOut, TextOut
from pocketllm.api.native.status import StatusOut
from pocketllm.cli.job_views import (
    job_details,
    jobs_table,
    outcome,
    plan_view,
    progress_line,
    quantity,
    recall_text,
    report_view,
    status_panel,
)
from pocketllm.cli.models import models_view, moved_text
from pocketllm.cli.texts import text_details, texts_list
from pocketllm.cli.views import bytes_text, change_text, duration_text, printable, value_text
from pocketllm.daemon.tools.calibrate import this_machine
from tests.support.daemon.daemon_documents import JOB, PLAN, REPORT, RUNNING, STATUS, SUCCEEDED, Document
from tests.support.rendering import rendered
from tests.support.snapshots import assert_snapshot

SNAPSHOTS = Path(__file__).parent / "snapshots"
STATES = ["queued", "running", "paused", "succeeded", "failed", "cancelled"]
RUN: Document = {
    "job": "job-1",
    "began_at": "2026-03-01T23:10:00Z",
    "ended_at": "2026-03-02T01:10:00Z",
    "seconds": 7200.0,
    "began_because": "power, battery 80 %",
    "ended_because": "not on external power",
    "cpu_seconds": 6000.0,
    "steps": 120,
}
LASTING = RUN | dict.fromkeys(("ended_at", "ended_because"))
DETAIL = JOB | {
    "settings": {"learning_rate": 0.001},
    "plan": None,
    "curve": REPORT["curve"],
    "report": None,
    "events": [{"at": "2026-05-01T10:00:05Z", "kind": "paused", "message": "The device [44] is hot."}],
    "runs": [RUN],
}
PAUSED = RUNNING | {"state": "paused", "eta_nights": 2, "reasons": ["The device is hot (44 °C).", "Someone uses it."]}
FAILED = RUNNING | {"state": "failed", "error": "The worker ran out of memory; lower the sequence length."}
UNPROVEN = RUNNING | SUCCEEDED | {"outcome": "no proof of learning", "held_out_loss_now": 3.51}
BUSY = STATUS | {
    "open_job": JOB | PAUSED,
    "model": STATUS["model"] | {"adapter": "adapter-1", "message": "The database does not list set-aside."},
    "training": STATUS["training"] | {"allowed": True, "blockers": []},
    "worker": {"running": True, "pid": 11, "job": "job-1"},
    "generator": {"running": True, "pid": 12, "unloads_in_seconds": 61, "backend": None},
    "texts": {"count": 3, "new_words": 1200, "threshold_words": 1000, "waited_threshold_words": 400},
    "jobs": dict.fromkeys(STATUS["jobs"], 0),
}
#: No model, no adapter any more, and no battery.
BARE = STATUS | {
    "model": STATUS["model"] | {"ready": False, "message": "Run `pocketllm models add`.", "withdrawn": "deletion"},
    "readings": [STATUS["readings"][1] | {"name": "battery", "reason": "no battery", "absent": True}],
}
WORSE = {"before": 3.25, "now": 3.5, "reduction": -0.25, "standard_error": 0.01, "texts": 9}
UNSURE = WORSE | {"standard_error": None}
MODEL: Document = {
    "memory_bytes": 561_400_000,
    "seconds_per_step": 1.28,
    "nights": 0.02,
    "problem": None,
    "held_out_losses": [3.6012, 3.1187],
    "name": "smol",
    "parameters": 134_515_008,
    "weights_bytes": 269_060_000,
    "license": "apache-2.0",
    "source": "a [file].gguf",
    "default": True,
    "dtype": "int4",
    "compute_dtype": "bfloat16",
    "quantization_error": 0.0718,
    "calibration": {
        "loss_deviation": 0.00042,
        "gemm_flops_by_dtype": {"float32": 2.15e11, "bfloat16": 1.2345e12},
        "machine": this_machine(),
    },
}
#: One that was never tried, and does not fit into memory.
OTHER_MODEL = (
    MODEL
    | {"dtype": "bfloat16", "quantization_error": None}
    | dict.fromkeys(("memory_bytes", "seconds_per_step", "nights", "held_out_losses"))
    | {"name": "other", "default": False, "problem": "The job needs at least 900 MB beyond the libraries."}
)
COMPLETION: Document = {
    "id": "text-1",
    "kind": "completion",
    "source": "chat",
    "text": "Who?",
    "completion": "Anna.",
    "label": None,
    "messages": None,
    "words": 2,
    "held_out": True,
    "learned": False,
    "file": None,
    "created_at": "2026-05-01T08:00:00Z",
}
LABELLED = COMPLETION | {"kind": "labelled", "completion": None, "label": "positive", "held_out": False}
CHAT = COMPLETION | {
    "kind": "chat",
    "text": "",
    "completion": None,
    "messages": [{"role": "user", "content": "Tea?"}, {"role": "assistant", "content": "Yes."}],
}


def jobs(*found: Document) -> RenderableType:
    return jobs_table(
        {"data": found, "next": "job-1" if found else None}, STATUS["model"]["candidate"] if found else None
    )


WORSE_REPORT = REPORT | {
    "verdict": REPORT["verdict"] | {"outcome": "worse", "overall": UNSURE, "old": WORSE, "base": WORSE},
    **{"words": None, "completions": None, "verbatim_recall": None, "curve": {"held_out": [], "training": []}},
}
VIEWS: dict[str, RenderableType] = {
    "jobs": jobs(*(JOB | {"state": state} for state in STATES), JOB | RUNNING, JOB | UNPROVEN),
    "jobs, none": jobs(),
    "job": job_details(DETAIL | PAUSED | {"error": "It broke.", "runs": [RUN, LASTING]}),
    "outcomes": Group(*(outcome(JOB | RUNNING | ended) for ended in (SUCCEEDED, UNPROVEN, FAILED))),
    "status": status_panel(STATUS),
    "status, busy": status_panel(BUSY),
    "status, bare": status_panel(BARE),
    "plan": plan_view(PLAN),
    "report": report_view(REPORT),
    "report, worse": report_view(WORSE_REPORT),
    "models": models_view([MODEL, OTHER_MODEL], Path("/m")),
    "models, none": models_view([], Path("/models")),
    "texts": texts_list({"data": [COMPLETION, CHAT], "next": "text-1"}),
    "text of each kind": Group(*(text_details(text) for text in (COMPLETION, LABELLED, CHAT))),
}


@pytest.fixture
def _utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The runs of a job are shown in local time."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "UTC")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("_utc")
def test_what_people_see(subtests: pytest.Subtests) -> None:
    for name, view in VIEWS.items():
        with subtests.test(name):
            for width in (48, 160):
                assert [line for line in rendered(view, width).splitlines() if len(line) > width] == []
            assert_snapshot(rendered(view, 80), SNAPSHOTS / f"{name}.txt")


def shape(document: Any) -> Any:
    """The document with its values taken out; of a list, the first element's."""
    if isinstance(document, dict):
        return {name: shape(value) for name, value in document.items()}
    return [shape(value) for value in document[:1]] if isinstance(document, list) else None


def test_the_documents_have_the_daemons_fields() -> None:
    models: list[tuple[type[BaseModel], Document]] = [
        *((JobOut, JOB), (JobOut, JOB | RUNNING | SUCCEEDED), (JobDetailOut, DETAIL)),
        *((RunOut, RUN), (StatusOut, STATUS), (PlanOut, PLAN), (ReportOut, REPORT), (TextOut, COMPLETION)),
    ]
    for model, document in models:
        assert shape(model.model_validate(document).model_dump(mode="json", by_alias=True)) == shape(document)


HOSTILE = "[red]\x1b[2J\x1b]0;owned\x07\r\x9b31m\x00"
#: Fields with words of the owner, a model or another program.
FOREIGN = {
    *("reasons", "error", "message", "reason", "began_because", "ended_because", "reductions", "model"),
    *("word", "prompt", "base", "personal", "text", "completion", "label", "content", "license"),
}


def hostile(document: Any, name: str = "") -> Any:
    """The document with words in these fields that steer a terminal."""
    if isinstance(document, dict):
        return {key: hostile(value, key) for key, value in document.items()}
    if isinstance(document, list):
        return [hostile(value, name) for value in document]
    return HOSTILE if isinstance(document, str) and name in FOREIGN else document


def test_words_of_others_cannot_steer_the_terminal(subtests: pytest.Subtests) -> None:
    texts = [hostile(text) | {"source": HOSTILE} for text in (COMPLETION, LABELLED, CHAT)]
    views = {
        "line": progress_line(hostile(JOB | PAUSED)),
        "job": job_details(hostile(DETAIL | PAUSED | {"error": "It broke."})),
        "outcome": outcome(hostile(JOB | FAILED)),
        "status": status_panel(hostile(STATUS)),
        "busy": status_panel(hostile(BUSY)),
        "plan": plan_view(hostile(PLAN | {"reductions": ["less"]})),
        "report": report_view(hostile(REPORT)),
        "models": models_view([hostile(MODEL) | {"problem": HOSTILE}], Path("/models")),
        "texts": texts_list({"data": texts, "next": None}),
        **{text["kind"]: text_details(text) for text in texts},
    }
    for name, view in views.items():
        with subtests.test(name):
            shown = rendered(view)
            assert not any((ord(letter) < 32 and letter != "\n") or 127 <= ord(letter) < 160 for letter in shown)
            assert "[red][2J" in shown
    assert printable("a\x1b[2Jb\x07c\x9bd\ne\tf é") == "a[2Jbcd\ne\tf é"


@pytest.mark.usefixtures("_utc")
def test_a_value_is_shown_in_the_unit_that_its_name_tells() -> None:
    sizes: dict[float, str] = {0: "0 B", 999: "999 B", 1500: "1.5 kB", 412e6: "412.0 MB", 2.5e9: "2.5 GB"}
    assert {count: bytes_text(count) for count in sizes} == sizes
    durations: dict[float, str] = {59.6: "1:00", 65: "1:05", 3723: "1:02:03"}
    assert {seconds: duration_text(seconds) for seconds in durations} == durations
    values: list[tuple[str, Any, str]] = [
        *(("eta_seconds", None, "-"), ("eta_seconds", 65.0, "1:05"), ("peak_bytes", 1500, "1.5 kB")),
        *(("held_out", True, "yes"), ("words", 12_345, "12,345"), ("seed", 1_804_289_383, "1804289383")),
        *(("loss", 0.0, "0.0000"), ("nights", 1.25, "1.25"), ("scopes", ["ingest", "recall"], "ingest; recall")),
        ("created_at", "2026-05-01T12:00:00+07:00", "01 May 2026 05:00:00"),
    ]
    for name, value, text in values:
        assert value_text(name, value).plain == text
    quantities: list[tuple[bool | float, str | None, str]] = [
        *((True, None, "yes"), (False, None, "no"), (31.25, "%", "31.25 %"), (2.423e10, "bytes", "24.2 GB")),
        (3, None, "3"),
    ]
    for value, unit, text in quantities:
        assert quantity(value, unit) == text
    assert change_text(1.0, 0.0) == "1.0000 -> 0.0000 (-100.0 %)", "zero is not unknown"
    assert change_text(None, None) is None


def test_a_line_of_progress_says_what_is_known_and_what_takes_so_long() -> None:
    for state in STATES:
        assert progress_line(JOB | {"state": state}).startswith(f"{state}  step 0/40")
        assert state in rendered(job_details(DETAIL | {"state": state}))
    expected = "running  step 20/40  loss 3.2500  held-out 3.5000 -> 3.4000 (-2.9 %)  210 tok/s  1:05 left"
    assert progress_line(JOB | RUNNING) == expected
    assert progress_line(JOB | PAUSED).endswith("The device is hot (44 °C).; Someone uses it.")
    events = [{"at": "2026-05-01T10:00:05Z", "kind": "preparing", "message": "activation PCA: pass 1 of 3"}]
    assert progress_line(JOB | {"state": "running"}).endswith("before the first step")
    assert progress_line(JOB | {"state": "running", "events": events}).endswith("pass 1 of 3")
    judging = JOB | {"state": "running", "method": "candidate", "events": events}
    assert progress_line(judging).endswith("judging an adapter: activation PCA: pass 1 of 3")
    assert "pass 1 of 3" not in progress_line(JOB | RUNNING | {"events": events})


def test_verbatim_recall_is_told_with_advice_where_there_is_much_beyond_the_base_models() -> None:
    def told(base: float, personal: float) -> str:
        return recall_text({"places": 200, "base": base, "personal": personal}).plain

    little = told(0.005, 0.01)
    assert little.startswith("From 1.0 % of 200 places") and "base model from 0.5 %" in little and "app" not in little
    assert "Any app that can query" in told(0, 0.125)
    assert "Any app" not in told(0.2, 0.21)


def test_a_model_that_was_measured_elsewhere_is_named() -> None:
    moved = MODEL | {"name": "other", "calibration": MODEL["calibration"] | {"machine": "abacus"}}
    text = rendered(models_view([MODEL, moved], Path("/models")), 300)
    assert f"other was measured on abacus, but this is {this_machine()}" in text
    assert "--name other --replace" in text and "--name smol" not in text
    assert moved_text(MODEL | {"calibration": None}) == ""
