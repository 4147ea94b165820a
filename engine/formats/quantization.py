"""Group quantization to 8 or 4 bits: weights are packed at import and unpacked when a layer runs.

int8: symmetric, one scale for 64 neighbours in a row, 8.25 bits a weight. w = scale * q, q in -127..127.
int4: one scale and one minimum for 32 neighbours, 5 bits a weight. w = minimum + scale * q, q in 0..15, the same
as GGUF's Q4_1, so a Q4_1 model is imported without further loss.
"""

from collections.abc import Mapping, Sequence

import torch

PACKINGS = ("int8", "int4")
#: Neighbours in a row that share a scale.
GROUPS = {"int8": 64, "int4": 32}
SCALES, MINIMA = ".scales", ".minima"
#: Weights to unpack at a time.
_CHUNK = 2**20
#: float16's smallest positive number: the scale of a group of zeros.
_MIN_SCALE = 2.0**-24


def packable(shape: Sequence[int], packing: str) -> bool:
    """Whether a tensor of this shape can be packed: a matrix whose rows are whole groups (an even number in int4)."""
    whole = GROUPS[packing] * (2 if packing == "int4" else 1)
    return len(shape) == 2 and shape[1] > 0 and shape[1] % whole == 0


def packed_parts(name: str, shape: Sequence[int], packing: str) -> list[tuple[str, tuple[int, ...], torch.dtype]]:
    """Name, shape and dtype of each tensor that stores a packed `name` of `shape` (rows, columns)."""
    rows, columns = shape
    groups = columns // GROUPS[packing]
    if packing == "int8":
        return [(name, (rows, columns), torch.int8), (name + SCALES, (rows, groups), torch.float16)]
    return [
        (name, (rows, columns // 2), torch.uint8),
        (name + SCALES, (rows, groups), torch.float16),
        (name + MINIMA, (rows, groups), torch.float16),
    ]


def pack(rows: torch.Tensor, packing: str) -> dict[str, torch.Tensor]:
    """Pack (rows, columns) floats; returns the tensors by suffix: "", SCALES and, for int4, MINIMA."""
    groups = torch.unflatten(rows.float(), 1, (-1, GROUPS[packing]))
    return _pack_int8(groups) if packing == "int8" else _pack_int4(groups)


def unpack(parts: Mapping[str, torch.Tensor], out: torch.Tensor) -> torch.Tensor:
    """Unpack what `pack` returned into `out` (rows, columns) of any floating dtype, and return it."""
    # Computed in fp32 and rounded once: three roundings in bf16 would add a third to the quantization error. A few rows
    # at a time, so that the fp32 numbers stay in the processor's cache.
    accurate = torch.promote_types(out.dtype, torch.float32)
    at_once = max(1, _CHUNK // max(1, out.shape[1]))
    buffer = torch.empty((min(at_once, len(out)), out.shape[1]), dtype=accurate)
    for start in range(0, len(out), at_once):
        rows = out[start : start + at_once]
        numbers = buffer[: len(rows)]
        _dense({suffix: part[start : start + at_once] for suffix, part in parts.items()}, numbers)
        rows.copy_(numbers)
    return out


def _dense(parts: Mapping[str, torch.Tensor], out: torch.Tensor) -> None:
    codes, scales = parts[""], parts[SCALES].to(out.dtype).unsqueeze(2)
    if codes.dtype == torch.int8:
        torch.unflatten(out.copy_(codes), 1, (-1, GROUPS["int8"])).mul_(scales)
        return
    # A byte holds a weight of the first half of a row and one of the second, so both halves are written contiguously.
    half = out.shape[1] // 2
    out[:, :half].copy_(codes & 15)
    out[:, half:].copy_(codes >> 4)
    groups = torch.unflatten(out, 1, (-1, GROUPS["int4"]))
    groups.mul_(scales).add_(parts[MINIMA].to(out.dtype).unsqueeze(2))


def _pack_int8(groups: torch.Tensor) -> dict[str, torch.Tensor]:
    scales = (groups.abs().amax(2) / 127).clamp(min=_MIN_SCALE).half()
    codes = (groups / scales.float().unsqueeze(2)).round().clamp(-127, 127).to(torch.int8)
    return {"": codes.flatten(1), SCALES: scales}


def _pack_int4(groups: torch.Tensor) -> dict[str, torch.Tensor]:
    minima, maxima = groups.aminmax(dim=2)
    minima = minima.half()
    scales = ((maxima - minima.float()) / 15).clamp(min=_MIN_SCALE).half()
    codes = ((groups - minima.float().unsqueeze(2)) / scales.float().unsqueeze(2)).round().clamp(0, 15)
    low, high = codes.to(torch.uint8).flatten(1).chunk(2, dim=1)
    return {"": low | (high << 4), SCALES: scales, MINIMA: minima}
