"""How jobs, their reports, plans and the daemon's state are shown."""

from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.text import Text

from pocketllm.cli.views import (
    UNKNOWN,
    WITHDRAWN,
    bytes_text,
    change_text,
    details,
    duration_text,
    one_line,
    paged,
    picked,
    printable,
    table,
    value_text,
)
from pocketllm.errors import Document

FINISHED_STATES = {"succeeded", "failed", "cancelled"}
#: What is shown of a job that has ended, and of any job.
OUTCOME_FIELDS = (
    *("id", "state", "outcome", "error", "step", "held_out_loss", "tokens_per_second", "peak_memory_bytes"),
    "adapter",
)
JOB_FIELDS = (
    *("state", "outcome", "reasons", "error", "step", "loss", "held_out_loss", "tokens_per_second", "eta_seconds"),
    *("eta_nights", "peak_memory_bytes", "model", "mode", "method", "seed", "texts", "words", "requested_by"),
    *("attempts", "adapter", "created_at", "started_at", "finished_at"),
)
HISTORY = {
    "events": ("at", "kind", "message"),
    "runs": ("began_at", "seconds", "cpu_seconds", "began_because", "steps", "ended_because"),
}
PLAN_FIELDS = (
    *("model", "mode", "method", "alternatives", "steps", "batch", "block_tokens", "probes", "micro_batch"),
    *(
        "kept_layers",
        "peak_memory_bytes",
        "library_bytes",
        "working",
        "seconds_per_step",
        "all_steps_seconds",
        "nights",
        "texts",
        "new_words",
        "reductions",
    ),
)
#: The comparisons of a verdict, and what each is made on.
COMPARED = {
    "overall": "new text",
    "old": "text of earlier jobs",
    "worst": "the worst of these",
    "base": "new text, with the base model",
    "ordinary": "ordinary text",
}
#: Above this part of places, beyond what the base model does, repeating the owner's words is worth advice.
NOTABLE_RECALL = 0.02
LEAK_ADVICE = (
    "Any app that can query the model could get such words. Delete texts that no app should see, and serve an adapter "
    "trained for fewer steps or on more text."
)
NO_CONTENT = "No words or completions: a text of this job was deleted, or see what `pocketllm jobs {job}` says of them."


def with_progress(job: Document) -> Document:
    """Return a job with its step of how many, its speed in whole tokens, and the change of its held-out loss."""
    step = f"{job['step']}/{job['total_steps']}" if job["total_steps"] else str(job["step"])
    speed = job["tokens_per_second"]
    change = change_text(job["held_out_loss_before"], job["held_out_loss_now"])
    return job | {"step": step, "tokens_per_second": speed and round(speed), "held_out_loss": change}


def waits_for(job: Document) -> list[str]:
    """Return what a job waits for, or what it does before its first step, which can take minutes."""
    if job["state"] == "running" and not job["step"]:
        said = [event["message"] for event in job.get("events", ())][-1:]
        does = "judging an adapter" if job["method"] in ("added", "candidate") else "before the first step"
        return [": ".join([does, *said])]
    return list(job["reasons"])


def progress_line(job: Document) -> str:
    """Return a job's progress as one plain line."""
    shown = with_progress(job) | {"waits": waits_for(job) or None}
    forms = {
        **{"state": "{}", "step": "step {}", "loss": "loss {}", "held_out_loss": "held-out {}"},
        **{"tokens_per_second": "{} tok/s", "eta_seconds": "{} left", "eta_nights": "{} nights left", "waits": "{}"},
    }
    return "  ".join(
        form.format(value_text(name, shown[name])) for name, form in forms.items() if shown[name] is not None
    )


def outcome(job: Document) -> RenderableType:
    """Return what a finished job achieved."""
    note = "The held-out loss did not fall by more than noise, so the adapter is kept but not served."
    kept = job["outcome"] not in (None, "learned")
    early = [event["message"] for event in job.get("events", ()) if event["kind"] == "ended early"]
    fields = [*picked(with_progress(job), OUTCOME_FIELDS), ("ended_early", early)]
    return Group(details(fields), *[Text(note, style="yellow")] * kept)


def jobs_table(page: Document, candidate: str | None = None) -> RenderableType:
    """Return a page of jobs, newest first, and below it what the status says of a candidate."""
    empty = (
        "No jobs yet. Add texts with `pocketllm add`, then run `pocketllm train`. "
        "The daemon also starts a job by itself once there are enough new words."
    )
    names = ("id", "state", "outcome", "step", "held_out_loss", "created_at")
    made = table([with_progress(job) for job in page["data"]], names, empty=empty)
    said = [Text(f"A candidate waits: {candidate}.")] if candidate else []
    return paged(Group(made, *said), page, "pocketllm jobs")


def job_details(job: Document) -> RenderableType:
    """Return one job with its settings, its events and its runs."""
    parts = [details(picked(with_progress(job), JOB_FIELDS), title=f"Job {job['id']}")]
    if job["settings"]:
        parts += [Text("Settings", style="bold"), details(job["settings"].items())]
    for name, columns in HISTORY.items():
        if job[name]:
            parts += [Text(name.capitalize(), style="bold"), table(job[name], columns)]
    return Group(*parts)


def status_panel(status: Document) -> RenderableType:
    """Return what the daemon is doing, whether it can train now, and if not, why."""
    model, training, texts, worker, generator, job = (
        status[name] for name in ("model", "training", "texts", "worker", "generator", "open_job")
    )
    fields: list[tuple[str, Any]] = [
        ("model", f"{model['name']}, {'ready' if model['ready'] else 'not ready'}"),
        ("", model["message"]),
        ("adapter", model["adapter"] or WITHDRAWN.get(model["withdrawn"], "none yet; the base model answers")),
        ("candidate", model["candidate"]),
        ("texts", f"{texts['count']:,} stored, {texts['new_words']:,} new words"),
        ("", f"a job starts at {texts['threshold_words']:,}, or at {texts['waited_threshold_words']:,} after a week"),
        ("jobs", ", ".join(f"{count} {state}" for state, count in status["jobs"].items() if count) or "none yet"),
        ("open_job", job and f"{job['id']}: {progress_line(job | {'reasons': []})}"),
        ("last_night", training["last_night"]),
        ("worker", f"job {worker['job']}, pid {worker['pid']}" if worker["running"] else "not running"),
        ("generator", f"pid {generator['pid']}" if generator["running"] else "not loaded; the first request loads it"),
        ("unloads_in_seconds", generator["unloads_in_seconds"]),
        ("can_train_now", "yes" if training["allowed"] else "no, blocked by:"),
        *((f"  {one['name']}", Text(blocker_text(one), style="yellow")) for one in training["blockers"]),
        *picked(training, ("snoozed_until", "expected_at")),
        ("readings", ""),
        *((f"  {one['name']}", reading_text(one)) for one in status["readings"]),
    ]
    return details(fields, title=f"PocketLLM {status['version']}, up {duration_text(status['uptime_seconds'])}")


def blocker_text(blocker: Document) -> str:
    """Return one reason not to train, with its value against its threshold and since when it holds."""
    text, unit = printable(blocker["message"]), blocker["unit"]
    if blocker["value"] is not None and blocker["threshold"] is not None:
        text += f" ({quantity(blocker['value'], unit)}, limit {quantity(blocker['threshold'], unit)})"
    return f"{text}, since {value_text('since', blocker['since'])}" if blocker["since"] else text


def reading_text(reading: Document) -> Text:
    """Return one sensor's value and where it comes from, or why it is unknown."""
    if reading["value"] is None:
        return Text(printable(reading["reason"] or UNKNOWN), style="dim")
    return Text.assemble(quantity(reading["value"], reading["unit"]), (f"  {reading['source']}", "dim"))


def quantity(value: bool | float | str, unit: str | None) -> str:
    """Return a sensor's value with its unit, for people."""
    return bytes_text(float(value)) if unit == "bytes" else f"{value_text('', value)} {unit or ''}".rstrip()


def plan_view(plan: Document) -> RenderableType:
    """Return what a job would take, and what was reduced to make it fit."""
    found, text = plan["predicted"], plan["enough_text"]
    limit = bytes_text(plan["memory_limit_bytes"])
    more = {
        "peak_memory_bytes": found["peak_bytes"],
        "working": f"{bytes_text(found['working_bytes'])} of {limit} allowed (training.memory_bytes)",
        "all_steps_seconds": found["seconds"],
        "alternatives": list(_other_methods(plan)),
        "texts": text["texts"] or "none yet; add some with `pocketllm add`",
    }
    return details(picked(plan | found | text | more, PLAN_FIELDS))


def _other_methods(plan: Document) -> Iterator[str]:
    """The predictions for the methods that the job does not use."""
    for one in plan["alternatives"]:
        if one["method"] != plan["method"]:
            found = one["prediction"]
            taken = f"{bytes_text(found['peak_bytes'])}, {found['seconds_per_step']:.2g} s per step" if found else ""
            yield f"{one['method']}: {taken or one['reason']}"


def report_view(report: Document) -> RenderableType:
    """Return a whole report: the verdict, held-out loss, words that rose, both models' words, verbatim recall."""
    verdict = report["verdict"]
    compared = [{"compared_on": name, **verdict[key]} for key, name in COMPARED.items() if verdict[key]]
    losses = [one["held_out_loss"] for one in report["curve"]["held_out"]] or [None]
    change = change_text(losses[0], losses[-1])
    fields = [("job", report["job"]), ("outcome", verdict["outcome"]), ("held_out_loss", change)]
    names = ("compared_on", "before", "now", "reduction", "standard_error", "texts")
    parts: list[RenderableType] = [
        details(fields),
        Text("Losses in nats per token", style="bold"),
        table(compared, names),
    ]
    if report["words"] is None or report["completions"] is None:
        parts.append(Text(NO_CONTENT.format(job=report["job"]), style="yellow"))
    if report["words"]:
        parts.append(words_view(report["words"]))
    if report["completions"]:
        parts += [Text("Held-out text, continued by both models", style="bold"), answers_view(report["completions"])]
    return Group(*parts, recall_text(report["verbatim_recall"]))


def words_view(words: Sequence[Document]) -> RenderableType:
    """Return the words that the personal model expects more, with their mean probabilities in per mille."""
    title = Text("Words that became likelier (probability in ‰)", style="bold")
    rows = [one | {name: f"{1000 * one[name]:.2f}" for name in ("base", "personal")} for one in words]
    return Group(title, table(rows, ("word", "base", "personal")))


def answers_view(answers: Sequence[Document]) -> RenderableType:
    """Return the base model's and the personal model's answers to the same prompts."""
    text = Text()
    for answer in answers:
        text.append(f"{printable(answer['prompt']).strip()}\n")
        for name in ("base", "personal"):
            text.append(f"  {name:>8}: ", style="dim").append(f"{one_line(answer[name])}\n")
    return text


def recall_text(verbatim_recall: Document | None) -> Text:
    """Return how much of the text that was learned the model says word for word, with advice if that is notable."""
    if verbatim_recall is None:
        return Text("There was no running text to test for verbatim recall.", style="dim")
    base, personal = verbatim_recall["base"], verbatim_recall["personal"]
    sentence = (
        f"From {100 * personal:.1f} % of {verbatim_recall['places']} places in the training text it continues verbatim "
        f"with the next 8 tokens; the base model from {100 * base:.1f} %."
    )
    if personal - base < NOTABLE_RECALL:
        return Text(sentence)
    return Text(f"{sentence} {LEAK_ADVICE}", style="yellow")
