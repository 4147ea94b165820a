"""A whole guided run on a tiny real model, from blocks of text to a taught adapter, with forward passes alone."""

import ast
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

from pocketllm.mezo.adapters import Adapter
from pocketllm.mezo.aiming import Aimed
from pocketllm.mezo.batches import Buckets
from pocketllm.mezo.carrying import LAYERS_AT_ONCE
from pocketllm.mezo.guided import State
from pocketllm.mezo.guided_run import (
    aimed_at,
    begin,
    go_on,
    lowest_layer,
    train,
)
from pocketllm.mezo.kept_aside import divide
from pocketllm.mezo.loop import Row
from pocketllm.mezo.model import LanguageModel
from pocketllm.mezo.native import NativeModel, open_native
from pocketllm.mezo.snapshots import Snapshots
from tests.learning import ALL_ROWS, ROOT, equal, mean_loss, some_adapter, some_blocks
from tests.tiny_models import tiny_native

STEPS, RANK, HEAD_RANK = 20, 4, 8
BUCKETS = (some_blocks(24), some_blocks(13, 8))
#: What training must not need. `requires_grad_(False)` and `requires_grad=False` say so, and may stand.
BANNED = {"backward", "autograd", "enable_grad"}


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeModel:
    """Four layers, of which the aim looks at the upper two."""
    return open_native(tiny_native(tmp_path_factory.mktemp("models"), dtype="float32", layers=4))


def begun(model: LanguageModel, *, seed: int = 0) -> Aimed:
    return begin(model, BUCKETS, rank=RANK, head_rank=HEAD_RANK, seed=seed, rows_at_once=ALL_ROWS)


class Killed(Exception):
    """In place of a real kill."""


@dataclass
class Run:
    """Of a job that may be started several times, each time with a model of its own."""

    native: NativeModel
    folder: Path
    seed: int = 0
    lanes: int = 1
    cache_bytes: int = 10**7
    seconds: float = 0.0  #: that pass whenever the clock is read
    rows: list[Row] = field(default_factory=list)
    measured: list[int] = field(default_factory=list)

    @torch.inference_mode()
    def go(self, *, until: int | None = None) -> tuple[Adapter, State]:
        model, now = LanguageModel(self.native, lanes=self.lanes), 0.0
        guided = go_on(model, begun(model, seed=self.seed).adapter)

        def clock() -> float:
            nonlocal now
            now += self.seconds
            return now

        def keep(row: Row) -> None:
            self.rows.append(row)
            if row.step == until:
                raise Killed

        state = train(
            model,
            BUCKETS,
            guided,
            seed=self.seed,
            steps=STEPS,
            batch=8,
            measure_every=5,
            rows_at_once=ALL_ROWS,
            folder=self.folder,
            cache_bytes=self.cache_bytes,
            done=len(self.rows),
            keep=keep,
            measure=self.measured.append,
            remaining=lambda step: 1 - (step - 1) / STEPS,
            clock=clock,
        )
        return guided.adapter, state


class TestBegin:
    @torch.inference_mode()
    def test_aims_at_the_head_and_at_layers_that_the_guide_serves(self, native: NativeModel) -> None:
        aimed = begun(LanguageModel(native))
        (top,) = aimed.aims
        assert top.first == 4 - LAYERS_AT_ONCE
        assert list(top.paths) == [
            f"model.layers.{n}.{name}"
            for n in (2, 3)
            for name in ("self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        ]
        assert list(aimed.adapter.a) == [*top.paths, "lm_head"]
        assert [len(a) for a in aimed.adapter.a.values()] == [RANK] * 8 + [HEAD_RANK]
        assert aimed.adapter.scaling == 1
        assert not any(b.count_nonzero() for b in aimed.adapter.b.values())
        assert 0.5 < top.agreement < 1.5
        # The head's part of the guide is exact, so that chance is no match for it.
        assert aimed.guide_promise > 3 * aimed.random_promise > 0

    @torch.inference_mode()
    def test_what_the_maps_see_is_white(self, native: NativeModel) -> None:
        """Each number of A x has a mean square of one for the head, of the stream's for the maps that write into it,
        of the map's own output for the others, and no two numbers go together.
        """
        model = LanguageModel(native)
        adapter, blocks = begun(model).adapter, aimed_at(BUCKETS)
        model.use(None)
        seen: dict[str, torch.Tensor] = {}
        hooks = [
            module.register_forward_pre_hook(lambda _, x, path=path: seen.update({path: x[0].flatten(0, -2)}))
            for path, module in model.network.named_modules()
            if path in adapter.a or path == "model.norm"
        ]
        model.hidden(blocks)
        for hook in hooks:
            hook.remove()
        square = float(seen["model.norm"].square().mean())
        squares = {
            path: float((seen[path] @ model.linears[path].weights.weight.floats.float().t()).square().mean())
            for path in adapter.a
            if path.endswith(("gate_proj", "up_proj"))
        }
        for path, a in adapter.a.items():
            low = seen[path] @ a.t()
            expected = torch.eye(len(a)) * (1 if path == "lm_head" else squares.get(path, square))
            assert torch.allclose(low.t() @ low / len(low), expected, rtol=0, atol=2e-3 * float(expected.max())), path

    @torch.inference_mode()
    def test_is_the_same_each_time_and_does_not_look_through_an_adapter_in_use(self, native: NativeModel) -> None:
        model = LanguageModel(native)
        one = begun(model)
        model.use(some_adapter(model))
        assert equal(begun(model).adapter, one.adapter)
        assert begun(LanguageModel(native)).aims == one.aims
        assert not equal(begun(model, seed=1).adapter, one.adapter)

    @torch.inference_mode()
    def test_a_model_of_few_layers_is_taught_by_its_head(self, tiny: NativeModel) -> None:
        model = LanguageModel(tiny)
        adapter = begun(model).adapter
        assert model.head_path in adapter.a
        assert adapter.scaling == 1

    @torch.inference_mode()
    def test_states_are_kept_in_front_of_the_lowest_adapted_layer(self, native: NativeModel) -> None:
        model = LanguageModel(native)
        assert lowest_layer(model, begun(model).adapter) == 2
        assert lowest_layer(model, some_adapter(model)) == 0
        head = Adapter(base="x", alpha=1.0, a={"lm_head": torch.ones(1, 32)}, b={"lm_head": torch.zeros(259, 1)})
        assert lowest_layer(model, head) == 3


class TestTrain:
    def test_the_loss_falls_on_what_is_learned_and_on_what_is_only_looked_at(
        self, native: NativeModel, tmp_path: Path
    ) -> None:
        run = Run(native, tmp_path / "run")
        adapter, state = run.go()
        learned, checked = divide(BUCKETS)
        model = LanguageModel(native)
        for part in (learned, checked):
            before, after = losses(model, None, part), losses(model, adapter, part)
            assert after < before - 0.05
        assert state.best_loss == pytest.approx(losses(model, adapter, checked), abs=1e-5)
        assert state.step == STEPS
        assert run.measured == [0, 5, 10, 15, STEPS]
        assert [row.step for row in run.rows] == list(range(1, STEPS + 1))
        assert all(row.scalars[0] < 0 for row in run.rows[:3])

    def test_nothing_of_it_is_known_to_autograd(self, native: NativeModel, tmp_path: Path) -> None:
        adapter, _ = Run(native, tmp_path / "run").go()
        assert all(b.count_nonzero() for b in adapter.b.values())
        for tensor in (*adapter.a.values(), *adapter.b.values()):
            assert not tensor.requires_grad
            assert tensor.grad_fn is None

    def test_two_runs_are_the_same_bit_for_bit_and_another_seed_is_another(
        self, native: NativeModel, tmp_path: Path
    ) -> None:
        one, state = Run(native, tmp_path / "one").go()
        two, again = Run(native, tmp_path / "two", seconds=30, cache_bytes=0).go()
        assert equal(one, two)
        assert state.best_loss == again.best_loss
        assert not equal(one, Run(native, tmp_path / "other", seed=1).go()[0])

    @pytest.mark.parametrize("until", [1, 6, STEPS])
    def test_a_run_that_is_cut_ends_like_an_undisturbed_one_bit_for_bit(
        self, native: NativeModel, tmp_path: Path, until: int
    ) -> None:
        undisturbed = Run(native, tmp_path / "undisturbed")
        expected, _ = undisturbed.go()
        run = Run(native, tmp_path / "cut", seconds=3.0)  # which saves every third step
        with suppress(Killed):
            run.go(until=until)
        assert len(run.rows) == until
        assert (Snapshots(run.folder).load() is None) == (until < 3)
        adapter, _ = run.go()
        assert equal(adapter, expected)
        assert [row.loss for row in run.rows] == [row.loss for row in undisturbed.rows]

    def test_lanes_make_no_difference_but_for_roundings(self, native: NativeModel, tmp_path: Path) -> None:
        _, one = Run(native, tmp_path / "one").go()
        _, two = Run(native, tmp_path / "two", lanes=2).go()
        assert two.best_loss == pytest.approx(one.best_loss, abs=1e-3)


@torch.inference_mode()
def losses(model: LanguageModel, adapter: Adapter | None, buckets: Buckets) -> float:
    model.use(adapter)
    return sum(mean_loss(model, blocks) * blocks.tokens for blocks in buckets) / sum(b.tokens for b in buckets)


def backward_passes(source: str) -> Iterator[str]:
    """What in a module's code, its texts aside, has to do with backward passes."""
    for node in ast.walk(ast.parse(source)):
        match node:
            case ast.Attribute(attr=name) | ast.Name(id=name) | ast.alias(name=name) | ast.ImportFrom(module=name):
                yield from BANNED.intersection((name or "").split("."))
            case ast.keyword(arg="requires_grad", value=value) if not is_false(value):
                yield ast.unparse(node)
            case ast.Call(func=ast.Attribute(attr="requires_grad_"), args=values) if not all(
                map(is_false, values or [node])
            ):
                yield ast.unparse(node)
        if isinstance(node, ast.Assign) and any(ast.unparse(goal).endswith(".requires_grad") for goal in node.targets):
            yield ast.unparse(node)


def is_false(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is False


def test_no_module_knows_a_backward_pass() -> None:
    files = sorted((ROOT / "mezo").rglob("*.py"))
    assert len(files) > 30
    assert not [f"{path.name}: {found}" for path in files for found in backward_passes(path.read_text())]


@pytest.mark.parametrize(
    "source",
    [
        "loss.backward()",
        "torch.autograd.grad(x, y)",
        "from torch.autograd import grad",
        "import torch.autograd as t",
        "with torch.enable_grad():\n    pass",
        "x.requires_grad_()",
        "x.requires_grad_(True)",
        "x = torch.zeros(1, requires_grad=True)",
        "x.requires_grad = True",
    ],
)
def test_the_check_sees_a_backward_pass(source: str) -> None:
    assert list(backward_passes(source))
    assert not list(backward_passes(f'"""No {source.splitlines()[0]}"""\nx.requires_grad_(False)'))
