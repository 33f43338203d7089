"""What an executor must get right on a device before it is trusted there: a dozen cells, by the law of errors.

``python -m vrnn_fast.executors.trial MODULE DEVICE`` tries the executor that the module is, and prints a line of JSON
for each cell, as soon as it is known. :mod:`.verification` runs it in a process of its own, which may crash or hang.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import pairwise
from typing import Any

import torch

from .. import agreement
from ..cell.spec import CellSpec, Std
from . import reference
from .problem import Problem, Runs

DRAWS = 3
# A device's own elementary functions are a few roundings off, which none but the law's tests on it can tell apart from
# luck. What is wrong is wrong by orders of magnitude.
TIMES, ROUNDINGS = 4.0, 8.0


@dataclass(frozen=True)
class TrialStructure:
    """A cell and the shape of a batch of it."""

    name: str
    spec: CellSpec
    dtype: torch.dtype = torch.float32
    steps: int = 5
    batch: int = 19
    lengths: tuple[int, ...] | None = None
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """The result of trying one structure.

    Attributes:
        share: the largest error of a result, as a share of what the law allows.
        wrong: what was wrong, in words.
        refused: why the executor refuses the structure; None if it runs.
    """

    name: str
    share: float = 0.0
    wrong: tuple[str, ...] = ()
    refused: str | None = None


def _cell(hidden: int = 33, **options: Any) -> CellSpec:
    return CellSpec(**{"input_size": 7, "hidden_size": hidden, "latent_size": 5, **options})


_GAUSSIAN: dict[str, Any] = {
    "likelihood": "gaussian",
    "decoder_heads": (("dec_mean", 7), ("dec_std.0", 7)),
    "output_std": Std(floor=1e-3),
}
_DEEP: dict[str, Any] = {"phi_x": (9,), "phi_z": (5,), "encoder": (33, 8), "prior": (7,), "decoder": (6,)}
_RAGGED = tuple(i % 6 for i in range(19))
_EVERYWHERE = ("encoder", "prior", "decoder", "cell")

STRUCTURES = (
    TrialStructure("gru", _cell()),
    TrialStructure("gru in bfloat16", _cell(), torch.bfloat16),
    TrialStructure("gru in float16", _cell(), torch.float16),
    TrialStructure("gru of one step and one sequence", _cell(17), steps=1, batch=1),
    TrialStructure(
        "gru, ragged, with resets",
        _cell(initial_state=True, **_DEEP),
        lengths=_RAGGED,
        options={"resets": True, "mask": True},
    ),
    TrialStructure("lstm of two layers", _cell(cell="lstm", num_layers=2, **_GAUSSIAN)),
    TrialStructure("lstm in bfloat16, ragged", _cell(cell="lstm", **_DEEP), torch.bfloat16, lengths=_RAGGED),
    TrialStructure("rnn, normalised", _cell(cell="rnn", nonlinearity="elu", normalized=tuple(_DEEP), **_DEEP)),
    TrialStructure("residual and conditioned", _cell(residual=True, cond_size=3, cond_networks=_EVERYWHERE)),
    TrialStructure("standard normal prior", _cell(prior=None, std=Std("log_variance"))),
    TrialStructure("without z", _cell(latent_size=0, phi_z=(), encoder=(), prior=None)),
    TrialStructure("particle filter", _cell(measure="particle_filter"), batch=20, options={"particles": 4}),
)


def _say_nothing(at: str) -> None: ...


def findings(executor: Runs, device: torch.device, tell: Callable[[str], object] = _say_nothing) -> Iterator[Finding]:
    """Try every structure, forward and backward, against the reference on the CPU; ``tell`` hears what is begun, for
    kernels that are compiled there take their time."""
    return (finding(executor, device, structure, tell) for structure in STRUCTURES)


def finding(
    executor: Runs, device: torch.device, structure: TrialStructure, tell: Callable[[str], object] = _say_nothing
) -> Finding:
    """Try one structure."""
    like = torch.empty((1, 1, 1), dtype=structure.dtype, device=device)
    refuses = getattr(executor, "refuses", None)
    if refuses is not None and (reason := refuses(structure.spec, like)) is not None:
        return Finding(structure.name, refused=reason)
    errors = agreement.Errors(structure.dtype, times=TIMES, roundings=ROUNDINGS)
    lengths = None if structure.lengths is None else list(structure.lengths)
    for seed in range(DRAWS):
        problem = Problem.draw(structure.spec, structure.steps, structure.batch, lengths, seed, **structure.options)
        tell(f"{structure.name!r}, forward")
        back = partial(tell, f"{structure.name!r}, backward")
        ours = problem.run(executor, structure.dtype, device=device, between=back)
        torchs, right = (problem.run(reference, dtype) for dtype in (structure.dtype, torch.float64))
        drawn = [found.pop("ancestors") for found in (ours, torchs, right) if "ancestors" in found]
        if any(not torch.equal(a, b) for a, b in pairwise(drawn)):
            continue  # rounding drew another ancestor, and with it another history
        if repeated := _differing(ours, problem.run(executor, structure.dtype, device=device)):
            return Finding(structure.name, float("inf"), (f"{repeated} is another number in a second run",))
        errors.add(ours, torchs, right)
    if not errors:
        return Finding(structure.name, float("inf"), ("its ancestors are never those of the reference",))
    return Finding(structure.name, errors.largest_share(), tuple(errors.violations().values()))


def _differing(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> str | None:
    """Return the name of the first result of a forward pass that is not the same to the last bit. Gradients are not
    compared: torch may add them up in another order."""
    names = (name for name in first if not name.startswith("d ") and name in second)
    return next((n for n in names if not torch.equal(first[n].nan_to_num(), second[n].nan_to_num())), None)


def main(module: str, device: str) -> None:
    """Print what is begun, each finding as it comes, and at last that there are no more."""
    executor: Any = importlib.import_module(module)

    def say(**said: Any) -> None:
        print(json.dumps(said), flush=True)

    for finding in findings(executor, torch.device(device), lambda at: say(at=at)):
        say(**asdict(finding))
    say(done=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
