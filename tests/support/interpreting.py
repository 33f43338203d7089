"""Triton's interpreter, faster: what it does anew for every value is done once. No number changes by it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any
from unittest import mock

from vrnn_fast.executors import triton

_PATCHED: set[str] = set()  # modules of triton's own whose language has been patched, which nobody undoes


@contextmanager
def patched_once() -> Iterator[None]:
    """Patch the language once in a launch, give values of a shape the same type, and broadcast only what differs."""
    if not triton._INTERPRETED:
        yield
        return
    from triton.language import core
    from triton.language.semantic import TritonSemantic
    from triton.runtime import interpreter

    call, block = interpreter.InterpretedFunction.__call__, core.block_type.__init__
    broadcast, dtype_of = TritonSemantic.broadcast_impl_value, interpreter._get_np_dtype

    def called(self: Any, *arguments: Any, **options: Any) -> Any:
        module = self.fn.__module__
        if module.startswith("triton.") and module not in _PATCHED:
            _PATCHED.add(module)
            return call(self, *arguments, **options)
        return self.rewrite()(*arguments, **options)

    fields: dict[tuple[str, tuple[int, ...]], dict[str, Any]] = {}  # of a block's type

    def typed(self: Any, element: Any, shape: Any) -> None:
        key = element.name, tuple(getattr(size, "value", size) for size in shape)
        if key not in fields:
            block(self, element, shape)
            fields[key] = vars(self).copy()
        else:
            vars(self).update(fields[key])

    dtypes: dict[str, Any] = {}

    def stored_as(of: Any) -> Any:
        scalar = of.scalar
        if scalar.name not in dtypes:
            dtypes[scalar.name] = dtype_of(scalar)
        return dtypes[scalar.name]

    @cache
    def sizes_of(shape: tuple[int, ...]) -> tuple[Any, Any]:
        return core.tuple([core.constexpr(size) for size in shape]), core.constexpr(math.prod(shape))

    def made(self: Any, handle: Any, of: Any) -> None:
        self.handle, self.type, self.dtype = handle, of, of.scalar
        self.shape, self.numel = sizes_of(tuple(of.shape) if of.is_block() else ())

    def broadcasted(self: Any, left: Any, right: Any) -> Any:
        same = left.type.is_block() and right.type.is_block() and left.type.shape == right.type.shape
        return (left, right) if same else broadcast(self, left, right)

    with ExitStack() as stack:
        for owner, name, quick in (
            (interpreter.InterpretedFunction, "__call__", called),
            (core.block_type, "__init__", typed),
            (core.tensor, "__init__", made),
            (TritonSemantic, "broadcast_impl_value", broadcasted),
            (interpreter, "_get_np_dtype", stored_as),
        ):
            stack.enter_context(mock.patch.object(owner, name, quick))
        yield
