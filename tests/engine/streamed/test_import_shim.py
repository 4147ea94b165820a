"""Importing the engine brings in neither torch's compiler nor symbolic algebra, and takes nothing away from them."""

import pytest
import torch
from torch.torch_version import TorchVersion

from pocketllm.engine.formats.model_folder import ModelFolder
from tests.support.models.learning import fresh_process

MB = 10**6

_LEAN = """
import json, sys
from pocketllm.daemon.process_memory import bytes_of
import torch
import torch.distributed
available = torch.distributed.is_available, torch.distributed.is_available()
import pocketllm.engine.streamed.model
from pocketllm.engine.import_shim import lean_transformers
with lean_transformers():
    from transformers import LlamaForCausalLM
compiler = sys.modules.get("torch._dynamo")
print(json.dumps({
    "anonymous": bytes_of("RssAnon"),
    "sympy": "sympy" in sys.modules,
    "distributed": sorted(name for name in sys.modules if name.startswith("torch.distributed.tensor")),
    "as before": available == (torch.distributed.is_available, torch.distributed.is_available()),
    "compiler": compiler is not None and type(compiler).__name__ == "module",
    "eval_frame": "torch._dynamo.eval_frame" in sys.modules,
}))
"""
_PLAIN = """
import json, sys
from pocketllm.daemon.process_memory import bytes_of
import numpy
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoModelForMaskedLM, DynamicCache, LlamaForCausalLM
print(json.dumps({
    "anonymous": bytes_of("RssAnon"),
    "sympy": "sympy" in sys.modules,
    "eval_frame": "torch._dynamo.eval_frame" in sys.modules,
}))
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


@pytest.mark.smoke
def test_importing_the_engine_leaves_the_compiler_out() -> None:
    lean, plain = fresh_process(_LEAN), fresh_process(_PLAIN)
    assert plain["sympy"] and plain["eval_frame"]  # or there would be nothing to leave out any more
    assert not lean["sympy"] and not lean["compiler"] and not lean["eval_frame"]
    assert lean["distributed"] == [] and lean["as before"]
    assert lean["anonymous"] < plain["anonymous"] - 40 * MB


def test_a_walk_needs_none_of_it_either(tiny: ModelFolder) -> None:
    seen = fresh_process(_WALKS, tiny.path)
    assert seen["heavy"] == (["sympy"] if _CHECKPOINT_IMPORTS_SYMPY else [])
    assert len(seen["losses"]) == 1
