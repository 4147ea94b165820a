"""How models are shown: the table of those that are installed, and what was measured of one."""

import platform
from collections.abc import Sequence
from pathlib import Path

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from pocketllm.cli.views import UNKNOWN, bytes_text, count_text
from pocketllm.errors import Document

#: The names under which dtypes are short enough for a table.
SHORT_DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


def models_table(models: Sequence[Document], models_dir: Path) -> RenderableType:
    """Return the installed models; the default one carries a star. Below, those that were measured elsewhere."""
    if not models:
        return Text(f"No models in {models_dir} yet. Install the default one with `pocketllm models add`.")
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("Model")
    table.add_column("Parameters", justify="right")
    table.add_column("Size", justify="right")
    table.add_column("Weights")
    table.add_column("Licence")
    table.add_column("Source", overflow="fold")
    for model in models:
        name = Text(model["name"])
        if model.get("default"):
            name.append(" * default", style="green")
        size, parameters = bytes_text(model.get("weights_bytes")), count_text(model.get("parameters"))
        licence, source = str(model.get("license") or "unknown"), str(model.get("source") or UNKNOWN)
        table.add_row(name, parameters, size, encoding_text(model), Text(licence), Text(source))
    return Group(table, *(Text(moved_text(model)) for model in models if moved_text(model)))


def encoding_text(model: Document) -> str:
    """Return how a model's weights are stored, if they are packed how far that moved them, and what computes.

    That is "int4, error 7.2 %, computes in bf16", and plain "bfloat16" where they are computed with as they are.
    """
    error, stored, computes = (model.get(key) for key in ("quantization_error", "dtype", "compute_dtype"))
    said = [str(stored or UNKNOWN)]
    if error is not None:
        said.append(f"error {100 * error:.1f} %")
    if computes not in (None, stored):
        said.append(f"computes in {SHORT_DTYPES.get(computes, computes)}")
    return ", ".join(said)


def moved_text(model: Document) -> str:
    """Return what to do when a model was measured on another kind of processor than this one; else ""."""
    here, there = platform.machine(), (model.get("calibration") or {}).get("machine")
    if there in (None, here):
        return ""
    return (
        f"{model['name']} was measured on {there}, but this device is {here}. Run "
        f"`pocketllm models calibrate {model['name']}`."
    )


def calibration_text(model: Document) -> str:
    """Return what was measured of a model on this device."""
    found, computes = model["calibration"], model["compute_dtype"]
    speeds = [f"{SHORT_DTYPES[dtype]} {speed / 1e9:,.0f}" for dtype, speed in found["gemm_flops_by_dtype"].items()]
    deviation = f", {found['loss_deviation']:.4f} nats per token from fp32's loss" if computes != "float32" else ""
    return (
        f"{model['name']} computes in {SHORT_DTYPES[computes]} here{deviation}. "
        f"Billion operations per second: {', '.join(speeds)}."
    )
