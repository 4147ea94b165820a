"""Importing the engine brings in neither torch's compiler nor symbolic algebra, and takes nothing away from them."""

import sys

import pytest
import torch
from torch.torch_version import TorchVersion

from pocketllm.engine.formats.model_folder import ModelFolder
from tests.support.models.learning import fresh_process

MB = 10**6

_ANONYMOUS = """
import json, sys
def anonymous():
    words = next(line for line in open("/proc/self/status") if line.startswith("RssAnon")).split()
    return 1024 * int(words[1])
"""
_LEAN = f"""{_ANONYMOUS}
import pocketllm.engine.streamed.model
from pocketllm.engine.import_shim import lean_transformers
with lean_transformers():
    from transformers import LlamaForCausalLM
import torch
compiler = sys.modules.get("torch._dynamo")
print(json.dumps({{
    "anonymous": anonymous(),
    "sympy": "sympy" in sys.modules,
    "distributed": sorted(name for name in sys.modules if name.startswith("torch.distributed.tensor")),
    "compiler": compiler is not None and type(compiler).__name__ == "module",
    "eval_frame": "torch._dynamo.eval_frame" in sys.modules,
}}))
"""
_PLAIN = f"""{_ANONYMOUS}
import numpy
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, DynamicCache, LlamaForCausalLM
print(json.dumps({{
    "anonymous": anonymous(),
    "sympy": "sympy" in sys.modules,
    "eval_frame": "torch._dynamo.eval_frame" in sys.modules,
}}))
"""
_COMPILES = """
import json, sys
import pocketllm.engine.streamed.model
import torch
from pocketllm.engine.import_shim import lean_transformers
lean = sorted(name for name in sys.modules if name == "sympy" or name == "torch._dynamo.eval_frame")
calls = []
def double(x):
    calls.append(1)
    return torch.sin(x) * 2
compiled = torch.compile(double, backend="eager")
x = torch.arange(4.0)
same = torch.equal(compiled(x), torch.sin(x) * 2)
compiled(x)
import torch._dynamo
import torch._dynamo._trace_wrapped_higher_order_op as wanted
with wanted.TransformGetItemToIndex():
    pass
with lean_transformers():  # does nothing any more
    after = sys.modules["torch._dynamo"] is torch._dynamo
print(json.dumps({
    "lean": lean,
    "same": same,
    "traced once": len(calls),
    "real": type(sys.modules["torch._dynamo"]).__name__,
    "counted": torch._dynamo.utils.counters["frames"]["ok"],
    "after": after,
}))
"""
_DISTRIBUTED = """
import json, sys
import torch, torch.distributed
before, available = torch.distributed.is_available, torch.distributed.is_available()
from pocketllm.engine.import_shim import lean_transformers
try:
    with lean_transformers():
        inside = torch.distributed.is_available()
        raise KeyError
except KeyError:
    pass
import pocketllm.engine.streamed.model
same = torch.distributed.is_available is before and torch.distributed.is_available() == available
print(json.dumps({"as before": same, "inside": inside}))
"""
_WALKS = """
import json, sys
from pathlib import Path
import torch
from pocketllm.backprop.gradients import PassSize
from pocketllm.backprop.method import Exact, ExactPlan, fresh_adapter
from pocketllm.engine.data.batches import Batch
from pocketllm.engine.streamed.model import DynamicCache, LanguageModel
from pocketllm.engine.formats.model_folder import open_model_folder
from pocketllm.engine.noise import Direction
from pocketllm.engine.noise import Perturbation
model = LanguageModel(open_model_folder(Path(sys.argv[1])), release_pages=True)
ids = torch.arange(3, 23)[None]
point = Perturbation(direction=Direction(seed=1, step=1), distance=0.1)
with torch.inference_mode():
    losses = model.losses_at([point], Batch(inputs=ids, targets=ids), 4)
    model.next_logits(ids, DynamicCache(config=model.network.config))
adapter = fresh_adapter(model, rank=2, seed=0)
model.set_parameters(adapter)
exact = Exact(model, adapter, ExactPlan(seed=0, rate=1e-3), PassSize(stored=20, micro_batch=20), to_start=lambda: None)
with torch.no_grad():
    exact.step(1, Batch(inputs=ids, targets=ids), remaining=1.0, share=1.0)
print(json.dumps({
    "losses": losses,
    "heavy": sorted({"sympy", "torch._dynamo.eval_frame", "torch.distributed.tensor"} & sys.modules.keys()),
}))
"""

#: torch.utils.checkpoint, which transformers imports.
_CHECKPOINT_IMPORTS_SYMPY = TorchVersion(torch.__version__) < "2.8"

linux = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.smoke
@linux
def test_importing_the_engine_leaves_the_compiler_out() -> None:
    lean, plain = fresh_process(_LEAN), fresh_process(_PLAIN)
    assert plain["sympy"] and plain["eval_frame"]  # or there would be nothing to leave out any more
    assert not lean["sympy"] and not lean["compiler"] and not lean["eval_frame"]
    assert lean["distributed"] == []
    assert lean["anonymous"] < plain["anonymous"] - 40 * MB


@pytest.mark.slow
def test_the_compiler_is_there_as_soon_as_it_is_asked_for() -> None:
    seen = fresh_process(_COMPILES)
    assert seen["lean"] == []
    assert seen["same"]
    assert seen["real"] == "module"
    assert seen["counted"] >= 1
    assert seen["after"]


@pytest.mark.slow
def test_distributed_torch_is_as_before() -> None:
    assert fresh_process(_DISTRIBUTED) == {"as before": True, "inside": False}


def test_a_walk_needs_none_of_it_either(tiny: ModelFolder) -> None:
    seen = fresh_process(_WALKS, tiny.path)
    assert seen["heavy"] == (["sympy"] if _CHECKPOINT_IMPORTS_SYMPY else [])
    assert len(seen["losses"]) == 1
