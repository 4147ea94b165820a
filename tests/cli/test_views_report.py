"""What people see of a report: on any screen, whatever is missing, and whatever the model says."""

import io
from typing import Any

import pytest
from rich.console import Console, RenderableType

from pocketllm.cli.report_view import curve_plot, recall_text, report_view, words_table
from tests.support.daemon_documents import REPORT

WORSE = {"before": 3.25, "now": 3.5, "reduction": -0.25, "standard_error": 0.01}


def rendered(view: RenderableType, width: int = 120) -> str:
    console = Console(file=io.StringIO(), width=width, markup=False, emoji=False, highlight=False)
    console.print(view)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def shown(width: int = 120, **changed: Any) -> str:
    return rendered(report_view(REPORT | changed, width=width), width)


def evaluated(**changed: Any) -> str:
    text = shown(verdict=REPORT["verdict"] | changed)
    return text[: text.index("Loss in nats")]


def test_everything_is_shown() -> None:
    text = shown()
    assert "Job job-1: learned" in text
    assert "Held-out loss 3.5000 -> 3.2500 nats per token (-0.2500, standard error 0.0100), which is more than" in text
    for part in ("Loss in nats per token", "‰", "Wren", "Wind west, glass", "is a material.", "rising. Two mugs."):
        assert part in text
    assert "repeats nothing verbatim" in text


@pytest.mark.parametrize("width", [40, 60, 99, 100, 160])
def test_it_fits_any_screen(width: int) -> None:
    text = shown(width)
    assert all(len(line) <= width for line in text.splitlines())
    for part in ("Wren", "rising. Two mugs." if width >= 60 else "rising. Two", "step 40"):
        assert part in text


def test_narrow_completions_stand_one_below_the_other() -> None:
    lines = [line.strip() for line in shown(60).splitlines()]
    at = lines.index("Wind west, glass")
    assert lines[at + 1 : at + 3] == ["base: is a material.", "personal: rising. Two mugs."]


@pytest.mark.parametrize(
    ("outcome", "said"),
    [
        ("no proof of learning", "may be chance"),
        ("too little text to tell yet", "continues from it with more text"),
        ("worse", "kept but not served"),
        ("odd", "0.0100)"),
    ],
)
def test_outcomes_that_are_not_served(outcome: str, said: str) -> None:
    text = evaluated(outcome=outcome, overall=WORSE)
    assert f"job-1: {outcome}" in text and said in text and "(+0.2500" in text


def test_old_text_and_the_base_model() -> None:
    text = evaluated(old=WORSE, base=REPORT["verdict"]["overall"])
    assert (
        "On the text of earlier jobs: 3.2500 -> 3.5000" in text
        and "Compared with the base model: 3.5000 -> 3.2500" in text
    )


def test_too_little_to_be_sure() -> None:
    assert "one text" in evaluated(overall=WORSE | {"standard_error": None})


def test_without_content_it_says_why() -> None:
    text = shown(words=None, completions=None)
    assert "deleted" in text and "`pocketllm jobs job-1`" in " ".join(text.split()) and "Wren" not in text


def test_with_nothing_to_tell_there_are_no_empty_tables() -> None:
    text = shown(words=[], completions=[], verbatim_recall=None, curve={"held_out": [], "training": []})
    assert "Word" not in text and "Completions" not in text and "Loss in nats" not in text
    assert "no running text" in text


class TestVerbatimRecall:
    def text(self, base: float, personal: float) -> str:
        return recall_text({"places": 200, "base": base, "personal": personal}).plain

    def test_little_is_told_without_advice(self) -> None:
        assert self.text(0.005, 0.01).startswith("From 1.0 % of 200 places")
        assert "base model from 0.5 %" in self.text(0.005, 0.01) and "app" not in self.text(0.005, 0.01)

    def test_much_is_told_with_advice(self) -> None:
        assert "Any app that can query" in self.text(0, 0.125)

    def test_what_the_base_repeats_as_well_is_no_leak(self) -> None:
        assert "Any app" not in self.text(0.2, 0.21)


class TestCurve:
    def test_it_falls_from_the_left_top_to_the_right_bottom(self) -> None:
        lines = curve_plot(REPORT["curve"], 80)
        assert lines[0].startswith("   3.50 │●") and lines[0].count("●") == 1
        low = next(line for line in lines if line.startswith("   3.10 │"))
        assert "·" in low and "●" not in low
        assert lines[-2].split() == ["0", "step", "40"] and "held out" in lines[-1]

    @pytest.mark.parametrize(
        "curve",
        [
            {"held_out": [{"step": 0, "held_out_loss": 3.0}], "training": []},
            {"held_out": [], "training": [{"step": 1, "loss": 3.0}]},
            {"held_out": [{"step": step, "held_out_loss": 3.0} for step in range(200)], "training": []},
            {"held_out": [], "training": [{"step": step * 5000, "loss": 1e6 / (step + 1)} for step in range(200)]},
        ],
        ids=["one measurement", "one step", "a flat one", "a long and steep one"],
    )
    @pytest.mark.parametrize("width", [40, 200])
    def test_odd_curves(self, curve: Any, width: int) -> None:
        lines = curve_plot(curve, width)
        assert all(len(line) <= width for line in lines)
        assert "●" in "".join(lines[:8]) or "·" in "".join(lines[:8])

    def test_no_curve(self) -> None:
        assert curve_plot({"held_out": [], "training": []}, 80) == []


HOSTILE = "\x1b[2J\x1b]0;owned\x07\r\x9b31m\x00"


@pytest.mark.parametrize("width", [50, 120])
def test_a_models_words_cannot_steer_the_terminal(width: int) -> None:
    one = {"prompt": f"[red]p{HOSTILE}", "base": f"b{HOSTILE}", "personal": f"{HOSTILE}q"}
    words = [{"word": f"w{HOSTILE}", "base": 0.0, "personal": 0.5}]
    text = shown(width, words=words, completions=[one])
    assert not any((ord(letter) < 32 and letter != "\n") or 127 <= ord(letter) < 160 for letter in text)
    assert "[red]p" in text and "500.00" in text


def test_a_long_word_is_folded() -> None:
    text = rendered(words_table([{"word": "x" * 300, "base": 0.0, "personal": 0.5}]), 40)
    assert text.count("x") == 300
    assert all(len(line) <= 40 for line in text.splitlines())
