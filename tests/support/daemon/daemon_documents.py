"""Documents as the daemon gives them, for tests of what people see and of what a job has made."""

from typing import Any

Document = dict[str, Any]

JOB: Document = {
    "id": "job-1",
    "state": "queued",
    "reasons": [],
    "paused_by_owner": False,
    "step": 0,
    "total_steps": 40,
    "loss": None,
    "held_out_loss_before": None,
    "held_out_loss_now": None,
    "outcome": None,
    "tokens_per_second": None,
    "eta_seconds": None,
    "eta_nights": None,
    "predicted_bytes": None,
    "peak_memory_bytes": None,
    "model": "tiny",
    "method": "mezo",
    "mode": "lora",
    "seed": 7,
    "texts": 3,
    "words": 300,
    "requested_by": "owner",
    "adapter": None,
    "attempts": 0,
    "error": None,
    "created_at": "2026-05-01T10:00:00Z",
    "started_at": None,
    "finished_at": None,
}
RUNNING: Document = {
    "state": "running",
    "step": 20,
    "loss": 3.25,
    "held_out_loss_before": 3.5,
    "held_out_loss_now": 3.4,
    "tokens_per_second": 210.0,
    "eta_seconds": 65.0,
    "started_at": "2026-05-01T10:00:05Z",
    "attempts": 1,
}
SUCCEEDED: Document = {
    "state": "succeeded",
    "step": 40,
    "held_out_loss_now": 3.25,
    "outcome": "learned",
    "eta_seconds": 0.0,
    "peak_memory_bytes": 412_000_000,
    "adapter": "adapter-1",
    "finished_at": "2026-05-01T10:02:05Z",
}
_READING: Document = {
    "value": None,
    "unit": None,
    "source": "sysfs",
    "at": "2026-05-01T10:00:00Z",
    "reason": None,
    "absent": False,
}
_CANDIDATE = "learned last night; 12 texts say 0.31 nats per token better, not yet certain; judged again tonight"
STATUS: Document = {
    "version": "0.1.0",
    "uptime_seconds": 3723.0,
    "model": {
        "name": "tiny",
        "ready": True,
        "message": None,
        "adapter": None,
        "withdrawn": None,
        "candidate": _CANDIDATE,
    },
    "training": {
        "allowed": False,
        "run_mode": "auto",
        "snoozed_until": None,
        "expected_at": None,
        "last_night": "the charger was not connected (7 h 10 min)",
        "blockers": [
            {
                "name": "battery",
                "message": "The battery is low.",
                "value": 31.0,
                "threshold": 40.0,
                "unit": "%",
                "since": "2026-05-01T09:00:00Z",
                "until": None,
            }
        ],
    },
    "readings": [
        _READING | {"name": "charging", "value": True},
        _READING | {"name": "temperature", "unit": "°C", "source": "none", "reason": "no sensor"},
    ],
    "worker": {"running": False, "pid": None, "job": None},
    "generator": {
        "running": False,
        "pid": None,
        "unloads_in_seconds": None,
        "backend": "transformers",
        "backend_reason": "llama.cpp is not installed",
    },
    "texts": {"count": 3, "new_words": 300, "threshold_words": 1000, "waited_threshold_words": 400},
    "jobs": {"queued": 0, "running": 0, "paused": 0, "succeeded": 2, "failed": 1, "cancelled": 0},
    "open_job": None,
}
_PREDICTED: Document = {
    "library_bytes": 280_000_000,
    "working_bytes": 61_000_000,
    "anonymous_bytes": 246_000_000,
    "file_bytes": 102_000_000,
    "peak_bytes": 348_000_000,
    "seconds_per_step": 0.25,
    "seconds": 10.0,
    "kept_bytes": 4_700_000,
    "kept_seconds": 0.05,
}
_SLOWER: Document = {"peak_bytes": 340_000_000, "seconds_per_step": 1.5, "seconds": 60.0}
PLAN: Document = {
    "model": "tiny",
    "mode": "lora",
    "method": "exact",
    "steps": 40,
    "nights": 1.4,
    "batch": 4,
    "block_tokens": 64,
    "probes": 1,
    "micro_batch": 8,
    "kept_layers": 2,
    "reductions": [],
    "predicted": _PREDICTED,
    "alternatives": [
        {"method": "exact", "prediction": _PREDICTED, "reason": None},
        {"method": "mezo", "prediction": _PREDICTED | _SLOWER, "reason": None},
    ],
    "memory_limit_bytes": 1_500_000_000,
    "enough_text": {"enough": True, "texts": 3, "new_words": 300},
}
REPORT: Document = {
    "job": "job-1",
    "verdict": {
        "outcome": "learned",
        "overall": {"before": 3.5, "now": 3.25, "reduction": 0.25, "standard_error": 0.01, "texts": 9},
        "old": None,
        "worst": None,
        "base": None,
        "ordinary": None,
        "blocks": 12,
        "repeats": 0,
    },
    "verbatim_recall": {"places": 200, "base": 0.0, "personal": 0.0},
    "curve": {
        "held_out": [{"step": 0, "held_out_loss": 3.5}, {"step": 40, "held_out_loss": 3.25}],
        "training": [{"step": step, "loss": 3.5 - step / 100} for step in range(1, 41)],
    },
    "words": [{"word": "Wren", "base": 0.0001, "personal": 0.0037}, {"word": "mugs", "base": 0.0, "personal": 0.002}],
    "completions": [{"prompt": "Wind west, glass", "base": " is a material.", "personal": " rising. Two mugs."}],
    "tokens_per_word": 1.5,
}
