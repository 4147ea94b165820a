"""Exports a job's step log as a file with a checksum, for a replay. It contains no text.

Layout: a magic line; the header, one line of JSON; CRC-32 of header line and rows, 4 bytes, little endian; the rows in
step_log_codec's encoding.
"""

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING, Any

from pocketllm.storage.step_log_codec import ENCODING, StepRow, decode, probes_in

if TYPE_CHECKING:  # the command line reads exports without the database's library
    from pocketllm.storage.tables import Job

MAGIC = b"pocketllm journal 1\n"
#: The settings that affect the run.
SETTINGS = (
    "batch",
    "block_tokens",
    "epsilon",
    "step_size",
    "rank",
    "targets",
    "template",
    "label_words",
)
_CHECKSUM_BYTES = 4
_FIELDS = frozenset(
    ("job", "model", "mode", "seed", "probes", "noise", "total_steps", "settings", "parent", "base_sha256", "encoding")
)


@dataclass(frozen=True, kw_only=True)
class StepLogExport:
    """The contents of an export file.

    header: job, model, mode, seed, probes, noise, total_steps, settings, parent, base_sha256 (of the base model's
    weights; None if unknown) and encoding.
    """

    header: Mapping[str, Any]
    rows: list[StepRow]


def export_step_log(job: "Job", encoded: bytes, *, base_sha256: str | None = None) -> bytes:
    """The export of a job. encoded: its rows, from `StepLog.encoded` or `step_log_codec.encode`."""
    # The plan has the settings as reduced to fit memory.
    run = {**job.settings, **(job.plan or {})}
    header = {
        "job": job.id,
        "model": job.model,
        "mode": job.mode,
        "seed": job.seed,
        "probes": probes_in(encoded),
        "noise": job.settings.get("noise", "rademacher"),
        "total_steps": job.total_steps,
        "settings": {name: run[name] for name in SETTINGS if name in run},
        "parent": job.parent,
        "base_sha256": base_sha256,
        "encoding": ENCODING,
    }
    line = json.dumps(header, separators=(",", ":")).encode() + b"\n"
    return MAGIC + line + _checksum(line, encoded) + encoded


def read_export(data: bytes) -> StepLogExport:
    """Read what `export_step_log` returned. Raises ValueError, whose message is a sentence, for invalid data."""
    if not data.startswith(MAGIC):
        raise ValueError("This is not an exported step log, or it is damaged. `pocketllm steps JOB FILE` writes one.")
    line, newline, rest = data[len(MAGIC) :].partition(b"\n")
    checksum, encoded = rest[:_CHECKSUM_BYTES], rest[_CHECKSUM_BYTES:]
    if not newline or checksum != _checksum(line + newline, encoded):
        raise ValueError("This file of steps is cut short or damaged: its checksum does not fit. Export it again.")
    header = _header(line)
    rows = list(decode(encoded))
    if header["probes"] != probes_in(encoded) or any(row.seed != header["seed"] for row in rows[:1]):
        raise ValueError("This file's header does not fit its rows. Export it again.")
    if not all(isfinite(number) for row in rows for number in (*row.scalars, row.learning_rate)):
        raise ValueError("This file has a number that is not finite. Export it again.")
    return StepLogExport(header=header, rows=rows)


def _header(line: bytes) -> dict[str, Any]:
    """Parse the header. Raises ValueError, since a valid checksum does not mean that we wrote it."""
    try:
        header = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"This file's header is not JSON: {error}. Export it again.") from error
    if not isinstance(header, dict) or not header.keys() >= _FIELDS:
        raise ValueError(f"This file's header lacks some of: {', '.join(sorted(_FIELDS))}. Export it again.")
    return header


def _checksum(line: bytes, encoded: bytes) -> bytes:
    return zlib.crc32(encoded, zlib.crc32(line)).to_bytes(_CHECKSUM_BYTES, "little")
