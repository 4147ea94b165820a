"""Views of `pocketllm plan` and `pocketllm replay`: functions from documents to rich renderables."""

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pocketllm.cli.views import bytes_text, duration_text, plural, printable
from pocketllm.errors import Document

TRAINS = {"lora": "a low-rank adapter (lora)", "full": "all weights (full)"}


def plan_view(plan: Document) -> RenderableType:
    """Return what a job would take, and what was reduced to make it fit."""
    predicted = plan["predicted"]
    grid = Table.grid(padding=(0, 2))
    grid.add_row("Model", Text(printable(plan["model"])))
    grid.add_row("Trains", TRAINS[plan["mode"]])
    grid.add_row("Method", method_text(plan))
    grid.add_row("Work", work_text(plan))
    grid.add_row("Peak memory", Text(bytes_text(predicted["peak_bytes"]), style="bold"))
    grid.add_row("  libraries", bytes_text(predicted["library_bytes"]))
    working = f"{bytes_text(predicted['working_bytes'])} of {bytes_text(plan['memory_limit_bytes'])} allowed"
    grid.add_row("  training", f"{working} (training.memory_bytes)")
    if plan["kept_layers"]:
        saved = f"{bytes_text(predicted['kept_bytes'])}, saves {predicted['kept_seconds']:.2g} s per step"
        grid.add_row("  including", f"activations of {plan['kept_layers']} layers: {saved}")
    grid.add_row("  a layer's weights", bytes_text(plan_window(predicted)))
    grid.add_row("Time", time_text(predicted))
    grid.add_row("Text", text_to_learn(plan["enough_text"]))
    reduced = [Text(f"Reduced: {printable(sentence)}", style="yellow") for sentence in plan["reductions"]]
    return Group(grid, *reduced)


def method_text(plan: Document) -> Text:
    """Return the job's method, and the predictions for the other ones."""
    others = []
    for one in plan["alternatives"]:
        if one["method"] != plan["method"]:
            predicted = one["prediction"]
            taken = f"{bytes_text(predicted['peak_bytes'])}, {time_text(predicted)}" if predicted else one["reason"]
            others.append(f"{one['method']}: {taken}")
    return Text(printable("; ".join([plan["method"], *others])))


def work_text(plan: Document) -> str:
    """Return what a job does, in numbers."""
    step = f"{plan['batch']} blocks of {plan['block_tokens']} tokens"
    if plan["method"] == "mezo":
        step += f" and {plan['probes']} probe{'s' if plan['probes'] > 1 else ''}"
    return f"{plan['steps']} steps of {step}, {plan['micro_batch']} rows at a time"


def plan_window(predicted: Document) -> int:
    """Return the bytes of the weights' file that are resident while a layer runs."""
    rest: int = predicted["peak_bytes"] - predicted["library_bytes"] - predicted["working_bytes"]
    return rest


def time_text(predicted: Document) -> str:
    """Return how long a step and the whole job would take."""
    step = predicted["seconds_per_step"]
    a_step = f"{step:.1f} s" if step >= 1 else f"{1000 * step:.0f} ms"
    return f"{duration_text(predicted['seconds'])}, {a_step} per step"


def replay_view(rebuilt: Document) -> RenderableType:
    """Return whether the replay gave the job's adapter, with its numbers."""
    grid = Table.grid(padding=(0, 2))
    grid.add_row("Job", rebuilt["job"])
    grid.add_row("Replayed", f"{rebuilt['rows']:,} steps in {rebuilt['seconds']:.1f} s")
    if rebuilt["identical"]:
        verdict = Text(f"all {rebuilt['tensors']} tensors are bit-identical", style="bold green")
    else:
        names, most = rebuilt["differing"], rebuilt["max_difference"]
        by = "with some values not a number" if most is None else f"by at most {most:.3g}"
        found = f"{len(names)} of {rebuilt['tensors']} tensors differ, {by}; the first is {printable(names[0])}"
        found += ". The model was imported after the job started and may be a different one" * rebuilt["base_is_newer"]
        verdict = Text(found, style="bold red")
    grid.add_row(rebuilt["adapter"], verdict)
    if rebuilt["output"] is not None:
        grid.add_row("Written to", Text(rebuilt["output"], overflow="fold"))
    return grid


def text_to_learn(text: Document) -> Text:
    """Return how much text there is to learn from."""
    if not text["enough"]:
        return Text("none yet; add some with `pocketllm add`", style="yellow")
    return Text(f"{text['texts']:,} stored, {plural(text['new_words'], 'new word')}")
