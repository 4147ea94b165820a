"""How jobs, plans and the daemon's state are shown."""

from collections.abc import Iterator
from datetime import datetime
from math import ceil

from rich.console import Group, RenderableType
from rich.text import Text

from pocketllm.cli.views import (
    RIGHT,
    UNKNOWN,
    WITHDRAWN,
    Shown,
    age_text,
    bytes_text,
    change_text,
    details,
    duration_text,
    fitting,
    loss_text,
    moment_text,
    plural,
    printable,
    table,
)
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
TRAINS = {"lora": "a low-rank adapter (lora)", "full": "all weights (full)"}


def state_text(job: Document) -> Text:
    """Return a job's state, with an outcome that is not the one hoped for."""
    text = Text(job["state"], style=STATE_STYLES.get(job["state"], ""))
    return text if job["outcome"] in (None, "learned") else text.append(f", {job['outcome']}", style="yellow")


def speed_text(job: Document) -> str:
    """Return the training speed."""
    speed = job["tokens_per_second"]
    return UNKNOWN if speed is None else f"{speed:.0f} tok/s"


def steps_text(job: Document) -> str:
    """Return a job's step and its total; "0" for a job that was rolled back to its start."""
    return f"{job['step']}/{job['total_steps']}" if job["total_steps"] else str(job["step"])


def left_text(job: Document) -> str:
    """Return the time that an unfinished job still has to run, if it is known, and the nights that it waits for."""
    nights, left = job.get("eta_nights"), duration_text(job["eta_seconds"])
    left += f", about {plural(nights, 'night')}" if nights else ""
    return UNKNOWN if job["state"] in FINISHED_STATES else left


def percent_text(job: Document) -> str:
    """Return the relative change of the held-out loss, signed; empty while it is unknown."""
    before, now = job["held_out_loss_before"], job["held_out_loss_now"]
    return "" if not before or now is None else f" ({100 * (now - before) / before:+.1f} %)"


def waits_for(job: Document) -> list[str]:
    """Return what a job waits for, or what it does before its first step, which can take minutes."""
    if job["state"] == "running" and not job["step"]:
        said = [printable(event["message"]) for event in job.get("events", ())][-1:]
        return [": ".join(["before the first step", *said])]
    return [printable(reason) for reason in job["reasons"]]


def progress_line(job: Document) -> str:
    """Return a job's progress as one plain line."""
    known = {
        "loss {}": loss_text(job["loss"]),
        "held-out {}": change_text(job),
        "{}": speed_text(job),
        "{} left": left_text(job),
    }
    parts = [form.format(text) for form, text in known.items() if text != UNKNOWN]
    return "  ".join([job["state"], f"step {steps_text(job)}", *parts, *filter(None, ["; ".join(waits_for(job))])])


def outcome(job: Document, folder: str | None) -> RenderableType:
    """Return what a finished job achieved, and where its adapter is."""
    took = ""
    if job["started_at"] and job["finished_at"]:
        started, finished = (datetime.fromisoformat(job[key]) for key in ("started_at", "finished_at"))
        took = f" in {duration_text((finished - started).total_seconds())}"
    if job["state"] != "succeeded":
        why = printable(job["error"] or "no reason was recorded")
        style = STATE_STYLES.get(job["state"], "")
        return Text(f"Job {job['id']} {job['state']} at step {steps_text(job)}{took}: {why}", style=style)
    learned = job["outcome"] == "learned"
    found = details(
        ("Job", Text.assemble(job["id"], " ", (job["outcome"], "bold green" if learned else "bold yellow"))),
        ("Held-out loss", f"{change_text(job)} nats per token{percent_text(job)}"),
        ("Work", f"{job['step']} steps{took}, {speed_text(job)}"),
        (
            "Ended early",
            next((event["message"] for event in job.get("events", ()) if event["kind"] == "ended early"), None),
        ),
        ("Peak memory", bytes_text(job["peak_memory_bytes"])),
        ("Adapter", job["adapter"] or "none"),
        ("Folder", folder),
    )
    note = "The held-out loss did not fall by more than noise, so the adapter is kept but not served."
    return found if learned else Group(found, Text(note, style="yellow"))


def jobs_table(page: Document, *, width: int, now: datetime) -> RenderableType:
    """Return a page of jobs, newest first, in a table for a console of this width."""
    columns: dict[str, Shown] = {
        "Job": "id",
        "State": state_text,
        "Step": steps_text,
        "Loss": lambda job: loss_text(job["loss"]),
        "Held-out loss": change_text,
        "Speed": speed_text,
        "Left": left_text,
        "Peak memory": lambda job: bytes_text(job.get("peak_memory_bytes")),
        "Age": lambda job: age_text(job["created_at"], now),
    }
    empty = (
        "No jobs yet. Add texts with `pocketllm add`, then run `pocketllm train`. "
        "The daemon also starts a job by itself once there are enough new words."
    )
    options = dict.fromkeys(("Speed", "Left", "Peak memory", "Age"), RIGHT)
    shown = fitting(columns, width, wide=("Loss", "Speed", "Left", "Peak memory"))
    made = table(page["data"], shown, empty=empty, options=options)
    following = Text(f"Next page: pocketllm jobs --after {page['next']}", style="dim")
    return Group(made, following) if page["next"] else made


def job_details(job: Document, now: datetime) -> RenderableType:
    """Return one job with its settings, its events and its runs."""
    state = Text(job["state"], style=STATE_STYLES.get(job["state"], ""))
    fields = [
        ("State", state if job["outcome"] is None else state.append(f", {job['outcome']}")),
        *(("Waiting", Text(printable(reason), style="yellow")) for reason in job["reasons"]),
        ("Error", job["error"] and Text(printable(job["error"]), style="red")),
        ("Steps", steps_text(job)),
        ("Loss", loss_text(job["loss"])),
        ("Held-out loss", f"{change_text(job)}{percent_text(job)}"),
        ("Speed", speed_text(job)),
        ("Left", left_text(job)),
        ("Peak memory", bytes_text(job["peak_memory_bytes"])),
        ("Model", f"{job['model']}, {job['method']}, seed {job['seed']}"),
        ("Learns from", UNKNOWN if job["texts"] is None else f"{job['texts']} texts, {job['words']} words"),
        ("Started by", "the owner" if job["requested_by"] == "owner" else "the daemon"),
        ("Crashes in a row", job["attempts"] or None),
        ("Adapter", job["adapter"] or UNKNOWN),
    ]
    for name in ("created_at", "started_at", "finished_at"):
        at = job[name] and f"{moment_text(job[name])} ({age_text(job[name], now)})"
        fields.append((name.removesuffix("_at").capitalize(), at))
    parts = [details(*fields, title=f"Job {job['id']}")]
    for title, rows in (
        ("Settings", details(*((f"  {name}", str(value)) for name, value in job["settings"].items()))),
        ("Events", table(job["events"], EVENT_COLUMNS)),
        ("Runs", table(job["runs"], RUN_COLUMNS)),
    ):
        parts += [Text(title, style="bold"), rows] if job[title.lower()] else []
    return Group(*parts)


EVENT_COLUMNS: dict[str, Shown] = {"At": lambda event: moment_text(event["at"]), "Kind": "kind", "Message": "message"}
RUN_COLUMNS: dict[str, Shown] = {
    "Started": lambda run: moment_text(run["began_at"]),
    "Took": lambda run: duration_text(run["seconds"]),
    "CPU": lambda run: duration_text(run["cpu_seconds"]),
    "Start reason": "began_because",
    "Steps": "steps",
    "Stop reason": lambda run: run["ended_because"] or Text("still running", style="cyan"),
}


def status_panel(status: Document, now: datetime) -> RenderableType:
    """Return what the daemon is doing, whether it can train now, and if not, why."""
    texts, worker, training, job = (status[name] for name in ("texts", "worker", "training", "open_job"))
    allowed, up = training["allowed"], duration_text(status["uptime_seconds"])
    starts = f"a job starts at {texts['threshold_words']:,}, or at {texts['waited_threshold_words']:,} after a week"
    jobs = ", ".join(f"{count} {state}" for state, count in status["jobs"].items() if count)
    fields = [
        ("Model", model_text(status["model"])),
        ("Personal adapter", adapter_text(status["model"])),
        ("Texts", f"{texts['count']:,} stored, {plural(texts['new_words'], 'new word')}; {starts}"),
        ("Jobs", jobs or "none yet"),
        ("Open job", job and f"{job['id']}: {progress_line(job | {'reasons': []})}"),
        ("Last night", training["last_night"]),
        ("Worker", f"job {worker['job']}, pid {worker['pid']}" if worker["running"] else "not running"),
        ("Generator", generator_text(status["generator"])),
        ("Can train now", Text("yes", style="green") if allowed else Text("no, blocked by:", style="yellow")),
        *((f"  {one['name']}", Text(blocker_text(one, now), style="yellow")) for one in training["blockers"]),
        ("  Expected", None if allowed else expected_text(training["expected_at"], now)),
        ("Readings", ""),
        *((f"  {one['name']}", reading_text(one)) for one in status["readings"]),
    ]
    return details(*fields, title=f"PocketLLM {status['version']}, up {up}")


def adapter_text(model: Document) -> str:
    """Return which adapter answers, or why none does."""
    return model["adapter"] or WITHDRAWN.get(model["withdrawn"], "none yet; the base model answers")


def expected_text(at: str | None, now: datetime) -> str:
    """Return when a job can probably run, judging by the last days."""
    if at is None:
        return "not known yet"
    left = datetime.fromisoformat(at) - now
    return f"probably in {duration_text(max(0.0, left.total_seconds()))}, judging by the last days"


def model_text(model: Document) -> Text:
    """Return the model's name and whether it can be used."""
    text = Text(model["name"] or "none")
    if not model["ready"]:
        return text.append(f": {printable(model['message'] or 'not ready')}", style="red")
    text.append(", ready", style="green")
    return text.append(f". {printable(model['message'])}", style="yellow") if model["message"] else text


def generator_text(generator: Document) -> str:
    """Return whether the generator is loaded, and when it is unloaded."""
    if not generator["running"]:
        return "not loaded; the first request loads it"
    left, backend = generator["unloads_in_seconds"], generator["backend"]
    by = f" by {'llama.cpp' if backend == 'llamacpp' else backend}" if backend else ""
    return f"loaded{by}, pid {generator['pid']}" + ("" if left is None else f", unloads in {duration_text(left)}")


def blocker_text(blocker: Document, now: datetime) -> str:
    """Return one reason not to train, with its value against its threshold and for how long it has held."""
    text, unit = printable(blocker["message"]), blocker["unit"]
    if blocker["value"] is not None and blocker["threshold"] is not None:
        text += f" ({quantity(blocker['value'], unit)}, limit {quantity(blocker['threshold'], unit)})"
    return f"{text}, began {age_text(blocker['since'], now)}" if blocker["since"] else text


def reading_text(reading: Document) -> Text:
    """Return one sensor's value and where it comes from, or why it is unknown."""
    if reading["value"] is None:
        lacking = "none" if reading["absent"] else "unknown"
        return Text(f"{lacking}: {printable(reading['reason'] or 'no reason was given')}", style="dim")
    return Text.assemble(quantity(reading["value"], reading["unit"]), (f"  {reading['source']}", "dim"))


def quantity(value: bool | float | str, unit: str | None) -> str:
    """Return a sensor's value with its unit, for people."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return bytes_text(value) if unit == "bytes" else f"{value:.4g} {unit or ''}".rstrip()


def plan_view(plan: Document) -> RenderableType:
    """Return what a job would take, and what was reduced to make it fit."""
    found, text = plan["predicted"], plan["enough_text"]
    mapped = found["peak_bytes"] - found["library_bytes"] - found["working_bytes"]
    steps = f"{plan['steps']} steps of {plan['batch']} blocks of {plan['block_tokens']} tokens"
    probes = f" and {plural(plan['probes'], 'probe')}" if plan["method"] == "mezo" else ""
    saved = f"{bytes_text(found['kept_bytes'])}, saves {found['kept_seconds']:.2g} s per step"
    working = f"{bytes_text(found['working_bytes'])} of {bytes_text(plan['memory_limit_bytes'])} allowed"
    stored = f"{text['texts']:,} stored, {plural(text['new_words'], 'new word')}"
    grid = details(
        ("Model", plan["model"]),
        ("Trains", TRAINS[plan["mode"]]),
        ("Method", "; ".join([plan["method"], *_other_methods(plan)])),
        ("Work", f"{steps}{probes}, {plan['micro_batch']} rows at a time"),
        ("Peak memory", Text(bytes_text(found["peak_bytes"]), style="bold")),
        ("  libraries", bytes_text(found["library_bytes"])),
        ("  training", f"{working} (training.memory_bytes)"),
        ("  including", f"activations of {plan['kept_layers']} layers: {saved}" if plan["kept_layers"] else None),
        ("  a layer's weights", bytes_text(mapped)),
        ("Time", f"{time_text(found)}; about {plural(max(1, ceil(plan['nights'])), 'night')}"),
        ("Text", stored if text["enough"] else Text("none yet; add some with `pocketllm add`", style="yellow")),
    )
    return Group(grid, *(Text(f"Reduced: {printable(sentence)}", style="yellow") for sentence in plan["reductions"]))


def _other_methods(plan: Document) -> Iterator[str]:
    """The predictions for the methods that the job does not use."""
    for one in plan["alternatives"]:
        if one["method"] != plan["method"]:
            found = one["prediction"]
            taken = f"{bytes_text(found['peak_bytes'])}, {time_text(found)}" if found else one["reason"]
            yield f"{one['method']}: {taken}"


def time_text(predicted: Document) -> str:
    """Return how long a step and the whole job would take."""
    step = predicted["seconds_per_step"]
    a_step = f"{step:.1f} s" if step >= 1 else f"{1000 * step:.0f} ms"
    return f"{duration_text(predicted['seconds'])}, {a_step} per step"
