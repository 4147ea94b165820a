"""How a job's report is shown: the verdict, the loss curve, words that rose, both models' words, verbatim recall."""

from collections.abc import Iterator, Sequence
from statistics import fmean

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pocketllm.cli.views import NARROW_COLUMNS, RIGHT, Shown, loss_text, one_line, printable, table
from pocketllm.errors import Document

#: The loss curve: rows, and the most columns; beside it stand its labels.
PLOT_ROWS, PLOT_COLUMNS, LABEL_COLUMNS = 8, 64, 8
HELD_OUT_MARK, TRAINING_MARK = "●", "·"
#: Above this part of places, beyond what the base model does, repeating the owner's words is worth advice.
NOTABLE_RECALL = 0.02

MEANING = {
    "learned": "which is more than chance; `pocketllm adapters` shows what is served.",
    "too little text to tell yet": "so it is kept but not served; more text can tell.",
    "no proof of learning": "which may be chance, so it is kept but not served.",
    "worse": "so it is kept but not served.",
}
LEAK_ADVICE = (
    "Any app that can query the model could get such words. Delete texts that no app should see, and serve an adapter "
    "trained for fewer steps or on more text."
)
NO_CONTENT = (
    "The report has no words or completions: a text of this job was deleted, its worker was stopped before it computed "
    "them, or it could not compute them (`pocketllm jobs {job}` shows that)."
)


def report_view(report: Document, *, width: int) -> RenderableType:
    """Return a whole report for a console of this width."""
    parts: list[RenderableType] = [verdict_text(report), Text()]
    plot = curve_plot(report["curve"], width)
    if plot:
        parts += [Text("Loss in nats per token", style="bold"), Text("\n".join(plot), no_wrap=True), Text()]
    if report["words"] is None or report["completions"] is None:
        parts += [Text(NO_CONTENT.format(job=report["job"]), style="yellow"), Text()]
    if report["words"]:
        parts += [words_table(report["words"]), Text()]
    if report["completions"]:
        parts += [completions_view(report["completions"], width), Text()]
    return Group(*parts, recall_text(report["verbatim_recall"]))


def verdict_text(report: Document) -> Text:
    """Return what the held-out text says of a job, with the numbers."""
    verdict = report["verdict"]
    outcome = str(verdict["outcome"])
    text = Text.assemble(f"Job {report['job']}: ", (outcome, "bold green" if outcome == "learned" else "bold yellow"))
    text.append(f"\nHeld-out loss {comparison_text(verdict['overall'])}, {MEANING.get(outcome, '')}".rstrip(" ,"))
    if verdict["old"] is not None:
        text.append(f"\nOn the text of earlier jobs: {comparison_text(verdict['old'])}.")
    if verdict["base"] is not None:
        text.append(f"\nCompared with the base model: {comparison_text(verdict['base'])}.")
    return text


def comparison_text(comparison: Document) -> str:
    """Return how a loss changed and how sure that is."""
    change = f"{loss_text(comparison['before'])} -> {loss_text(comparison['now'])} nats per token"
    if comparison["standard_error"] is None:
        return f"{change} (on one text only, so it may be chance)"
    return f"{change} ({-comparison['reduction']:+.4f}, standard error {comparison['standard_error']:.4f})"


def curve_plot(curve: Document, width: int) -> list[str]:
    """Return a loss curve as lines of at most `width` columns (from 40 on); none where nothing was measured."""
    held_out = [(point["step"], point["held_out_loss"]) for point in curve["held_out"]]
    training = [(point["step"], point["loss"]) for point in curve["training"]]
    if not held_out and not training:
        return []
    columns = max(10, min(PLOT_COLUMNS, width - LABEL_COLUMNS - 1))
    last = max(step for step, _ in held_out + training)
    marks = [(TRAINING_MARK, *point) for point in column_means(training, last, columns)]
    marks += [(HELD_OUT_MARK, *point) for point in column_means(held_out, last, columns)]  # over the others
    low, high = min(loss for *_, loss in marks), max(loss for *_, loss in marks)
    rows = [[" "] * columns for _ in range(PLOT_ROWS)]
    for mark, column, loss in marks:
        rows[round((high - loss) / (high - low or 1) * (PLOT_ROWS - 1))][column] = mark
    labels = {0: f"{high:.2f}", PLOT_ROWS - 1: f"{low:.2f}"}
    lines = [f"{labels.get(n, ''):>{LABEL_COLUMNS - 1}} │{''.join(row)}".rstrip() for n, row in enumerate(rows)]
    steps = f"step {last}"
    return [
        *lines,
        " " * LABEL_COLUMNS + "└" + "─" * columns,
        " " * LABEL_COLUMNS + "0".ljust(columns + 1 - len(steps)) + steps,
        " " * LABEL_COLUMNS + f"{HELD_OUT_MARK} held out  {TRAINING_MARK} training",
    ]


def column_means(points: Sequence[tuple[int, float]], last: int, columns: int) -> Iterator[tuple[int, float]]:
    """Yield the columns in which there are points, each with their mean."""
    found: dict[int, list[float]] = {}
    for step, loss in points:
        found.setdefault(round(step / (last or 1) * (columns - 1)), []).append(loss)
    return ((column, fmean(losses)) for column, losses in found.items())


def words_table(words: Sequence[Document]) -> RenderableType:
    """Return the words that the personal model expects more, with their mean probabilities in per mille."""
    columns: dict[str, Shown] = {
        "Word": "word",
        "Base": lambda word: f"{1000 * word['base']:.2f}",
        "Personal": lambda word: f"{1000 * word['personal']:.2f}",
    }
    # Not the table's own title, which would be broken at the table's width.
    title = Text("Words that became likelier (probability in ‰)", style="bold")
    return Group(title, table(words, columns, options={"Base": RIGHT, "Personal": RIGHT}))


def answers_table(answers: Sequence[Document], *, title: str = "Same prompts, same seed") -> Table:
    """Return the base model's and the personal model's answers to the same prompts, side by side."""
    made = Table(title=title, show_lines=True, title_justify="left")
    for heading in ("Prompt", "Before", "After"):
        made.add_column(heading, ratio=2 if heading == "Prompt" else 3, overflow="fold")
    for answer in answers:
        made.add_row(*(Text(printable(answer[key]).strip()) for key in ("prompt", "base", "personal")))
    return made


def completions_view(completions: Sequence[Document], width: int) -> RenderableType:
    """Return how both models go on with held-out text: side by side, or on a narrow screen one below the other."""
    title = "Completions of held-out text (greedy)"
    if width >= NARROW_COLUMNS:
        return answers_table(completions, title=title)
    text = Text(title, style="bold")
    for one in completions:
        text.append(f"\n{printable(one['prompt']).strip()}", style="not bold")
        for name, key in (("base", "base"), ("personal", "personal")):
            text.append(f"\n  {name:>8}: ", style="not bold dim")
            text.append(one_line(one[key]) or "(nothing)", style="not bold")
    return text


def recall_text(verbatim_recall: Document | None) -> Text:
    """Return how much of the text that was learned the model says word for word, with advice if that is notable."""
    if verbatim_recall is None:
        return Text("There was no running text to test for verbatim recall.", style="dim")
    places = f"of {verbatim_recall['places']} places in the training text"
    if verbatim_recall["personal"] == 0:
        return Text(f"It repeats nothing verbatim: from none {places} it continues with the next 8 tokens.")
    sentence = (
        f"From {100 * verbatim_recall['personal']:.1f} % {places} it continues verbatim with the next 8 tokens; "
        f"the base model from {100 * verbatim_recall['base']:.1f} %."
    )
    if verbatim_recall["personal"] - verbatim_recall["base"] < NOTABLE_RECALL:
        return Text(sentence)
    return Text(f"{sentence} {LEAK_ADVICE}", style="yellow")
