"""Shapes of models for plans."""

import math

from pocketllm.engine.planning.shapes import Shapes


def llama(*, hidden: int, wide: int, layers: int, vocabulary: int, dtype: str = "bfloat16") -> Shapes:
    """A Llama of these sizes, computing in bfloat16."""
    own = {"q_proj": hidden, "k_proj": hidden, "v_proj": hidden, "o_proj": hidden}
    linears = {f"model.layers.{i}.self_attn.{name}": (out, hidden) for i in range(layers) for name, out in own.items()}
    for i in range(layers):
        linears |= {f"model.layers.{i}.mlp.{name}": (wide, hidden) for name in ("gate_proj", "up_proj")}
        linears[f"model.layers.{i}.mlp.down_proj"] = (hidden, wide)
    weights = sum(math.prod(shape) for shape in linears.values())
    itemsize = {"bfloat16": 2, "float32": 4, "int8": 1.03, "int4": 0.625}[dtype]
    return Shapes(
        name="some",
        is_mlm=False,
        dtype=dtype,
        compute_dtype="bfloat16",
        linears=linears,
        head=(vocabulary, hidden),
        layer_bytes=int(itemsize * weights / layers),
        weights_bytes=int(itemsize * (weights + vocabulary * hidden)),
        calibration={},
    )


SMOLLM2 = llama(hidden=576, wide=1536, layers=30, vocabulary=49152)


LLAMA_7B = llama(hidden=4096, wide=11008, layers=32, vocabulary=32000, dtype="int4")
