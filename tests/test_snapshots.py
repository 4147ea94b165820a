"""A guided run's state on disk: what was saved comes back bit for bit, or nothing does."""

import stat
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pocketllm.mezo.descent import Descent
from pocketllm.mezo.guided import State
from pocketllm.mezo.snapshots import Snapshots
from tests.test_guided import LINE, Killed, Run, Tensors, falling, number, same, told

#: 'layers.10' sorts before 'layers.2', and the head comes last: an order that no sorting gives.
PATHS = ("model.layers.2.o_proj", "model.layers.10.o_proj", "lm_head")
TENSORS = {"b", "descent"}


def some_state(seed: int = 0) -> State:
    """A state no number of which is one of a fresh state's."""
    generator = torch.Generator().manual_seed(seed)
    b = {path: torch.randn(rows, 3, generator=generator) for rows, path in enumerate(PATHS, 4)}
    descent = Descent.over(b)
    for _ in range(2):
        descent.see({path: torch.randn(value.shape, generator=generator) for path, value in b.items()})
    return State(
        b=b,
        descent=descent,
        step=41 + seed,
        multiples={"maps": 1 / 3, "head": 0.1},
        best_loss=2.1000000000000005,
        best_step=20,
        checks_since_best=1,
        halvings=2,
        ended=True,
    )


def alike(one: State, other: State) -> bool:
    """Bit for bit, and in the same order."""
    pairs = [
        (one.b, other.b),
        (one.descent.momentum, other.descent.momentum),
        (one.descent.squares, other.descent.squares),
    ]
    return (
        all(list(mine) == list(theirs) for mine, theirs in pairs)
        and all(torch.equal(mine[path], theirs[path]) for mine, theirs in pairs for path in mine)
        and one.descent.steps == other.descent.steps
        and all(getattr(one, f.name) == getattr(other, f.name) for f in fields(one) if f.name not in TENSORS)
    )


def loaded(folder: Path) -> State:
    state = Snapshots(folder).load()
    assert state is not None
    return state


@pytest.mark.parametrize("inference", [False, True])
def test_a_state_comes_back_bit_for_bit_and_in_its_order(tmp_path: Path, inference: bool) -> None:
    with torch.inference_mode(inference):
        state = some_state()
        Snapshots(tmp_path).save(state)
        assert alike(loaded(tmp_path), state)
        assert list(loaded(tmp_path).multiples) == ["maps", "head"]
        assert alike(state, some_state())  # which saving leaves as it is


def test_the_first_state_comes_back(tmp_path: Path) -> None:
    """Its best loss is infinite, and nothing has been seen."""
    b = {"lm_head": torch.zeros(3, 2)}
    first = State(b=b, descent=Descent.over(b))
    Snapshots(tmp_path).save(first)
    assert alike(loaded(tmp_path), first)


def test_numbers_that_are_none_come_back(tmp_path: Path) -> None:
    state = some_state()
    state.b["lm_head"][0] = torch.tensor([float("nan"), float("-inf"), -0.0])
    Snapshots(tmp_path).save(state)
    assert torch.equal(loaded(tmp_path).b["lm_head"].view(torch.int32), state.b["lm_head"].view(torch.int32))


def test_what_is_loaded_goes_on_alike(tmp_path: Path) -> None:
    state, gradients = some_state(), some_state(1).b
    Snapshots(tmp_path).save(state)
    other = loaded(tmp_path)
    for one in (state, other):
        one.descent.see(gradients)
        one.descent.move(one.b, 0.1)
    assert alike(state, other)
    # The file is not what is moved.
    assert alike(loaded(tmp_path), some_state())


def test_there_is_none_before_the_first(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path / "not" / "there" / "yet")
    assert snapshots.load() is None
    with pytest.raises(OSError):
        snapshots.load_best(4)
    assert stat.S_IMODE((tmp_path / "not" / "there" / "yet").stat().st_mode) == 0o700


def test_the_last_one_counts(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for seed in range(3):
        snapshots.save(some_state(seed))
    assert alike(loaded(tmp_path), some_state(2))
    assert len(list(tmp_path.iterdir())) == 1


def state_file(folder: Path) -> Path:
    Snapshots(folder).save(some_state())
    (file,) = folder.iterdir()
    return file


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.99])
def test_a_truncated_file_is_none(tmp_path: Path, part: float) -> None:
    file = state_file(tmp_path)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * part)])
    assert Snapshots(tmp_path).load() is None


@pytest.mark.parametrize("garbage", [b"\0" * 500, b"\xff" * 500, b"{}", b"\x02\0\0\0\0\0\0\0{}"])
def test_garbage_is_none(tmp_path: Path, garbage: bytes) -> None:
    state_file(tmp_path).write_bytes(garbage)
    assert Snapshots(tmp_path).load() is None


def test_numbers_that_cannot_be_read_are_none(tmp_path: Path) -> None:
    file = state_file(tmp_path)
    for text in (b"{", b"\xff\xfe", b""):
        tensors = {key: value.clone() for key, value in load_file(file).items()}
        tensors["numbers"] = torch.tensor(list(text), dtype=torch.uint8)
        save_file(tensors, file)
        assert Snapshots(tmp_path).load() is None


@pytest.mark.parametrize("lacking", ["b.lm_head", "momentum.lm_head", "squares.lm_head"])
def test_a_file_that_lacks_a_matrix_is_none(tmp_path: Path, lacking: str) -> None:
    """Whole, but of another version of the program, say."""
    file = state_file(tmp_path)
    save_file({key: value.clone() for key, value in load_file(file).items() if key != lacking}, file)
    assert Snapshots(tmp_path).load() is None


def test_a_file_that_lacks_a_number_is_none(tmp_path: Path) -> None:
    file = state_file(tmp_path)
    tensors = {key: value.clone() for key, value in load_file(file).items()}
    tensors["numbers"] = torch.tensor(list(b'{"step": 3}'), dtype=torch.uint8)
    save_file(tensors, file)
    assert Snapshots(tmp_path).load() is None


def test_leftovers_of_a_killed_writer_do_not_matter(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.save(some_state())
    snapshots.save_best(some_state().b, 4)
    before = set(tmp_path.iterdir())
    for file in before:
        file.with_name(f".{file.name}.writing").write_bytes(b"half" * 10_000)
    assert alike(loaded(tmp_path), some_state())
    assert snapshots.load_best(4).keys() == set(PATHS)
    snapshots.save(some_state(1))
    snapshots.save_best(some_state(1).b, 4)
    assert alike(loaded(tmp_path), some_state(1))
    assert set(tmp_path.iterdir()) == before


def test_the_best_comes_back_bit_for_bit(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for seed in (3, 4):
        snapshots.save_best(some_state(seed).b, 4)
    best = Snapshots(tmp_path).load_best(4)
    assert best.keys() == set(PATHS)
    assert all(torch.equal(b, best[path]) for path, b in some_state(4).b.items())
    assert Snapshots(tmp_path).load() is None  # which is another file


def test_a_best_that_was_loaded_is_not_changed_by_the_next(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    snapshots.save_best(some_state(3).b, 4)
    best = snapshots.load_best(4)
    snapshots.save_best(some_state(4).b, 4)
    assert all(torch.equal(b, best[path]) for path, b in some_state(3).b.items())


def test_a_cut_run_goes_back_to_what_was_the_best_then_not_to_what_became_it_later(
    tmp_path: Path,
) -> None:
    """Killed after a new best that the state which was saved last knows nothing of, with a going back between."""

    def check(b: Tensors) -> float:
        return {0.0: 10, 1.0: 9, 2.0: 8, 3.0: 7, 3.5: 6}.get(round(float(b["lm_head"]), 3), 20)

    undisturbed = Run(plan=LINE, look=falling, begin=number, check=check, keeper=Snapshots(tmp_path / "undisturbed"))
    expected = undisturbed.go()
    assert (expected.best_step, expected.step) == (5, 8)  # 1, 2, 3, 4 (back), 3.5, and further no more
    for until in range(4, 8):
        keeper = Snapshots(tmp_path / str(until))
        run = Run(plan=LINE, look=falling, begin=number, check=check, keeper=keeper)
        run.clock = lambda run=run: 30.0 * (len(run.rows) >= 3)  # type: ignore[misc]
        with pytest.raises(Killed):
            run.go(until=until)
        saved = keeper.load()
        assert saved is not None
        assert saved.step == 3
        state = run.go()
        assert told(run.rows) == told(undisturbed.rows), until
        assert (state.best_step, state.step, state.halvings) == (5, 8, expected.halvings), until
        assert same(run.theta.b, undisturbed.theta.b), until
