"""A transformers architecture without weights, and whether a weights file belongs to it."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from pocketllm.engine.errors import ModelFileError, UnsupportedModel
from pocketllm.engine.formats.model_folder import ModelFolder
from pocketllm.engine.import_shim import lean_transformers
from pocketllm.engine.streamed.weights import Weight

with lean_transformers():
    from transformers import PreTrainedModel
    from transformers.initialization import no_init_weights

    from pocketllm.engine.formats.architectures import auto_class
    from pocketllm.engine.streamed import attention


def build(model_folder: ModelFolder, dtype: torch.dtype) -> PreTrainedModel:
    """The architecture, with parameters on the meta device."""
    config = model_folder.config()
    build: Callable[..., PreTrainedModel] = auto_class(config).from_config
    try:
        with lean_transformers(), no_init_weights(), _without_memory():
            network = build(config, dtype=dtype, attn_implementation="eager")
            if network._supports_attention_backend:  # other models ignore it, or misread its masks
                network.set_attn_implementation(attention.NAME)
    except (ValueError, KeyError, ImportError) as error:
        raise UnsupportedModel(f"transformers cannot build the model in {model_folder.path}: {error}") from error
    network.requires_grad_(False)
    network.eval()
    return network


@contextmanager
def _without_memory() -> Iterator[None]:
    """Put parameters that are registered meanwhile on the meta device, but not buffers, which are computed.

    `torch.device("meta")` would lose the buffers, and computing them on it imports sympy (40 MB).
    """

    def emptied(_module: nn.Module, _name: str, parameter: nn.Parameter | None) -> Any:
        if parameter is None or parameter.is_meta:
            return None
        return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=False)

    hook = register_module_parameter_registration_hook(emptied)
    try:
        yield
    finally:
        hook.remove()


def parameter_names(network: PreTrainedModel) -> dict[str, str]:
    """Path of each parameter -> its name in the weights file (tied parameters share one)."""
    tied: dict[str, str] = network.all_tied_weights_keys
    paths = [path for path, _ in network.named_parameters(remove_duplicate=False)]
    return {path: tied.get(path, path) for path in paths}


def check_weights(
    model_folder: ModelFolder, network: PreTrainedModel, names: dict[str, str], weights: Mapping[str, Weight]
) -> None:
    """Raise ModelFileError when the weights are not those of the architecture that the config describes."""
    if missing := set(names.values()) - weights.keys():
        raise ModelFileError(f"{model_folder.weights} lacks {', '.join(sorted(missing)[:3])}. Import the model again.")
    for path, parameter in network.named_parameters(remove_duplicate=False):
        if (found := weights[names[path]].shape) != parameter.shape:
            raise ModelFileError(
                f"{model_folder.weights} holds {names[path]} of shape {found}, but config.json requires "
                f"{tuple(parameter.shape)}. Import the model again."
            )
