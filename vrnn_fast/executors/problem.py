"""Cells with random numbers, to compare executors by: for the tests, and for the trial of an executor on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from ..cell.spec import CellSpec
from .base import PER_STEP, Batch, SequenceResult, Want


class Runs(Protocol):
    """What can run a batch, as an executor does."""

    def run(self, spec: CellSpec, parameters: Sequence[Tensor], batch: Batch, want: Want) -> SequenceResult: ...


@dataclass
class Problem:
    """A cell, its inputs and one upstream gradient for every output, all drawn in float64 and rounded to float32 first,
    so that the same numbers can be given to every executor in every dtype.
    """

    spec: CellSpec
    inputs: dict[str, Tensor]
    lengths: Tensor | None
    upstream: dict[str, Tensor]
    flags: dict[str, Tensor]

    @classmethod
    def draw(
        cls,
        spec: CellSpec,
        steps: int,
        batch: int,
        lengths: list[int] | None = None,
        seed: int = 0,
        *,
        resets: bool = False,
        mask: bool = False,
        particles: int = 0,
    ) -> Problem:
        """Draw one; ``lengths``, ``resets`` and ``mask`` as a batch has them, ``particles`` of each sequence."""
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).double()

        inputs = {p.name: 0.5 * normal(*p.shape) / p.shape[-1] ** 0.5 for p in spec.parameters()}
        inputs["x"] = torch.rand((steps, batch, spec.input_size), generator=generator).double()
        inputs["eps"] = normal(steps, batch, spec.latent_size)
        if spec.cond_size:
            inputs["cond"] = normal(steps, batch, spec.cond_size)
        for i in range(spec.state_tensors):
            inputs[f"state{i}"] = 0.5 * normal(batch, spec.hidden_size)
        inputs = {name: t.float().double() for name, t in inputs.items()}
        widths = dict.fromkeys(PER_STEP, spec.latent_size) | {"raw": spec.output_size}
        upstream = {
            n: normal(steps, batch, w) if n not in ("nll", "kl") else normal(steps, batch) for n, w in widths.items()
        }
        upstream |= {f"final{i}": normal(batch, spec.hidden_size) for i in range(spec.state_tensors)}
        flags = {}
        if resets:
            flags["resets"] = torch.rand((steps, batch), generator=generator) < 0.3
        if mask:
            flags["mask"] = torch.rand((steps, batch, spec.input_size), generator=generator) < 0.7
        if particles:
            flags["uniforms"] = torch.rand((steps, batch // particles, particles), generator=generator)
        return cls(spec, inputs, None if lengths is None else torch.tensor(lengths), upstream, flags)

    def run(
        self,
        executor: Runs,
        dtype: torch.dtype,
        *,
        device: torch.device | str = "cpu",
        recompute: bool = False,
        between: Callable[[], object] = lambda: None,
    ) -> dict[str, Tensor]:
        """Compute every output and, as ``d <input>``, every gradient, on the CPU again; ``between`` is called between
        forward and backward."""
        leaves = {name: t.to(device, dtype, copy=True).requires_grad_() for name, t in self.inputs.items()}
        state = tuple(leaves[f"state{i}"] for i in range(self.spec.state_tensors))
        flags: dict[str, Any] = {
            n: t.to(device, dtype if t.is_floating_point() else t.dtype) for n, t in self.flags.items()
        }
        batch = Batch(leaves["x"], leaves["eps"], state, self.lengths, leaves.get("cond"), **flags)
        parameters = [leaves[p.name] for p in self.spec.parameters()]
        result = executor.run(self.spec, parameters, batch, Want(prior=True, raw=True, recompute=recompute))
        outputs = {name: getattr(result, name) for name in PER_STEP}
        outputs |= {f"final{i}": s for i, s in enumerate(result.state)}
        reached = {name: t for name, t in outputs.items() if t.requires_grad and name in self.upstream}
        between()
        torch.autograd.backward(list(reached.values()), [self.upstream[n].to(device, dtype) for n in reached])
        found = {name: t.detach().cpu() for name, t in outputs.items()}
        if result.ancestors is not None:
            found["ancestors"] = result.ancestors.cpu()
        gradients = {f"d {n}": torch.zeros_like(t) if t.grad is None else t.grad for n, t in leaves.items()}
        return found | {name: t.cpu() for name, t in gradients.items()}
