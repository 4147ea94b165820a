"""Pieces of SVG for the benches' plots: a few lines do not need a plotting library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

INK, GRID = "#222222", "#dddddd"
FONT = "font-family='system-ui, sans-serif'"


def frame(width: int, height: int, title: str) -> str:
    """The opening tag, and a background: explicit, since pages are dark or light."""
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}' role='img' aria-label='{escape(title, quote=True)}'>\n"
        f"<rect width='{width}' height='{height}' fill='#ffffff'/>"
    )


def stroke(points: Sequence[tuple[float, float]], colour: str, width: float = 2.5) -> str:
    """A line through these points."""
    path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return f"<polyline points='{path}' fill='none' stroke='{colour}' stroke-width='{width}'/>"


def text(
    x: float, y: float, words: str, *, size: int = 12, anchor: str = "start", weight: str = "normal", colour: str = INK
) -> str:
    """Words that start, end or have their middle at x, with their foot at y."""
    return (
        f"<text x='{x:.1f}' y='{y:.1f}' {FONT} font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' "
        f"fill='{colour}'>{escape(words)}</text>"
    )


def round_step(least: float) -> float:
    """The smallest of 1, 2, 5 times a power of ten that is not below `least`."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * (1 - 1e-9))
