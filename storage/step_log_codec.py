"""A compact encoding of a step log: a header, then a few numbers for each step, all little endian.

Header: encoding version, probes a step, number of steps, seed, tokens of all steps. A step: each probe's scalar,
learning rate and loss as float32, and seconds as float16: 14 bytes with one probe. Scalars and learning rates are
float32 in use, so a replay of the decoded rows is bit-equal. The rest is for people: loss has 7 digits, seconds have 3
(up to 65504), and a step's tokens are the mean over all steps, rounded so that the sum is exact. Decoded rows are
encoded to the same bytes again.

Needs neither torch nor a database.
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
    """Encode rows, which are consumed one by one.

    Raises ValueError when the steps are not 1, 2, 3, ..., when they differ in seed or number of probes, when a scalar
    or learning rate is no float32, or a number is not finite.
    """
    data = bytearray(_HEADER.size)
    steps = tokens = seed = probes = 0
    for steps, row in enumerate(rows, 1):
        if steps == 1:
            seed, probes = row.seed, len(row.scalars)
        if row.step != steps:
            raise ValueError(f"Step {steps} of the step log is missing: step {row.step} is in its place.")
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
    """Decode the rows from step `first` on, lazily.

    Raises ValueError at once, not at the first row, for invalid data.
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
    """The losses of some steps, without decoding the others. Raises ValueError for invalid data."""
    probes, count, _, _ = _header(data)
    size = _numbers(probes).size
    if len(data) != _HEADER.size + count * size:
        raise ValueError(_damaged(count, len(data)))
    offset = _HEADER.size + 4 * (probes + 1)  # after the scalars and the learning rate
    return [_LOSS.unpack_from(data, offset + (step - 1) * size)[0] for step in steps]


def steps_in(data: bytes) -> int:
    """The number of steps in encoded rows. Raises ValueError for invalid data."""
    return _header(data)[1]


def probes_in(data: bytes) -> int:
    """The number of probes a step in encoded rows. Raises ValueError for invalid data."""
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
        raise ValueError(f"Step {row.step} of the step log has a number that is not finite.")
    try:
        packed = numbers.pack(*exact, row.loss, min(max(row.seconds, 0.0), _MAX_FLOAT16))
    except OverflowError as error:
        raise ValueError(f"Step {row.step} of the step log has a number too large for a 32-bit float.") from error
    if numbers.unpack(packed)[: len(exact)] != exact:
        raise ValueError(f"Step {row.step} of the step log has a scalar or learning rate that is no 32-bit float.")
    return packed
