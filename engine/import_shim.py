"""Importing transformers without what a forward pass on one device never uses.

transformers takes one class out of torch's compiler and a few names out of torch.distributed; importing these
packages for that costs 70 MB of memory and most of a second, in every worker and generator. On a phone that is
as much as a layer of a large model. `lean_transformers` puts an empty stand-in for the compiler in place, which
gives way to the real one as soon as anything but a decorator is asked of it.
"""

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader
from types import ModuleType
from typing import Any

import torch
import torch.distributed
import transformers.utils as transformers_utils

_COMPILER = "torch._dynamo"
#: The module that transformers wants of it, and the context manager in there, which only custom masks enter.
_WRAPPER, _CONTEXT = f"{_COMPILER}._trace_wrapped_higher_order_op", "TransformGetItemToIndex"
#: Parts of torch.distributed that transformers imports where it is available.
_DISTRIBUTED_PARTS = ("tensor", "fsdp", "device_mesh")
_FLEXIBLE = "is_torch_flex_attn_available"
#: Decorators that mean nothing without a compiler.
_DECORATORS = ("disable", "assume_constant_result", "allow_in_graph")


@contextmanager
def lean_transformers() -> Iterator[None]:
    """While this lasts, importing modelling code of transformers brings in neither compiler nor distributed torch.

    Does nothing where the compiler has been imported already, or is not there.
    """
    found = None if _COMPILER in sys.modules else importlib.util.find_spec(_COMPILER)
    if found is None or found.submodule_search_locations is None:
        yield
        return
    stand_in = _StandIn(_COMPILER)
    stand_in.__spec__, stand_in.__path__ = found, list(found.submodule_search_locations)
    wrapper = ModuleType(_WRAPPER)
    setattr(wrapper, _CONTEXT, _LazyContext)
    sys.modules.update({_COMPILER: stand_in, _WRAPPER: wrapper})
    sys.meta_path.insert(0, _WHOLE)
    available = torch.distributed.is_available
    torch.distributed.is_available = lambda: False
    _say_of_flex_attention(lambda: False)
    # Others (PEFT) take it for granted that transformers has imported these.
    vars(torch.distributed).setdefault("__getattr__", _distributed_part)
    try:
        yield
    finally:
        torch.distributed.is_available = available


def _say_of_flex_attention(available: Callable[[], bool]) -> None:
    """Flex attention is for GPUs; from torch 2.15 on it imports symbolic algebra."""
    for module in (transformers_utils, transformers_utils.import_utils):
        setattr(module, _FLEXIBLE, available)


class _StandIn(ModuleType):
    """torch._dynamo until somebody needs it."""

    def __getattr__(self, name: str) -> Any:
        if name in _DECORATORS:
            return _unchanged
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(_real(_COMPILER), name)


class _LazyContext:
    """The real context manager, fetched when it is made."""

    def __new__(cls) -> Any:
        return getattr(_real(_WRAPPER), _CONTEXT)()


def _distributed_part(name: str) -> ModuleType:
    """torch.distributed's parts, imported when they are asked for."""
    if name not in _DISTRIBUTED_PARTS:
        raise AttributeError(f"module 'torch.distributed' has no attribute {name!r}")
    return importlib.import_module(f"torch.distributed.{name}")


class _Whole(MetaPathFinder, Loader):
    """Lets an import of one of the compiler's parts bring in the compiler before it, as is usual with packages."""

    flex_attention: Callable[[], bool] = staticmethod(getattr(transformers_utils, _FLEXIBLE))

    def find_spec(self, name: str, _path: object, _target: object = None) -> ModuleSpec | None:
        if not name.startswith(f"{_COMPILER}."):
            return None
        _real(_COMPILER)
        if name not in sys.modules:
            return None
        # It came along. The import that asked for it is not to run it a second time.
        spec = spec_from_loader(name, self)  # type: ignore[arg-type, unused-ignore]
        assert spec is not None
        spec.loader_state = sys.modules[name].__spec__
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return sys.modules[spec.name]

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state


_WHOLE = _Whole()


def _real(name: str) -> ModuleType:
    """The module itself, after taking the stand-ins away."""
    if _WHOLE in sys.meta_path:
        sys.meta_path.remove(_WHOLE)
        _say_of_flex_attention(_WHOLE.flex_attention)
        for module in (_COMPILER, _WRAPPER):
            sys.modules.pop(module, None)
    return importlib.import_module(name)


def _unchanged(function: Callable[..., Any] | None = None, *_: Any, **__: Any) -> Any:
    return function if function is not None else lambda decorated: decorated
