"""A trained model without Python: one step of a stream, compiled ahead of time, for a program that links libtorch.

The package is a file for torch's ``AOTIModelPackageLoader``. What it takes and gives, which torch made it, and which
library of operators must be loaded before it, it says itself: ``load_metadata_from_package``.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch._inductor
import torch.utils._pytree as pytree
from torch import Tensor, nn

from . import checks, executors
from .likelihoods import MeanStd, StudentParameters
from .model import VRNN
from .ops import LIBRARY
from .replacing import replacing
from .state import paired

OPERATORS = "vrnn_fast_ops.so"  # beside a package that needs it
_LOCATED = {MeanStd: ("mean", "std"), StudentParameters: ("mean", "scale")}  # what moves with the unit of x


class PackagedStep(nn.Module):
    """:meth:`VRNN.step` for frames in the units of the data: tensors alone go in and come out.

    Args:
        mean, scale: (X,), or one number for all features: the model sees (x - mean) / scale.

    Raises:
        ValueError: what the model predicts has no unit of x that could be changed.
    """

    def __init__(self, model: VRNN, mean: Sequence[float] = (0.0,), scale: Sequence[float] = (1.0,)) -> None:
        super().__init__()
        self.model = model
        like = next(model.parameters())
        self.mean: Tensor
        self.scale: Tensor
        self.register_buffer("mean", like.new_tensor(mean))
        self.register_buffer("scale", like.new_tensor(scale))
        self.scaled = any(mean) or any(s != 1.0 for s in scale)

    def forward(
        self, x: Tensor, eps: Tensor, begins: Tensor, state: Sequence[Tensor], cond: Tensor | None = None
    ) -> tuple[Tensor, ...]:
        """Predict x, then take it in.

        Args:
            x: (B, X), whole: NaN reaches the state.
            eps: (B, Z) standard normal noise.
            begins: (B,) bool, true where a row's sequence begins with x, whatever its state holds.
            state: h (num_layers, B, H), of an LSTM c as well.
            cond: (B, C), where the model has a conditioning input.

        Returns:
            nll (B,), kl (B,), the parameters of the prediction, and the state.
        """
        new = _parts(self.model.new_state(x.shape[0]))
        state = [torch.where(begins.unsqueeze(-1), n, s) for n, s in zip(new, state, strict=True)]
        if self.scaled:
            x = (x - self.mean) / self.scale
        nll, kl, prediction, after = self.model.step(x, paired(state), eps, cond)
        return nll, kl, *pytree.tree_leaves(self._in_units(prediction)), *_parts(after)

    def inputs(self, batch_size: int) -> tuple[Any, ...]:
        """Return an input of each kind."""
        spec, like = self.model.spec, next(self.model.parameters())
        sizes = (spec.input_size, spec.latent_size) + ((spec.cond_size,) if spec.cond_size else ())
        x, eps, *cond = (like.new_zeros(batch_size, size) for size in sizes)
        begins = torch.zeros(batch_size, dtype=torch.bool)
        return x, eps, begins, [s.clone() for s in _parts(self.model.new_state(batch_size))], *cond

    def _in_units(self, prediction: Any) -> Any:
        if not self.scaled:
            return prediction
        names = _LOCATED.get(type(prediction))
        if names is None:
            raise ValueError(
                f"likelihood must be Gaussian or StudentT where x is scaled, got {self.model.likelihood}: what it "
                "predicts has no unit of x. Scale the data yourself, and train on that"
            )
        center, spread = names
        moved = {center: getattr(prediction, center) * self.scale + self.mean}
        return prediction._replace(**moved, **{spread: getattr(prediction, spread) * self.scale})


def write_package(
    model: VRNN, path: Path, *, batch_size: int = 1, mean: Sequence[float] = (0.0,), scale: Sequence[float] = (1.0,)
) -> dict[str, str]:
    """Write a package of :class:`PackagedStep`, and beside it the operators that it needs, if any.

    It takes the backend of the model: ``"cpu"``, or ``"reference"``, which needs no operators of ours.

    Args:
        path: the file, .pt2.
        batch_size: how many streams move on together.
        mean, scale: of each feature, or of all of them, by which the data was scaled.

    Returns:
        What the package says of itself.

    Raises:
        ValueError: the path has another suffix, or the likelihood cannot be exported.
        RuntimeError: there is no compiler, or the model or its backend is not one of the CPU.
    """
    checks.integer("batch_size", batch_size)
    if path.suffix != ".pt2":
        raise ValueError(f"a package must be named .pt2, got {path}")
    _require_compiler()
    step = PackagedStep(model, mean, scale)
    inputs = step.inputs(batch_size)
    x = inputs[0]
    if x.device.type != "cpu":
        raise RuntimeError(f"a package runs on the CPU, and the model is on {x.device}")
    executor, _ = executors.select(model.backend, model.spec, x)
    if executor.name not in ("cpu", "reference"):
        raise RuntimeError(f"backend must be 'cpu' or 'reference' for a package, got {executor.name!r}")
    about = _description(step, inputs, executor.name)
    program = _traced(step, inputs)
    path.parent.mkdir(parents=True, exist_ok=True)
    options = {"aot_inductor.metadata": dict(about), "cpp.simdlen": 1}  # the package leaves this machine
    options |= {"cpp.march": ""} if "cpp.march" in torch._inductor.list_options() else {}
    with replacing(path) as file:
        torch._inductor.aoti_compile_and_package(program, package_path=file, inductor_configs=options)
    if about["operators"]:
        with LIBRARY.open("rb") as library, replacing(path.with_name(OPERATORS)) as copy:
            shutil.copyfileobj(library, copy)
    return about


def _traced(step: PackagedStep, inputs: tuple[Any, ...]) -> torch.export.ExportedProgram:
    """Turn a step into a program of torch.

    Raises:
        ValueError: the likelihood's own code cannot be traced, or what it predicts has no unit of x.
    """
    with torch.no_grad():
        step(*inputs)
        try:
            return torch.export.export(step, inputs)
        except Exception as error:  # whatever torch says of somebody's own code
            if step.model.spec.likelihood != "external":
                raise
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(f"likelihood {step.model.likelihood} cannot be exported: {reason}") from error


def _description(step: PackagedStep, inputs: tuple[Any, ...], executor: str) -> dict[str, str]:
    spec = step.model.spec
    sizes = {name: getattr(spec, name) for name in ("input_size", "cond_size", "latent_size", "num_layers")}
    sizes |= {"hidden_size": spec.hidden_size, "state_parts": spec.state_parts, "batch_size": inputs[0].shape[0]}
    return {
        "torch": torch.__version__.partition("+")[0],
        "operators": OPERATORS if executor == "cpu" else "",
        "dtype": str(inputs[0].dtype).removeprefix("torch."),
        **{name: str(size) for name, size in sizes.items()},
    }


def _parts(state: Tensor | tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return (state,) if isinstance(state, Tensor) else state


def _require_compiler() -> None:
    """Raise RuntimeError if there is no C++ compiler, which torch would say on a page."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"a package is compiled, and there is no {compiler}: install g++, or name another in CXX")
