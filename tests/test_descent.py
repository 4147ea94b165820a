"""Steps from gradients: how far each number goes, and what a probe sees of a step before it is taken."""

import pytest
import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.descent import Descent, GivenDirection, StepDirection

LENGTH = 1e-2

Tensors = dict[str, torch.Tensor]


def randoms(seed: int = 0, *, size: float = 1.0) -> Tensors:
    """Matrices of several shapes; one has more rows than are worked on at a time."""
    generator = torch.Generator().manual_seed(seed)
    shapes = {"head": (9000, 3), "one": (7, 4), "two": (1, 5)}
    return {path: torch.randn(shape, generator=generator) * size for path, shape in shapes.items()}


def signs(seed: int, rows: int, columns: int) -> torch.Tensor:
    return torch.randint(0, 2, (rows, columns), generator=torch.Generator().manual_seed(seed)) * 2.0 - 1


def moved(descent: Descent, length: float = LENGTH) -> Tensors:
    """How far a step takes each number, from zero."""
    b = {path: torch.zeros_like(momentum) for path, momentum in descent.momentum.items()}
    descent.move(b, length)
    return b


def seen(*gradients: Tensors) -> Descent:
    descent = Descent.over(gradients[0])
    for some in gradients:
        descent.see(some)
    return descent


@pytest.mark.parametrize("size", [1e-8, 1e-3, 1.0, 1e4])
def test_the_first_step_is_length_a_number_however_large_the_gradients_are(size: float) -> None:
    gradient = signs(0, 50, 8) * size
    step = moved(seen({"b": gradient}))["b"]
    assert torch.allclose(step, -LENGTH * gradient.sign(), rtol=1e-4)


def test_the_first_step_of_random_gradients_has_length_as_its_root_mean_square() -> None:
    for path, step in moved(seen(randoms(size=1e-4))).items():
        assert float(step.square().mean().sqrt()) == pytest.approx(LENGTH, rel=0.15), path


def test_steps_stay_as_long_while_gradients_stay_the_same() -> None:
    gradients = {"b": signs(0, 6, 4) * 1e-3}
    for steps in (1, 2, 3, 10, 300):
        step = moved(seen(*[gradients] * steps))["b"]
        assert torch.allclose(step, -LENGTH * gradients["b"].sign(), rtol=1e-3), steps


def test_gradients_that_contradict_each_other_move_less() -> None:
    one = {"b": signs(0, 6, 4)}
    other = {"b": -one["b"]}
    assert float(moved(seen(one, other, one, other))["b"].abs().max()) < 0.2 * LENGTH


def test_a_rare_row_moves_less_than_by_its_own_size_and_more_than_by_the_matrix() -> None:
    rare = 1e-2
    gradient = signs(0, 100, 4)
    gradient[7] *= rare
    step = moved(seen({"b": gradient}))["b"].abs()
    common = float(step[0].mean())
    assert common == pytest.approx(LENGTH, rel=0.01)
    # Normalised by the row it would go as far as the others, by the matrix a hundredth of that.
    assert 3 * rare * common < float(step[7].mean()) < common / 3
    assert float(step[7].mean()) == pytest.approx(rare**0.5 * common, rel=0.01)


def test_a_word_that_comes_once_in_many_steps_moves_less_than_one_that_always_comes() -> None:
    common, both = signs(0, 2, 4), signs(0, 2, 4)
    common[1] = 0
    step = moved(seen(*[{"b": common}] * 19, {"b": both}))["b"].abs()
    assert 0 < float(step[1].mean()) < 0.5 * float(step[0].mean())


def test_each_matrix_has_a_size_of_its_own() -> None:
    step = moved(seen({"small": signs(0, 4, 4) * 1e-6, "large": signs(1, 4, 4) * 1e3}))
    assert torch.allclose(step["small"].abs(), step["large"].abs(), rtol=1e-3)


def test_what_has_no_gradient_stays_where_it_is() -> None:
    gradient = signs(0, 5, 3)
    gradient[2] = 0
    step = moved(seen({"b": gradient, "nothing": torch.zeros(4, 2)}))
    assert step["b"][2].count_nonzero() == 0
    assert step["b"][0].count_nonzero() == 3
    assert step["nothing"].count_nonzero() == 0


def test_moves_these_of_the_matrices_alone_and_in_place() -> None:
    descent, b = seen(randoms()), randoms(1)
    before = {path: value.clone() for path, value in b.items()}
    kept = b["one"]
    descent.move({"one": b["one"]}, LENGTH)
    assert b["one"] is kept
    assert not torch.equal(b["one"], before["one"])
    assert torch.equal(b["head"], before["head"])
    assert torch.equal(b["two"], before["two"])


def test_the_slope_along_a_step_is_below_zero_for_its_own_gradient() -> None:
    gradients = randoms()
    assert seen(gradients).slope(gradients) < 0


def test_the_slope_is_what_the_loss_changes_by_a_length() -> None:
    descent, gradients = seen(randoms(0), randoms(1)), randoms(2)
    step = moved(descent, 1.0)
    expected = sum(float((gradient.double() * step[path]).sum()) for path, gradient in gradients.items())
    assert descent.slope(gradients) == pytest.approx(expected, rel=1e-4)
    uphill = {path: -gradient for path, gradient in gradients.items()}
    assert descent.slope(uphill) == -descent.slope(gradients)


class TestAlong:
    """The step that is about to be taken, as a direction."""

    @pytest.mark.parametrize("steps", [1, 3])
    def test_is_what_move_does(self, steps: int) -> None:
        descent = seen(*[randoms(seed) for seed in range(steps)])
        z, step = descent.along(dict.fromkeys(["head", "one", "two"], LENGTH)), moved(descent)
        for number, (path, expected) in enumerate(step.items()):
            assert torch.allclose(z.of(number, expected.shape), expected, rtol=1e-5, atol=1e-9), path

    def test_any_rows_are_those_of_the_whole(self) -> None:
        descent = seen(randoms(0), randoms(1))
        z, shape = descent.along(dict.fromkeys(["head"], LENGTH)), (9000, 3)
        whole = z.of(0, shape)
        ids = torch.tensor([8999, 0, 17, 17])
        assert torch.equal(z.rows(0, shape, 8190, 8200), whole[8190:8200])
        assert torch.equal(z.gather(0, shape, ids), whole[ids])
        assert z.rows(0, shape, 3, 3).shape == (0, 3)
        assert z.gather(0, shape, ids, torch.bfloat16).dtype == torch.bfloat16
        assert torch.equal(z.of(0, shape, torch.bfloat16), whole.bfloat16())

    def test_is_nothing_along_other_matrices(self) -> None:
        z = seen(randoms()).along(dict.fromkeys(["one"], LENGTH))
        assert z.of(1, (7, 4)).count_nonzero() == 28
        for number, shape in ((0, (9000, 3)), (2, (1, 5))):
            assert torch.equal(z.of(number, shape), torch.zeros(shape))
        assert torch.equal(z.gather(0, (9000, 3), torch.tensor([5, 5])), torch.zeros(2, 3))
        assert z.rows(0, (9000, 3), 1, 4, torch.bfloat16).dtype == torch.bfloat16

    def test_leads_an_adapter_where_move_leads_its_b(self) -> None:
        descent, b = seen(randoms()), randoms(1)
        adapter = Adapter(base="x", alpha=1.0, a={path: torch.ones(1, 1) for path in b}, b=randoms(1))
        for paths in (["head"], ["one", "two"]):
            adapter.move(descent.along(dict.fromkeys(paths, LENGTH)), 1.0)
        descent.move(b, LENGTH)
        assert all(torch.allclose(adapter.b[path], b[path], rtol=1e-5, atol=1e-7) for path in b)

    def test_without_a_length_is_nothing(self) -> None:
        assert seen(randoms()).along(dict.fromkeys(["one"], 0.0)).of(1, (7, 4)).count_nonzero() == 0


def test_a_given_direction_is_what_is_given() -> None:
    given = randoms()["one"]
    z, ids = GivenDirection({1: given}), torch.tensor([6, 2])
    assert torch.equal(z.of(1, (7, 4)), given)
    assert torch.equal(z.rows(1, (7, 4), 2, 5), given[2:5])
    assert torch.equal(z.gather(1, (7, 4), ids, torch.bfloat16), given[ids].bfloat16())
    assert torch.equal(z.of(0, (3, 2)), torch.zeros(3, 2))
    assert torch.equal(z.gather(2, (7, 2), ids), torch.zeros(2, 2))


def test_the_same_gradients_make_the_same_steps_bit_for_bit() -> None:
    some = [randoms(seed) for seed in range(5)]
    one, two = seen(*some), seen(*some)
    # Taken up again in the middle, from what is written down of it.
    half = seen(*some[:3])
    resumed = Descent(
        {path: value.clone() for path, value in half.momentum.items()},
        {path: value.clone() for path, value in half.squares.items()},
        half.steps,
    )
    for gradients in some[3:]:
        resumed.see(gradients)
    for other in (two, resumed):
        assert other.steps == one.steps == 5
        assert all(torch.equal(step, moved(other)[path]) for path, step in moved(one).items())
        assert other.slope(some[0]) == one.slope(some[0])


def test_gradients_are_left_as_they_are() -> None:
    gradients, before = randoms(), randoms()
    descent = seen(gradients)
    descent.slope(gradients)
    assert isinstance(descent.along(dict.fromkeys(["one"], 1.0)), StepDirection)
    gradients["one"].fill_(7)  # the guide uses their memory again
    again = seen(before)
    assert all(torch.equal(gradients[path], before[path]) for path in ("head", "two"))
    assert all(torch.equal(step, moved(again)[path]) for path, step in moved(descent).items())
