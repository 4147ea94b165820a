"""The step log's rows as bytes: a short header, then a few numbers a step, all little endian.

Header: encoding version, probes a step, steps, seed, tokens of all steps. A step: each probe's scalar, learning
rate and loss as float32, and seconds as float16: 14 bytes with one probe. Scalars and learning rates are float32
when they are used, so a replay of what is decoded is a replay of the rows, bit for bit. The rest is for people:
loss has 7 digits, seconds have 3 (and end at 65504), and a step's tokens are the mean over all steps, rounded up
or down so that they add up to the exact sum. What has been decoded is encoded to the same bytes again.

No torch and no database: who was handed a file can read it with this module alone.
"""

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from math import isfinite
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pocketllm.storage.tables import Step

ENCODING = 1
MAX_PROBES = 2**16 - 1

_HEADER = struct.Struct("<BxHIqQ")
_LOSS = struct.Struct("<f")
_MAX_FLOAT16 = 65504.0


@dataclass(frozen=True, kw_only=True, slots=True)
class StepRow:
    """One decoded step."""

    step: int  #: from 1
    seed: int
    scalars: tuple[float, ...]  #: exact
    loss: float  #: nats per token, as float32
    learning_rate: float  #: exact
    tokens: int  #: the mean over all steps, rounded up or down
    seconds: float  #: as float16


def encode(rows: "Iterable[Step | StepRow]") -> bytes:
    """The rows as bytes; they are taken one by one, so they need not be in memory together.

    Raises ValueError when they don't run from step 1 without a gap, differ in seed or number of probes, or hold a
    number that would not come back: a scalar or learning rate that is no float32, or a loss that is no number.
    """
    data = bytearray(_HEADER.size)
    steps = tokens = seed = probes = 0
    for steps, row in enumerate(rows, 1):
        if steps == 1:
            seed, probes = row.seed, len(row.scalars)
        if row.step != steps:
            raise ValueError(f"Step {steps} of the step log is missing: step {row.step} stands in its place.")
        if row.seed != seed or len(row.scalars) != probes:
            raise ValueError(f"Step {steps} of the step log has another seed or number of probes than step 1.")
        data += _packed(row)
        tokens += row.tokens
    if not 1 <= probes <= MAX_PROBES:
        raise ValueError(f"A step log with {steps} steps and {probes} probes a step cannot be encoded.")
    try:
        _HEADER.pack_into(data, 0, ENCODING, probes, steps, seed, tokens)
    except struct.error as error:
        raise ValueError(f"A step log with seed {seed} and {tokens} tokens cannot be encoded: {error}.") from error
    return bytes(data)


def decode(data: bytes, *, first: int = 1) -> Iterator[StepRow]:
    """The rows from step `first` on, made one by one.

    Raises ValueError at once, not at the first row, for what `encode` has not made.
    """
    probes, steps, seed, tokens = _header(data)
    numbers = _numbers(probes)
    if len(data) != _HEADER.size + steps * numbers.size:
        raise ValueError(_damaged(steps, len(data)))

    def rows() -> Iterator[StepRow]:
        body = memoryview(data)[_HEADER.size + (first - 1) * numbers.size :]
        for step, (*scalars, learning_rate, loss, seconds) in enumerate(numbers.iter_unpack(body), first):
            yield StepRow(
                step=step,
                seed=seed,
                scalars=tuple(scalars),
                loss=loss,
                learning_rate=learning_rate,
                tokens=tokens * step // steps - tokens * (step - 1) // steps,
                seconds=seconds,
            )

    return rows()


def losses_in(data: bytes, steps: Iterable[int]) -> list[float]:
    """The losses of some steps, without decoding the others. Raises ValueError for what `encode` has not made."""
    probes, count, _, _ = _header(data)
    size = _numbers(probes).size
    if len(data) != _HEADER.size + count * size:
        raise ValueError(_damaged(count, len(data)))
    behind_scalars = _HEADER.size + 4 * (probes + 1)  # and behind the learning rate
    return [_LOSS.unpack_from(data, behind_scalars + (step - 1) * size)[0] for step in steps]


def steps_in(data: bytes) -> int:
    """How many steps encoded rows hold. Raises ValueError when they are none."""
    return _header(data)[1]


def probes_in(data: bytes) -> int:
    """How many probes each step of encoded rows has. Raises ValueError when they are none."""
    return _header(data)[0]


def _header(data: bytes) -> tuple[int, int, int, int]:
    """Probes, steps, seed and tokens."""
    if len(data) < _HEADER.size:
        raise ValueError(f"{len(data)} bytes are too few for a step log: it is cut short or damaged.")
    version, probes, steps, seed, tokens = _HEADER.unpack_from(data)
    if version != ENCODING:
        raise ValueError(f"The step log is in encoding {version}; this PocketLLM reads encoding {ENCODING}.")
    if not probes or not steps:
        raise ValueError("The step log holds no step: it is damaged.")
    return probes, steps, seed, tokens


def _damaged(steps: int, size: int) -> str:
    return f"A step log of {steps} steps cannot be {size} bytes long: it is cut short or damaged."


def _numbers(probes: int) -> struct.Struct:
    return struct.Struct(f"<{probes}fffe")


def _packed(row: "Step | StepRow") -> bytes:
    numbers = _numbers(len(row.scalars))
    exact = (*row.scalars, row.learning_rate)
    if not all(map(isfinite, (*exact, row.loss, row.seconds))):
        raise ValueError(f"Step {row.step} of the step log holds a number that is none.")
    try:
        packed = numbers.pack(*exact, row.loss, min(max(row.seconds, 0.0), _MAX_FLOAT16))
    except OverflowError as error:
        raise ValueError(f"Step {row.step} of the step log holds a number too large for a 32-bit float.") from error
    if numbers.unpack(packed)[: len(exact)] != exact:
        raise ValueError(f"Step {row.step} of the step log holds a scalar or learning rate that is no 32-bit float.")
    return packed
