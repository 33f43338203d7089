"""Float64 where a forward leaves the dtype to torch, in this thread alone.

``torch.set_default_dtype`` would do, but for every thread of the process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.utils._pytree as pytree
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

_DRAWS = ("rand", "randn", "normal")  # which may not run twice; other draws have no default dtype, or an integer one
_OF_NUMBERS = (torch.tensor, torch.as_tensor, torch.asarray)


@contextmanager
def double_by_default() -> Iterator[None]:
    """Run as if float64 were the default dtype, except of ``torch.Tensor(2, 3)``, a class, and
    ``get_default_dtype``."""
    with _Operators(), _Numbers():  # type: ignore[no-untyped-call]
        yield


class _Operators(TorchDispatchMode):
    """Lets operators without a dtype or a floating tensor among their arguments give float64, where they would give the
    default dtype."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [t for t in pytree.tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        if kwargs.get("dtype") is not None or any(t.is_floating_point() or t.is_complex() for t in given):
            return function(*args, **kwargs)
        if function.overloadpacket.__name__ in _DRAWS:
            return function(*args, **kwargs, dtype=torch.float64)
        result = function(*args, **kwargs)
        if not _defaulted(result):
            return result
        if any(argument.name == "dtype" for argument in function._schema.arguments):
            return function(*args, **kwargs, dtype=torch.float64)
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.double, (args, kwargs))  # a quotient of integers
        return function(*args, **kwargs)


class _Numbers(TorchFunctionMode):
    """Does the same for tensors made of Python's numbers, which no operator makes."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        if function not in _OF_NUMBERS or not _defaulted(result):
            return result
        typed = "dtype" in kwargs or any(hasattr(value, "dtype") for value in (*args, *kwargs.values()))
        return result if typed else function(*args, **kwargs, dtype=torch.float64)


def _defaulted(result: Any) -> bool:
    return isinstance(result, Tensor) and result.dtype == torch.get_default_dtype() != torch.float64
