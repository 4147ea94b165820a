"""Small models that are known to run here, by their published configurations: what one can get, and whether it fits."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pocketllm.engine.planning.shapes import ITEMSIZE, Shapes

#: Of the weights as `models add` stores them.
_DTYPE = "bfloat16"


@dataclass(frozen=True)
class KnownModel:
    """A causal model with gated feed-forward layers, whose output head is its token embedding."""

    repository: str  #: on the hub
    licence: str
    layers: int
    hidden: int
    intermediate: int
    queries: int  #: width of all heads together
    keys: int  #: likewise, of the keys and of the values
    vocabulary: int
    is_gated: bool = False  #: one has to accept the licence, with an account

    @property
    def name(self) -> str:
        """As `models add` calls it."""
        return self.repository.rpartition("/")[2].lower()

    @property
    def parameters(self) -> int:
        """Weights of the linear maps and the embedding; norms are too small to count."""
        return sum(out * inputs for out, inputs in self._linears().values()) + self.vocabulary * self.hidden

    def shapes(self, *, compute_dtype: str, calibration: Mapping[str, Any]) -> Shapes:
        """For planning. calibration: of a model that was measured on this device."""
        linears = self._linears()
        layer = sum(out * inputs for out, inputs in linears.values()) // self.layers
        return Shapes(
            name=self.name,
            is_mlm=False,
            dtype=_DTYPE,
            compute_dtype=compute_dtype,
            linears=linears,
            head=(self.vocabulary, self.hidden),
            layer_bytes=layer * ITEMSIZE[_DTYPE],
            weights_bytes=self.parameters * ITEMSIZE[_DTYPE],
            calibration=dict(calibration),
        )

    def _linears(self) -> dict[str, tuple[int, int]]:
        maps = {
            "self_attn.q_proj": (self.queries, self.hidden),
            "self_attn.k_proj": (self.keys, self.hidden),
            "self_attn.v_proj": (self.keys, self.hidden),
            "self_attn.o_proj": (self.hidden, self.queries),
            "mlp.gate_proj": (self.intermediate, self.hidden),
            "mlp.up_proj": (self.intermediate, self.hidden),
            "mlp.down_proj": (self.hidden, self.intermediate),
        }
        return {f"model.layers.{layer}.{name}": shape for layer in range(self.layers) for name, shape in maps.items()}


#: The default one first, then by size.
KNOWN = (
    KnownModel("HuggingFaceTB/SmolLM2-135M-Instruct", "Apache-2.0", 30, 576, 1536, 576, 192, 49152),
    KnownModel("google/gemma-3-270m-it", "Gemma", 18, 640, 2048, 1024, 256, 262144, is_gated=True),
    KnownModel("HuggingFaceTB/SmolLM2-360M-Instruct", "Apache-2.0", 32, 960, 2560, 960, 320, 49152),
    KnownModel("Qwen/Qwen2.5-0.5B-Instruct", "Apache-2.0", 24, 896, 4864, 896, 128, 151936),
    KnownModel("Qwen/Qwen3-0.6B", "Apache-2.0", 28, 1024, 3072, 2048, 1024, 151936),
    KnownModel("meta-llama/Llama-3.2-1B-Instruct", "Llama 3.2", 16, 2048, 8192, 2048, 512, 128256, is_gated=True),
    KnownModel("Qwen/Qwen2.5-1.5B-Instruct", "Apache-2.0", 28, 1536, 8960, 1536, 256, 151936),
    KnownModel("HuggingFaceTB/SmolLM2-1.7B-Instruct", "Apache-2.0", 24, 2048, 8192, 2048, 2048, 49152),
)
