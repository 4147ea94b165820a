"""Jobs as a table of plain text, for people with curl: `curl -H 'Accept: text/plain' localhost:2407/jobs`."""

from collections.abc import Sequence

from fastapi import Request

from pocketllm.api.schemas import JobOut

_HEADINGS = ("JOB", "STATE", "STEP", "HELD-OUT LOSS", "LEFT", "WAITS FOR")
_EMPTY = "No jobs yet. POST /texts gives the model something to learn, POST /jobs asks it to.\n"


def wants_plain_text(request: Request) -> bool:
    """Whether the client names plain text before JSON, or alone."""
    kinds = [part.partition(";")[0].strip().lower() for part in request.headers.get("accept", "").split(",")]
    return next((kind for kind in kinds if kind in ("text/plain", "application/json", "*/*")), "") == "text/plain"


def jobs_text(jobs: Sequence[JobOut]) -> str:
    """One line a job, newest first, in columns."""
    if not jobs:
        return _EMPTY
    rows = [_HEADINGS, *(_row(job) for job in jobs)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEADINGS))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def _row(job: JobOut) -> tuple[str, ...]:
    state = f"{job.state} ({job.outcome})" if job.outcome else str(job.state)
    before, now = job.held_out_loss_before, job.held_out_loss_now
    loss = "-" if before is None or now is None else f"{before:.4f} -> {now:.4f}"
    left = "-" if job.eta_seconds is None else _duration(job.eta_seconds)
    why = job.error or "; ".join(job.reasons) or "-"
    # What a reason says may hold anything: one line must stay one line.
    return job.id, state, f"{job.step}/{job.total_steps}", loss, left, " ".join(why.split())


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
