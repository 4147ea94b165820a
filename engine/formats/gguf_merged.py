"""The personal model as one GGUF file: the base model's file with an adapter added to its weights, as 8-bit integers.

For programs that load a model of their own, and no LoRA files.
"""

from pathlib import Path

import gguf
import numpy as np

from pocketllm.engine.errors import CannotExport, ModelFileError
from pocketllm.engine.formats.gguf_lora import LoraSource, whole_or_nothing
from pocketllm.engine.formats.gguf_origin import find_origin
from pocketllm.engine.formats.model_folder import ModelFolder

#: Of the changed weights: half a byte more than the base's 4 bits would round the adapter away.
PACKED = gguf.GGMLQuantizationType.Q8_0


def write_merged_gguf(folder: Path, model_folder: ModelFolder, destination: Path) -> None:
    """Write the base model with the adapter in `folder` added, whole or not at all.

    Raises CannotExport when there can be no such file, and AdapterError and ModelFileError as write_gguf_lora does.
    """
    source = LoraSource.open(folder, model_folder)
    try:
        base = gguf.GGUFReader(find_origin(model_folder.manifest))
    except ModelFileError as error:
        raise CannotExport(f"{error}. Export a LoRA file, or merge it with PEFT.") from error
    paths = {f"{name}.weight": path for path, name in source.names.items()}
    scaling = source.config.alpha / source.config.rank
    with whole_or_nothing(destination, source, use_temp_file=True) as writer:
        for field in base.fields.values():
            if field.name != gguf.Keys.General.ARCHITECTURE and not field.name.startswith("GGUF."):
                kind, parts = field.types[0], field.types[-1] if len(field.types) > 1 else None
                writer.add_key_value(field.name, field.contents(), kind, sub_type=parts)
        for tensor in base.tensors:
            path = paths.get(tensor.name)
            if path is None:
                writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
                continue
            weight = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
            weight = weight + np.float32(scaling) * (source.b(path) @ source.a(path))
            writer.add_tensor(tensor.name, gguf.quants.quantize(weight, PACKED), raw_dtype=PACKED)
