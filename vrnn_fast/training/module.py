"""The model as it is trained: in which precision, compiled or not, on how many ranks."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.parallel import DistributedDataParallel

from ..model import VRNN
from ..outputs import VRNNOutput
from .config import Precision, TrainConfig
from .ranks import Ranks


class Rounded(nn.Module):
    """A model whose parameters are float32, computing in bfloat16."""

    def __init__(self, model: VRNN) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, *arguments: Any, **options: Any) -> VRNNOutput:
        """Call the model with tensors in bfloat16."""
        rounded = {name: p.to(torch.bfloat16) for name, p in self.model.named_parameters()}
        out: VRNNOutput = torch.func.functional_call(self.model, rounded, (x, *arguments), options)
        return out


class Trained:
    """What a run calls, around the model whose parameters it has.

    Attributes:
        dtype: of the tensors that it takes.
    """

    def __init__(self, model: VRNN, config: TrainConfig, ranks: Ranks) -> None:
        self.model, self.dtype = model, torch.bfloat16 if config.precision == "bfloat16" else torch.float32
        self._module: Any = model
        several = ranks.size > 1 and dist.is_initialized()
        if config.shard:
            mesh = init_device_mesh(ranks.device.type, (ranks.size,)) if several else None
            policy = MixedPrecisionPolicy(param_dtype=self.dtype, reduce_dtype=torch.float32)
            if mesh is not None:
                fully_shard(model, mesh=mesh, mp_policy=policy)
        if self.dtype != torch.float32 and not isinstance(model, FSDPModule):
            self._module = Rounded(model)
        if config.compile:
            self._module = torch.compile(self._module)
        if several and not isinstance(model, FSDPModule):
            devices = [ranks.device] if ranks.device.type == "cuda" else None
            self._module = DistributedDataParallel(self._module, device_ids=devices)

    def __call__(self, x: Tensor, *arguments: Any, **options: Any) -> VRNNOutput:
        found: VRNNOutput = self._module(x, *arguments, **options)
        return found

    def accumulating(self, more: bool) -> AbstractContextManager[Any]:
        """Leave gradients where they are, as long as ``more`` parts follow."""
        if isinstance(self.model, FSDPModule):
            self.model.set_requires_gradient_sync(not more)
            return nullcontext()
        if more and isinstance(self._module, DistributedDataParallel):
            return self._module.no_sync()
        return nullcontext()


@contextmanager
def products_in(precision: Precision) -> Iterator[None]:
    """Let float32 products be TF32 inside the block, where that was asked for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
