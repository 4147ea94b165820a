"""What `pocketllm doctor --json` tells of the device: versions, readings and speeds. No word of the owner's."""

import json
import os
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pocketllm import __version__
from pocketllm.errors import Document

if TYPE_CHECKING:
    from pocketllm.daemon.settings import Settings
    from pocketllm.daemon.tools.doctor import Examination

_LIBRARIES = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pydantic", "SQLAlchemy", "uvicorn")
#: Lines of /proc/cpuinfo that tell what a processor can do.
_PROCESSOR = ("model name", "Hardware", "CPU part", "Features", "flags")


def device_report(settings: "Settings", examination: "Examination") -> Document:
    """Return the findings and readings, and the device that they are of."""
    from pocketllm.engine.formats.model_folder import list_model_folders

    now, models = datetime.now(UTC), list_model_folders(settings.data_dir / "models")
    readings = [
        asdict(reading) | {"at": reading.at.isoformat(), "age_seconds": round((now - reading.at).total_seconds(), 1)}
        for reading in examination.readings
    ]
    report = {
        "ok": all(finding.state != "bad" for finding in examination.findings),
        "made_at": now.isoformat(timespec="seconds"),
        "device": _device(),
        "versions": _versions(),
        "findings": [asdict(finding) for finding in examination.findings],
        "readings": readings,
        "calibration": next((m.manifest.calibration for m in models if m.manifest.name == settings.model), None),
    }
    # Paths name the owner's home.
    document: Document = json.loads(json.dumps(report).replace(json.dumps(str(Path.home()))[1:-1], "~"))
    return document


def _device() -> Document:
    try:
        lines = [line.split(":", 1) for line in Path("/proc/cpuinfo").read_text().splitlines() if ":" in line]
    except OSError:
        lines = []
    processor = {name.strip(): text.strip() for name, text in lines if name.strip() in _PROCESSOR}
    return {
        "machine": platform.machine(),
        "system": platform.system(),
        "kernel": platform.release(),
        "cores": os.cpu_count(),
        "processor": processor,
    }


def _versions() -> Document:
    found: Document = {"pocketllm": __version__, "python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    return found
