"""A guided run's state on disk: whole or not at all, so that a kill costs the steps since the last one and no more."""

import json
from dataclasses import fields
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from pocketllm.mezo.descent import Descent
from pocketllm.mezo.guided import State
from pocketllm.mezo.tensor_file import write_tensors

#: A best is kept until a state is saved that has a later one: a run that is resumed goes back to its own best, not to
#: one that an earlier start had found further on.
_STATE, _BEST = "state.safetensors", "best-{}.safetensors"
_NUMBERS = "numbers"  # the tensor that holds what is none, as the bytes of JSON
_TENSORS = {"b", "descent"}


class Snapshots:
    """pocketllm.mezo.guided.Keeper in a folder."""

    def __init__(self, folder: Path) -> None:
        """The folder is made where it is not there."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder

    def save(self, state: State) -> None:
        """Write the state down. Raises OSError when the disk is full; what was there before stays."""
        tensors = {f"b.{path}": b for path, b in state.b.items()}
        tensors |= {f"momentum.{path}": m for path, m in state.descent.momentum.items()}
        tensors |= {f"squares.{path}": s for path, s in state.descent.squares.items()}
        numbers = {f.name: getattr(state, f.name) for f in fields(state) if f.name not in _TENSORS}
        # The order of the paths numbers the matrices; safetensors sorts them.
        numbers |= {"descent_steps": state.descent.steps, "order": list(state.b)}
        text = torch.frombuffer(bytearray(json.dumps(numbers).encode()), dtype=torch.uint8)
        write_tensors(self._folder / _STATE, {_NUMBERS: text, **tensors})
        for best in self._folder.glob(_BEST.format("*")):
            if best.name != _BEST.format(state.best_step):
                best.unlink()

    def load(self) -> State | None:
        """What was saved last; None before, or when it cannot be read: the run begins anew then, with the same end."""
        try:
            tensors = load_file(self._folder / _STATE)
            numbers = json.loads(tensors.pop(_NUMBERS).numpy().tobytes())
            order = numbers.pop("order")
            b, momentum, squares = (
                {path: tensors[f"{kind}.{path}"] for path in order} for kind in ("b", "momentum", "squares")
            )
            return State(b=b, descent=Descent(momentum, squares, numbers.pop("descent_steps")), **numbers)
        except (OSError, SafetensorError, ValueError, LookupError, TypeError):
            return None

    def save_best(self, b: dict[str, torch.Tensor], step: int) -> None:
        """Write down the B that was the best at a step."""
        write_tensors(self._folder / _BEST.format(step), b)

    def load_best(self, step: int) -> dict[str, torch.Tensor]:
        """The B that was the best at a step. Raises OSError or SafetensorError when it is gone."""
        return load_file(self._folder / _BEST.format(step))
