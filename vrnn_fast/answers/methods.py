"""The methods by which a model answers."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import inputs
from ..call import ModelCall
from ..particles import Measured
from ..state import State
from . import forecast, impute, score
from .proposal import Blinded
from .result import Forecast


class Answers:
    """What a trained :class:`~vrnn_fast.VRNN` tells of data: each of these is a method of the model.

    All three follow every sequence with particles, samples of the latent variables that are weighed by what is observed
    and drawn anew where their weights become too uneven (Gordon et al. 1993, "Novel approach to nonlinear/non-Gaussian
    Bayesian state estimation"). They are estimates: with more particles their noise falls.

    Examples:
        >>> isinstance(model, Answers)
        True
    """

    _measured: Measured
    _blinded: Blinded | None

    def _call(self) -> ModelCall:
        raise NotImplementedError

    def score(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        num_particles: int = 16,
        per_feature: bool = False,
        cond: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        proposal: score.Proposal = "prior",
        state: State | None = None,
        mask_inputs: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Compute how unlikely each observation is, given those before it: -log p(x_t | x_<t), for anomalies.

        Predictive, unlike nll and kl of :meth:`VRNN.forward`: with the prior's samples, x_t has no part in what it is
        held against. The average over particles of p(x_t | z_t, h_{t-1}), weighed by what came before, estimates
        p(x_t | x_<t) without bias as far as the particles stand for their distribution; its negative logarithm is too
        high on average, the less the more there are, and most where x_t is unlikely. One launch; with a likelihood
        of your own one for each time step. Gradients flow as those of the FIVO bound, see :mod:`vrnn_fast.bounds`: the
        sum over steps is minus that bound.

        Args:
            x: (T, B, X), as in :meth:`VRNN.forward`.
            lengths: (B,) int64, real steps of each row, as there.
            num_particles: N for each sequence.
            per_feature: whether to score every feature on its own, -log p(x_ti | x_<t), by the prior's samples. Not
                with a likelihood of your own without ``marginal_log_prob``.
            proposal: whose samples of z: ``"prior"``, or ``"posterior"``, weighed by p(z) / q(z) (less noise where the
                posterior was well trained, more where x_t is unlike all that it was trained on).
            state: the state to start from, one for all particles of a sequence.
            cond, mask, mask_inputs: as in :meth:`VRNN.forward`. What a mask hides has a score of 0, up to rounding;
                with the posterior's samples a step that is hidden whole has that of their weights.
            generator: the source of all draws.

        Returns:
            (T, B) in nats, or (T, B, X) per feature; 0 at padding, and inf where no particle explains the observation:
            it then says nothing about the particles, which go on as they are, drawn anew no more.

        Raises:
            ValueError, TypeError, RuntimeError: as :meth:`VRNN.forward`.

        Examples:
            >>> model.score(x).shape, model.score(x, per_feature=True).shape
            (torch.Size([5, 4]), torch.Size([5, 4, 3]))
        """
        call = self._call()
        scoring = score.Scoring(num_particles, per_feature, proposal).checked(call)
        given = inputs.Given(x, lengths, state, generator=generator, cond=cond, mask=mask, mask_inputs=mask_inputs)
        return score.score(call, given, scoring, self._measured, self._blinded)

    @torch.no_grad()
    def forecast(
        self,
        x: Tensor,
        horizon: int,
        num_samples: int = 100,
        lengths: Tensor | None = None,
        cond: Tensor | None = None,
        *,
        state: State | None = None,
        future_cond: Tensor | None = None,
        mask: Tensor | None = None,
        mask_inputs: bool = False,
        generator: torch.Generator | None = None,
    ) -> Forecast:
        """Draw how sequences go on after their own last real step.

        As many particles as samples follow x, with the posterior's samples; each sample goes on from one of them, drawn
        in proportion to their weights. :meth:`VRNN.generate` with a prefix goes on from a single sample of the past.
        What was seen takes as many launches as :meth:`score` does.

        Args:
            x: (T, B, X) what was seen, as in :meth:`VRNN.forward`.
            horizon: how many steps to draw.
            num_samples: K for each sequence.
            lengths: (B,) int64, real steps of each row, as there.
            state: the state to start from.
            cond, mask, mask_inputs: of what was seen, as in :meth:`VRNN.forward`.
            future_cond: (horizon, B, C) conditioning input of what comes, where the model was built with a
                ``cond_size``.
            generator: the source of all draws.

        Raises:
            ValueError, TypeError, RuntimeError: as :meth:`VRNN.forward`.

        Examples:
            >>> low, high = model.forecast(x, horizon=8).interval(0.9)
        """
        given = inputs.Given(x, lengths, state, generator=generator, cond=cond, mask=mask, mask_inputs=mask_inputs)
        return forecast.forecast(self._call(), given, horizon, num_samples, future_cond, self._measured)

    @torch.no_grad()
    def impute(
        self,
        x: Tensor,
        mask: Tensor,
        num_samples: int = 1,
        lengths: Tensor | None = None,
        cond: Tensor | None = None,
        *,
        num_particles: int = 64,
        smoothed: bool = False,
        state: State | None = None,
        mask_inputs: bool = False,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw what was not observed, given what was.

        The missing features are drawn with z, and the cell sees each particle's own. z comes from the posterior at
        steps that were observed whole, from the prior at others. A loop over time in plain torch.

        Args:
            x: (T, B, X), as in :meth:`VRNN.forward`; where nothing was observed it may hold anything, NaN too.
            mask: (T, B, X) bool, true where x was observed. With a likelihood of your own without
                ``marginal_log_prob``, all features of a step or none.
            num_samples: K for each sequence.
            lengths: (B,) int64, real steps of each row, as there.
            num_particles: N for each sequence.
            smoothed: draw each sequence whole, given all that was observed, by following particles of the last step
                back to their ancestors; of distant steps few are left, so take many. Otherwise each step is drawn given
                what was observed up to it.
            state: the state to start from.
            cond: as in :meth:`VRNN.forward`.
            mask_inputs: whether the model was trained with it: encoder and cell then see a zero in the place of what is
                missing, and z comes from the posterior at every step.
            generator: the source of all draws.

        Returns:
            (K, T, B, X), or (K, B, T, X) with ``batch_first``: x where it was observed, 0 at padding.

        Raises:
            ValueError, TypeError: as :meth:`VRNN.forward`.

        Examples:
            >>> model.impute(x, x > 0.5, num_samples=10).shape
            torch.Size([10, 5, 4, 3])
        """
        wanted = impute.Imputation(num_samples, num_particles, smoothed).checked()
        given = inputs.Given(x, lengths, state, generator=generator, cond=cond, mask=mask, mask_inputs=mask_inputs)
        return impute.impute(self._call(), given, wanted)
