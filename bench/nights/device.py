"""Devices by their speed, the planner's own figures for a model on them, and what is won there, by measured curves."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pocketllm.daemon.scheduling.night import CHECKS, MIN_STEPS, TOKENS_A_WORD, Ahead
from pocketllm.daemon.scheduling.planning import Planned, plan_shapes
from pocketllm.daemon.settings import TrainingSettings
from pocketllm.daemon.training import rehearsal
from pocketllm.engine.planning.memory_model import exact_passes
from pocketllm.engine.planning.shapes import Shapes

SPEEDS = (60, 25, 5)
#: Name -> width, width of the feed-forward, layers, width of keys and values, vocabulary, and dtype of the weights, of
#: SmolLM2-135M, SmolLM2-360M, Qwen2.5-0.5B, Llama-3.2-1B and SmolLM2-1.7B.
MODELS: Mapping[str, tuple[int, int, int, int, int, str]] = {
    "135M": (576, 1536, 30, 192, 49152, "bfloat16"),
    "360M": (960, 2560, 32, 320, 49152, "bfloat16"),
    "0.5B": (896, 4864, 24, 128, 151936, "bfloat16"),
    "1B": (2048, 8192, 16, 512, 128256, "int8"),
    "1.7B": (2048, 8192, 24, 2048, 49152, "int8"),
}
_BYTES = {"bfloat16": 2.0, "int8": 1.03}
#: To start a worker and read the weights: seconds, and bytes a second.
_START_SECONDS, _READ_BYTES = 20.0, 200e6
#: What a whole diary wins, in nats per token; the words that win half of that squared; and the steps in which the rest
#: of what is to be won falls to a part in e.
_WHOLE, _HALF_WORDS, _STEPS = 1.0, 6000.0, 10.0


@dataclass(frozen=True)
class Device:
    """A model on a device. speed: of its matrix products, in GFLOP/s."""

    model: str
    speed: float
    training: TrainingSettings = field(default_factory=TrainingSettings, compare=False)

    def __str__(self) -> str:
        return f"{self.model} at {self.speed:g}"

    @cached_property
    def shapes(self) -> Shapes:
        """The model's shapes, with the speed as its calibration."""
        hidden, wide, layers, keys, vocabulary, dtype = MODELS[self.model]
        maps = {
            f"self_attn.{name}_proj": (out, hidden)
            for name, out in zip("qkvo", (hidden, keys, keys, hidden), strict=True)
        }
        maps |= {f"mlp.{name}_proj": (wide, hidden) for name in ("gate", "up")} | {"mlp.down_proj": (hidden, wide)}
        of_layer = sum(map(math.prod, maps.values()))
        return Shapes(
            name=self.model,
            is_mlm=False,
            dtype=dtype,
            compute_dtype="bfloat16",
            linears={f"model.layers.{layer}.{name}": shape for layer in range(layers) for name, shape in maps.items()},
            head=(vocabulary, hidden),
            layer_bytes=int(_BYTES[dtype] * of_layer),
            weights_bytes=int(_BYTES[dtype] * (layers * of_layer + vocabulary * hidden)),
            calibration={"gemm_flops": 1e9 * self.speed},
        )

    @cached_property
    def _planned(self) -> Planned:
        return self.plan(Ahead())

    def plan(self, ahead: Ahead) -> Planned:
        """As the daemon plans. Raises NotImplementedError where that is MeZO."""
        found = plan_shapes(self.shapes, self.training, ahead)
        if found.plan.method != "exact":
            raise NotImplementedError(f"{self}: what MeZO wins is not simulated.")
        return found

    @cached_property
    def step_seconds(self) -> float:
        """The time of a step."""
        return self._planned.prediction.seconds_per_step

    @cached_property
    def passes(self) -> float:
        """The cost of a step in forward passes."""
        return exact_passes(self.shapes, self._planned.plan)

    @cached_property
    def rehearsed(self) -> int:
        """The number of blocks of a step that are samples."""
        return rehearsal.blocks_of_step(self.training.rehearsal, self._planned.plan.batch)

    @cached_property
    def words_a_step(self) -> float:
        """The words of the owner's in a step."""
        plan = self._planned.plan
        return (plan.batch - self.rehearsed) * plan.block_tokens / TOKENS_A_WORD

    @cached_property
    def token_seconds(self) -> float:
        """The time of a forward pass per token."""
        plan = self._planned.plan
        return self.step_seconds / (self.passes * plan.batch * plan.block_tokens)

    @cached_property
    def load_seconds(self) -> float:
        """The time until a worker can compute."""
        return _START_SECONDS + self.shapes.weights_bytes / _READ_BYTES

    @property
    def shortest_job_seconds(self) -> float:
        """The time in which 20 steps are possible: with the model's first samples, validation and checkpoints."""
        samples = rehearsal.AT_ONCE * rehearsal.TOKENS * self.token_seconds
        return self.load_seconds + samples + MIN_STEPS * self.step_seconds * (1 + CHECKS)

    @cached_property
    def state_bytes(self) -> int:
        """A checkpoint: A, B and NAdam's two moments."""
        factors = sum(self.training.rank * sum(shape) for shape in self.shapes.linears.values())
        return 3 * 4 * factors


@dataclass(frozen=True)
class Known:
    """What an adapter knows: the texts that it has seen, their words, and nats per token won on new text."""

    texts: frozenset[str] = frozenset()
    words: int = 0
    won: float = 0.0


@dataclass(frozen=True)
class Lesson:
    """A job's texts in the order in which its steps come upon them.

    A text wins sqrt(words / (words + 6000)) of what a whole diary does, once a job has come to its end;
    a step closes a tenth of the gap to what the text seen so far can win. Fitted to bench.passes and the exact curves
    of bench.learn, of two diaries: 1,000 words win 0.38 of the whole, 4,000 0.63, 16,000 0.83; 10, 20 and 40 steps on
    16,000 words win 0.56, 0.78 and 0.96 of what 300 do.
    """

    before: Known
    texts: Sequence[tuple[str, int]]  #: ids and words
    words_a_step: float

    @cached_property
    def _seen(self) -> tuple[np.ndarray, np.ndarray]:
        """Words read, and words among them that were not known before, after each text."""
        new = [0 if identity in self.before.texts else words for identity, words in self.texts]
        return np.cumsum([0, *(words for _, words in self.texts)]), np.cumsum([0, *new])

    def won(self, steps: int) -> float:
        """Nats per token that the adapter wins after this number of steps."""
        read, new = self._seen
        words = self.before.words + float(np.interp(steps * self.words_a_step, read, new))
        gap = _WHOLE * math.sqrt(words / (words + _HALF_WORDS)) - self.before.won
        return self.before.won + max(0.0, gap) * (1 - math.exp(-steps / _STEPS))

    def after(self, steps: int) -> Known:
        """What the adapter knows after this number of steps."""
        read, new = self._seen
        count = int(np.searchsorted(read[1:], steps * self.words_a_step, side="right"))
        texts = self.before.texts.union(identity for identity, _ in self.texts[:count])
        return Known(texts, self.before.words + int(new[count]), self.won(steps))
