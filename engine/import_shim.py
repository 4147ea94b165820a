"""Importing transformers without what a forward pass on one device never uses.

transformers takes one class out of torch's compiler and a few names out of torch.distributed; importing these
packages for that costs 70 MB of memory and most of a second, in every worker and generator. On a phone that is
as much as a layer of a large model.
"""

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch.distributed
import transformers.utils as transformers_utils

_COMPILER = "torch._dynamo"
#: The module that transformers wants of it, and the context manager in there, which only custom masks enter.
_WRAPPER, _CONTEXT = f"{_COMPILER}._trace_wrapped_higher_order_op", "TransformGetItemToIndex"
#: Decorators that mean nothing without a compiler.
_DECORATORS = ("disable", "assume_constant_result", "allow_in_graph")
#: Reports that what transformers would import is not there. Flex attention is for GPUs; from torch 2.15 on it imports
#: symbolic algebra.
_AVAILABLE = (
    (torch.distributed, "is_available"),
    (transformers_utils, "is_torch_flex_attn_available"),
    (transformers_utils.import_utils, "is_torch_flex_attn_available"),
)


@contextmanager
def lean_transformers() -> Iterator[None]:
    """While this lasts, importing modelling code of transformers brings in neither compiler nor distributed torch.

    Stand-ins take the compiler's place, and are gone afterwards. Does nothing where it has been imported already.
    """
    if _COMPILER in sys.modules:
        yield
        return
    compiler, wrapper = ModuleType(_COMPILER), ModuleType(_WRAPPER)
    vars(compiler).update(dict.fromkeys(_DECORATORS, _unchanged))
    setattr(wrapper, _CONTEXT, _real_context)
    sys.modules.update({_COMPILER: compiler, _WRAPPER: wrapper})
    before = [getattr(module, name) for module, name in _AVAILABLE]
    for module, name in _AVAILABLE:
        setattr(module, name, lambda: False)
    try:
        yield
    finally:
        del sys.modules[_COMPILER], sys.modules[_WRAPPER]
        for (module, name), available in zip(_AVAILABLE, before, strict=True):
            setattr(module, name, available)


def _real_context() -> Any:
    """The real context manager, imported when it is made."""
    return getattr(importlib.import_module(_WRAPPER), _CONTEXT)()


def _unchanged(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else lambda decorated: decorated
