"""Views of the daemon's JSON documents: functions that return rich renderables or plain lines.

Nothing here talks to the daemon, reads a clock or prints; the time is passed in.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from pocketllm.errors import Document

STATE_STYLES = {
    "queued": "yellow",
    "running": "cyan",
    "paused": "yellow",
    "succeeded": "green",
    "failed": "red",
    "cancelled": "dim",
}
FINISHED_STATES = {"succeeded", "failed", "cancelled"}
NARROW_COLUMNS = 100  # narrower tables leave columns out, to fit a phone's screen
UNKNOWN = "-"


def printable(text: str) -> str:
    """Return text without control characters, by which a model's words could control the terminal."""
    return "".join(c for c in text if c in "\n\t" or not (ord(c) < 32 or 127 <= ord(c) < 160))


def bytes_text(count: float | None) -> str:
    """Return a size for people, in units of 1000."""
    return UNKNOWN if count is None else scaled(count, {" GB": 1e9, " MB": 1e6, " kB": 1e3}, " B")


def count_text(count: float | None) -> str:
    """Return a large number for people, such as 134.5M."""
    return UNKNOWN if count is None else scaled(count, {"B": 1e9, "M": 1e6, "K": 1e3}, "")


def scaled(count: float, units: Mapping[str, float], smallest: str) -> str:
    """Return a number in the largest unit that it reaches, with one digit after the point."""
    for unit, size in units.items():
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}{smallest}"


def duration_text(seconds: float | None) -> str:
    """Return a duration for people, such as 1:05 or 2:03:00."""
    if seconds is None:
        return UNKNOWN
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def age_text(at: str | None, now: datetime) -> str:
    """Return how long ago an RFC 3339 time was, in its largest unit."""
    if at is None:
        return UNKNOWN
    seconds = max(0.0, (now - datetime.fromisoformat(at)).total_seconds())
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds // length:.0f} {unit} ago"
    return f"{seconds:.0f} s ago"


def loss_text(loss: float | None) -> str:
    """Return a loss in nats per token with as many digits as a small gain needs."""
    return UNKNOWN if loss is None else f"{loss:.4f}"


def change_text(job: Document) -> str:
    """Return the held-out loss before and now."""
    before, now = job.get("held_out_loss_before"), job.get("held_out_loss_now")
    if before is None and now is None:
        return UNKNOWN
    return f"{loss_text(before)} -> {loss_text(now)}"


def speed_text(job: Document) -> str:
    """Return the training speed."""
    speed = job.get("tokens_per_second")
    return UNKNOWN if speed is None else f"{speed:.0f} tok/s"


def steps_text(job: Document) -> str:
    """Return a job's step and its total; "0" for a job that was rolled back to its start."""
    total = job.get("total_steps")
    return "0" if total == 0 else f"{job.get('step') or 0}/{'?' if total is None else total}"


def left_text(job: Document) -> str:
    """Return the time until an unfinished job ends, if it is known."""
    return UNKNOWN if job["state"] in FINISHED_STATES else duration_text(job.get("eta_seconds"))


def waits_for(job: Document) -> list[str]:
    """Return what a job is waiting for; empty while it makes steps."""
    if job["state"] == "running" and not job.get("step"):
        events = job.get("events") or []
        return [f"before the first step: {printable(events[-1]['message'])}" if events else "before the first step"]
    return [printable(reason) for reason in job.get("reasons") or []]


def progress_line(job: Document) -> str:
    """Return a job's progress as one plain line, for logs and pipes."""
    parts = [job["state"], f"step {steps_text(job)}"]
    if job.get("loss") is not None:
        parts.append(f"loss {loss_text(job['loss'])}")
    if change_text(job) != UNKNOWN:
        parts.append(f"held-out {change_text(job)}")
    if job.get("tokens_per_second") is not None:
        parts.append(speed_text(job))
    if left_text(job) != UNKNOWN:
        parts.append(f"{left_text(job)} left")
    if said := waits_for(job) or preparing(job):
        parts.append("; ".join(said))
    return "  ".join(parts)


def preparing(job: Document) -> list[str]:
    """Return what a job does before its first step, which can take minutes."""
    if job["state"] != "running" or job.get("step"):
        return []
    return [event["message"] for event in job.get("events") or [] if event["kind"] == "preparing"][-1:] or ["preparing"]


def live_job(job: Document, spinner: Spinner) -> RenderableType:
    """Return a live view of a job: a bar, its numbers, and what it waits for.

    spinner: the same one at every poll, since a new one would never turn.
    """
    spinner.update(text=Text(job["state"], style=STATE_STYLES.get(job["state"], "")))
    total = job.get("total_steps") or 0
    left = "" if left_text(job) == UNKNOWN else f"{left_text(job)} left"
    bar = ProgressBar(total=total or 1, completed=job.get("step") or 0, width=28)
    top = Table.grid(padding=(0, 1))
    top.add_row(spinner, bar, steps_text(job), Text(left, style="dim"))
    numbers = Text("  ")
    numbers.append(f"held-out loss {change_text(job)}", style="bold")
    numbers.append(f"   loss {loss_text(job.get('loss'))}   {speed_text(job)}", style="dim")
    reasons = [Text(f"  waiting: {reason}", style="yellow") for reason in waits_for(job)]
    about = [Text(f"  {said}", style="dim") for said in preparing(job)] or [numbers]
    return Group(top, *about, *reasons)


def outcome(job: Document, folder: str | None) -> RenderableType:
    """Return what a finished job achieved, and where its adapter is."""
    seconds = job_seconds(job)
    took = f" in {duration_text(seconds)}" if seconds is not None else ""
    if job["state"] != "succeeded":
        why = printable(job.get("error") or "no reason was recorded")
        style = STATE_STYLES.get(job["state"], "")
        return Text(f"Job {job['id']} {job['state']} at step {steps_text(job)}{took}: {why}", style=style)
    grid = Table.grid(padding=(0, 2))
    learned = job.get("outcome") == "learned"
    word = Text("learned", style="bold green") if learned else Text(str(job.get("outcome")), style="bold yellow")
    grid.add_row("Job", Text.assemble(str(job["id"]), " ", word))
    grid.add_row("Held-out loss", f"{change_text(job)} nats per token{percent_text(job)}")
    grid.add_row("Work", f"{job.get('step')} steps{took}, {speed_text(job)}")
    grid.add_row("Peak memory", bytes_text(job.get("peak_memory_bytes")))
    grid.add_row("Adapter", Text(str(job.get("adapter") or "none")))
    if folder is not None:
        grid.add_row("Folder", Text(folder, overflow="fold"))
    if not learned:
        note = "The held-out loss did not fall by more than noise, so the adapter is kept but not served."
        return Group(grid, Text(note, style="yellow"))
    return grid


def percent_text(job: Document) -> str:
    """Return the relative change of the held-out loss, signed; empty while it is unknown."""
    before, now = job.get("held_out_loss_before"), job.get("held_out_loss_now")
    if not before or now is None:
        return ""
    return f" ({100 * (now - before) / before:+.1f} %)"


def job_seconds(job: Document) -> float | None:
    """Return the seconds from a job's start to its end, pauses included; None when it has not ended."""
    if not job.get("started_at") or not job.get("finished_at"):
        return None
    started, finished = (datetime.fromisoformat(job[key]) for key in ("started_at", "finished_at"))
    return (finished - started).total_seconds()


def jobs_table(jobs: Sequence[Document], *, has_more: bool, width: int, now: datetime) -> RenderableType:
    """Return the jobs, newest first as given, in a table that fits `width` columns of text."""
    if not jobs:
        return Text(
            "No jobs yet. Add texts with `pocketllm add`, then run `pocketllm train`. "
            "The daemon also starts a job by itself once there are enough new words."
        )
    wide = width >= NARROW_COLUMNS
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ["Job", "State", "Step", *(["Loss"] if wide else []), "Held-out loss"]:
        table.add_column(heading, no_wrap=wide)
    for heading in ["Speed", "Left", "Peak memory"] if wide else []:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("Age", justify="right", no_wrap=True)
    for job in jobs:
        state = Text(job["state"], style=STATE_STYLES.get(job["state"], ""))
        if job.get("outcome") not in (None, "learned"):
            state.append(f", {job['outcome']}", style="yellow")
        row: list[RenderableType] = [str(job["id"]), state, steps_text(job)]
        row += [loss_text(job.get("loss"))] if wide else []
        row.append(change_text(job))
        if wide:
            row += [speed_text(job), left_text(job)]
            row.append(bytes_text(job.get("peak_memory_bytes")))
        table.add_row(*row, age_text(job.get("created_at"), now))
    more = [Text("Raise --limit to see older jobs.", style="dim")] if has_more else []
    return Group(table, *more)


def job_details(job: Document, now: datetime) -> RenderableType:
    """Return one job with all its details."""
    grid = Table.grid(padding=(0, 2))
    state = Text(job["state"], style=STATE_STYLES.get(job["state"], ""))
    if job.get("outcome"):
        state.append(f", {job['outcome']}")
    grid.add_row("State", state)
    for reason in job.get("reasons") or []:
        grid.add_row("Waiting", Text(printable(reason), style="yellow"))
    if job.get("error"):
        grid.add_row("Error", Text(printable(job["error"]), style="red"))
    grid.add_row("Steps", steps_text(job))
    grid.add_row("Loss", loss_text(job.get("loss")))
    grid.add_row("Held-out loss", f"{change_text(job)}{percent_text(job)}")
    grid.add_row("Speed", speed_text(job))
    grid.add_row("Left", left_text(job))
    grid.add_row("Peak memory", bytes_text(job.get("peak_memory_bytes")))
    grid.add_row("Model", Text(f"{job.get('model')}, {job.get('method')}, seed {job.get('seed')}"))
    grid.add_row("Learns from", learns_from_text(job))
    grid.add_row("Started by", "the owner" if job.get("requested_by") == "owner" else "the daemon")
    if job.get("attempts"):
        grid.add_row("Crashes in a row", str(job["attempts"]))
    grid.add_row("Adapter", Text(str(job.get("adapter") or UNKNOWN)))
    for name in ("created_at", "started_at", "finished_at"):
        if job.get(name):
            at = Text(f"{job[name]} ({age_text(job[name], now)})")
            grid.add_row(name.removesuffix("_at").capitalize(), at)
    parts: list[RenderableType] = [Panel(grid, title=f"Job {job['id']}", title_align="left", expand=False)]
    if job.get("settings"):
        parts += [Text("Settings", style="bold"), settings_grid(job["settings"])]
    if job.get("events"):
        parts += [Text("Events", style="bold"), events_grid(job["events"])]
    return Group(*parts)


def learns_from_text(job: Document) -> str:
    """Return how much text a job learns from; unknown until it starts."""
    if job.get("texts") is None:
        return UNKNOWN
    return f"{job['texts']} texts, {job['words']} words"


def settings_grid(settings: Document) -> Table:
    """Return a job's settings, a row each."""
    grid = Table.grid(padding=(0, 2))
    for name, value in settings.items():
        grid.add_row(f"  {name}", Text(str(value)))
    return grid


def events_grid(events: Sequence[Document]) -> Table:
    """Return what happened to a job, oldest first as given."""
    grid = Table.grid(padding=(0, 2))
    for event in events:
        grid.add_row(Text(f"  {event['at']}", style="dim"), event["kind"], Text(printable(event["message"])))
    return grid


def answers_table(answers: Sequence[Document], *, title: str = "Same prompts, same seed") -> Table:
    """Return the base model's and the personal model's answers to the same prompts, side by side."""
    table = Table(title=title, show_lines=True, title_justify="left")
    for heading in ("Prompt", "Before", "After"):
        table.add_column(heading, ratio=2 if heading == "Prompt" else 3, overflow="fold")
    for answer in answers:
        table.add_row(*(Text(printable(answer[key]).strip()) for key in ("prompt", "base", "personal")))
    return table


def status_panel(status: Document, now: datetime) -> RenderableType:
    """Return what the daemon is doing, whether it can train now, and if not, why."""
    grid = Table.grid(padding=(0, 2))
    model = status["model"]
    grid.add_row("Model", model_text(model))
    grid.add_row("Personal adapter", model.get("adapter") or "none yet; the base model answers")
    grid.add_row("Texts", texts_text(status["texts"]))
    grid.add_row("Jobs", job_counts_text(status["jobs"]))
    worker, generator = status["worker"], status["generator"]
    grid.add_row("Worker", f"job {worker['job']}, pid {worker['pid']}" if worker["running"] else "not running")
    grid.add_row("Generator", generator_text(generator))
    blockers = status["training"]["blockers"]
    allowed = status["training"]["allowed"]
    verdict = Text("yes", style="green") if allowed else Text("no, blocked by:", style="yellow")
    grid.add_row("Can train now", verdict)
    for blocker in blockers:
        grid.add_row(f"  {blocker['name']}", Text(blocker_text(blocker, now), style="yellow"))
    if not allowed:
        grid.add_row("  Expected", expected_text(status["training"], now))
    grid.add_row("Readings", "")
    for reading in status["readings"]:
        grid.add_row(f"  {reading['name']}", reading_text(reading))
    up = duration_text(status["uptime_seconds"])
    return Panel(grid, title=f"PocketLLM {status['version']}, up {up}", title_align="left", expand=False)


def expected_text(training: Document, now: datetime) -> str:
    """Return when a job can probably run, judging by yesterday."""
    at = training.get("expected_at")
    if at is None:
        return "not known yet"
    left = datetime.fromisoformat(at) - now
    return f"probably in {duration_text(max(0.0, left.total_seconds()))}, judging by yesterday"


def model_text(model: Document) -> Text:
    """Return the model's name and whether it can be used."""
    text = Text(model.get("name") or "none")
    if not model.get("ready"):
        return text.append(f": {printable(model.get('message') or 'not ready')}", style="red")
    text.append(", ready", style="green")
    return text.append(f". {printable(model['message'])}", style="yellow") if model.get("message") else text


def generator_text(generator: Document) -> str:
    """Return whether the generator is loaded, and when it is unloaded."""
    if not generator["running"]:
        return "not loaded; the first request loads it"
    left, backend = generator.get("unloads_in_seconds"), generator.get("backend")
    by = f" by {'llama.cpp' if backend == 'llamacpp' else backend}" if backend else ""
    return f"loaded{by}, pid {generator['pid']}" + ("" if left is None else f", unloads in {duration_text(left)}")


def texts_text(texts: Document) -> str:
    """Return how much text is stored, and how many words start a job."""
    new = plural(texts["new_words"], "new word")
    return f"{texts['count']:,} stored, {new}; a job starts at {texts['threshold_words']:,}"


def plural(count: int, one: str) -> str:
    """Return a number of things; one: what a single one is called, as in "new word"."""
    return f"{count:,} {one}{'' if count == 1 else 's'}"


def job_counts_text(counts: Document) -> str:
    """Return the number of jobs in each state, without the empty states."""
    return ", ".join(f"{count} {state}" for state, count in counts.items() if count) or "none yet"


def blocker_text(blocker: Document, now: datetime) -> str:
    """Return one reason not to train, with its value against its threshold and for how long it has held."""
    text, unit = printable(blocker["message"]), blocker.get("unit")
    if blocker.get("value") is not None and blocker.get("threshold") is not None:
        text += f" ({quantity(blocker['value'], unit)}, limit {quantity(blocker['threshold'], unit)})"
    return f"{text}, began {age_text(blocker['since'], now)}" if blocker.get("since") else text


def reading_text(reading: Document) -> Text:
    """Return one sensor's value and where it comes from, or why it is unknown."""
    if reading.get("value") is None:
        lacking = "none" if reading.get("absent") else "unknown"
        return Text(f"{lacking}: {printable(reading.get('reason') or 'no reason was given')}", style="dim")
    text = Text(quantity(reading["value"], reading.get("unit")))
    return text.append(f"  {reading['source']}", style="dim") if reading.get("source") else text


def quantity(value: bool | float | str, unit: str | None) -> str:
    """Return a sensor's value with its unit, for people."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if unit == "bytes":
        return bytes_text(value)
    return f"{value:.4g} {unit}" if unit else f"{value:.4g}"
