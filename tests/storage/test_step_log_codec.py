"""The step log as bytes and as a file: exact where a replay needs it, small, and refused when anything is wrong."""

import json
import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pocketllm.storage.step_log_codec import StepRow, decode, encode, losses_in, probes_in, steps_in
from pocketllm.storage.step_log_export import MAGIC, export_step_log, read_export
from pocketllm.storage.tables import Job, JobState, Requester
from tests.support.workers import NOW, TRAINING


def row(step: int, **changed: Any) -> StepRow:
    values: dict[str, Any] = {
        "step": step,
        "seed": 2**63 - 1,
        "scalars": (0.5 * step,),
        "loss": 3.25,
        "learning_rate": 2**-10,
        "tokens": 100,
        "seconds": 2.5,
    }
    return StepRow(**values | changed)


def rows(count: int, **changed: Any) -> list[StepRow]:
    return [row(step, **changed) for step in range(1, count + 1)]


def a_job(**changed: Any) -> Job:
    values: dict[str, Any] = {
        "id": "job-1",
        "state": JobState.SUCCEEDED,
        "requested_by": Requester.OWNER,
        "model": "tiny",
        "seed": 2**63 - 1,
        "settings": TRAINING.model_dump(mode="json"),
        "total_steps": 300,
        "created_at": NOW,
    }
    return Job(**values | changed)


def test_rows_come_back() -> None:
    given = rows(50)
    data = encode(given)
    assert list(decode(data)) == given
    assert list(decode(data, first=49)) == given[48:]
    assert list(decode(data, first=51)) == []
    assert (steps_in(data), probes_in(data)) == (50, 1)


@pytest.mark.parametrize("probes", [1, 3])
def test_losses_of_some_steps(probes: int) -> None:
    given = [row(step, loss=step / 64, scalars=(0.5,) * probes) for step in range(1, 51)]
    data = encode(given)
    assert losses_in(data, [1, 7, 50]) == [1 / 64, 7 / 64, 50 / 64]
    assert losses_in(data, []) == []
    with pytest.raises(ValueError, match="cut short"):
        losses_in(data[:-1], [1])


def test_a_step_takes_fourteen_bytes_and_four_more_a_probe() -> None:
    for probes in (1, 2, 64):
        scalars = (0.5,) * probes
        longer, shorter = (len(encode(rows(count, scalars=scalars))) for count in (1001, 1))
        assert longer - shorter == 1000 * (10 + 4 * probes)


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    steps=st.integers(1, 64).flatmap(
        lambda probes: st.lists(
            st.tuples(
                st.tuples(*[FLOATS] * probes),
                FLOATS,
                st.floats(-3e38, 3e38),
                st.integers(0, 2**40),
                st.floats(0, 1e6),
            ),
            min_size=1,
            max_size=20,
        )
    ),
)
def test_whatever_is_in_the_rows_what_a_replay_needs_is_exact(seed: int, steps: list[Any]) -> None:
    given = [
        StepRow(step=n, seed=seed, scalars=s, learning_rate=rate, loss=loss, tokens=tokens, seconds=seconds)
        for n, (s, rate, loss, tokens, seconds) in enumerate(steps, 1)
    ]
    data = encode(given)
    back = list(decode(data))
    assert [bits(*b.scalars, b.learning_rate) for b in back] == [bits(*g.scalars, g.learning_rate) for g in given]
    assert {b.seed for b in back} == {seed}
    assert [bits(b.loss) for b in back] == [struct.pack("<f", g.loss) for g in given]
    assert [b.seconds for b in back] == pytest.approx([min(g.seconds, 65504) for g in given], rel=1e-3, abs=1e-7)
    assert sum(b.tokens for b in back) == sum(g.tokens for g in given)
    assert max(b.tokens for b in back) - min(b.tokens for b in back) <= 1
    assert encode(back) == data


def bits(*numbers: float) -> bytes:
    return struct.pack(f"<{len(numbers)}f", *numbers)


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ([], "0 steps and 0 probes"),
        ([row(1, scalars=())], "1 steps and 0 probes"),
        ([row(2)], "Step 1 of the step log is missing: step 2"),
        ([row(1), row(3)], "Step 2 of the step log is missing"),
        ([row(1), row(1)], "Step 2 of the step log is missing: step 1"),
        ([row(1), row(2, seed=1)], "another seed"),
        ([row(1), row(2, scalars=(1.0, 2.0))], "number of probes"),
        ([row(1, scalars=(0.1,))], "Step 1 .* no 32-bit float"),
        ([row(1), row(2, learning_rate=1e-3)], "Step 2 .* no 32-bit float"),
        ([row(1, scalars=(1e-50,))], "no 32-bit float"),
        ([row(1, scalars=(1e39,))], "too large"),
        ([row(1, loss=1e39)], "too large"),
        ([row(1, scalars=(float("nan"),))], "a number that is not finite"),
        ([row(1, learning_rate=float("inf"))], "a number that is not finite"),
        ([row(1, loss=float("-inf"))], "a number that is not finite"),
        ([row(1, seconds=float("nan"))], "a number that is not finite"),
        ([row(1, seed=2**63)], "cannot be encoded"),
        ([row(1, tokens=-1)], "cannot be encoded"),
    ],
)
def test_rows_that_would_not_come_back_are_refused(bad: list[StepRow], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        encode(bad)


def test_any_cut_and_any_other_encoding_is_refused() -> None:
    data = encode(rows(3))
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"cut short|holds no step"):
            decode(data[:length])
    for other in (data + b"\0", data[:4] + b"\xff\xff\xff\xff" + data[8:]):
        with pytest.raises(ValueError, match="cut short or damaged"):
            decode(other)
    with pytest.raises(ValueError, match="encoding 9; this PocketLLM reads encoding 1"):
        decode(b"\x09" + data[1:])
    with pytest.raises(ValueError, match="holds no step"):
        decode(bytes([1]) + bytes(len(data) - 1))


def test_an_export_holds_what_a_replay_needs_and_little_else() -> None:
    given = rows(300)
    job = a_job(mode="full", parent="adapter-0")
    data = export_step_log(job, encode(given), base_sha256="ab" * 32)
    found = read_export(data)
    assert found.rows == given
    assert found.header == {
        "job": "job-1",
        "model": "tiny",
        "mode": "full",
        "seed": 2**63 - 1,
        "probes": 1,
        "noise": "rademacher",
        "total_steps": 300,
        "settings": found.header["settings"],
        "parent": "adapter-0",
        "base_sha256": "ab" * 32,
        "encoding": 1,
    }
    assert found.header["settings"].items() <= job.settings.items()
    assert {"rank", "targets", "batch", "template"} <= found.header["settings"].keys()
    assert len(data) - len(encode(given)) < 1000


def test_an_export_of_an_old_job_has_what_its_settings_have() -> None:
    found = read_export(export_step_log(a_job(settings={"rank": 2, "new_words": 9}), encode(rows(1))))
    assert (found.header["settings"], found.header["noise"], found.header["base_sha256"]) == (
        {"rank": 2},
        "rademacher",
        None,
    )


def test_an_export_says_what_memory_allowed_not_what_was_asked_for() -> None:
    plan = {"block_tokens": 8, "targets": ["q_proj"], "rows_at_once": 2}
    found = read_export(export_step_log(a_job(plan=plan), encode(rows(1)))).header["settings"]
    assert (found["block_tokens"], found["targets"], found["rank"]) == (8, ["q_proj"], TRAINING.rank)
    assert "rows_at_once" not in found


def test_every_cut_of_an_export_is_refused() -> None:
    data = export_step_log(a_job(), encode(rows(3)))
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r"not an exported step log|cut short or damaged"):
            read_export(data[:length])


def test_every_flipped_bit_of_an_export_is_found() -> None:
    data = export_step_log(a_job(), encode(rows(3)))
    for place in range(len(data)):
        for bit in range(8):
            flipped = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            with pytest.raises(ValueError, match=r"not an exported step log|cut short or damaged"):
                read_export(flipped)


@pytest.mark.parametrize(
    "foreign", [b"", b"\0" * 100, b"PK\x03\x04", b"{}\n", MAGIC[:-2], MAGIC * 2, MAGIC + b"\n" * 9]
)
def test_foreign_files_are_refused(foreign: bytes) -> None:
    with pytest.raises(ValueError, match=r"not an exported step log|cut short or damaged"):
        read_export(foreign)


def made_by_hand(header: bytes, encoded: bytes) -> bytes:
    """A file whose checksum fits."""
    return MAGIC + header + b"\n" + zlib.crc32(header + b"\n" + encoded).to_bytes(4, "little") + encoded


HEADER = json.loads(export_step_log(a_job(), encode(rows(3))).split(b"\n")[1])


@pytest.mark.parametrize(
    ("header", "encoded", "says"),
    [
        (b"", encode(rows(3)), "header is not JSON"),
        (b"\xff\xfe", encode(rows(3)), "header is not JSON"),
        (b"[" * 100_000, encode(rows(3)), "header is not JSON"),
        (b"[]", encode(rows(3)), "header lacks some of: base_sha256, "),
        (b'{"job": 1}', encode(rows(3)), "header lacks some of"),
        (json.dumps(HEADER).encode(), b"", "too few"),
        (json.dumps(HEADER).encode(), encode(rows(3))[:-1], "cut short or damaged"),
        (json.dumps(HEADER | {"probes": 2}).encode(), encode(rows(3)), "does not fit"),
        (json.dumps(HEADER | {"seed": 2}).encode(), encode(rows(3)), "does not fit"),
        (json.dumps(HEADER).encode(), encode(rows(3))[:-14] + b"\xff" * 14, "a number that is not finite"),
    ],
)
def test_files_made_by_hand_are_refused(header: bytes, encoded: bytes, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        read_export(made_by_hand(header, encoded))


def test_a_file_with_a_sound_header_is_read() -> None:
    assert len(read_export(made_by_hand(json.dumps(HEADER).encode(), encode(rows(3)))).rows) == 3
