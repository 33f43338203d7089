"""The variational recurrent network as an ordinary module. Everything measured is in nats."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, cast, get_args

import torch
from torch import Tensor, nn

from . import bounds, checks, executors, parameters
from . import resampling as filtering
from .cell.spec import Activation, Activations, CellSpec, Conditioned, Objective, Std, StdKind
from .cell.spec import Cell as CellKind
from .description import MARK, described
from .executors.base import Batch, Want
from .executors.reference import full_precision, generate_by, stacked
from .inputs import at_real, with_frames
from .likelihoods import Likelihood, MeanStd, as_likelihood
from .outputs import State, VRNNOutput, VRNNRollout, VRNNStep, each

Widths: TypeAlias = Sequence[int] | None

_OUTPUTS = ("prior", "prediction")


class VRNN(nn.Module):
    """A variational recurrent network (Chung et al. 2015, "A Recurrent Latent Variable Model for Sequential Data").

    ::

        prior      z_t ~ N(prior(h_{t-1}))                              eq. 5
        generation x_t ~ likelihood(decoder(phi_z(z_t), h_{t-1}))       eq. 6
        recurrence h_t = cell(phi_x(x_t), phi_z(z_t), h_{t-1})          eq. 7
        posterior  z_t ~ N(encoder(phi_x(x_t), h_{t-1}))                eq. 9
        bound      sum_t E_q[log p(x_t | z_<=t, x_<t)] - KL(q || p)     eq. 11

    Sub-modules hold the parameters, under the names of the most copied PyTorch VRNN, and are never called: a forward
    or backward hook on one, or one replaced by another module, raises RuntimeError at the next call, naming it (code
    that torch.compile has already traced looks no more). Hooks on parameters and ``torch.nn.utils.parametrizations``
    work.

    Calls without gradients keep the weights packed for the processor, one more copy of them, until a parameter is
    another tensor, lies elsewhere, or was changed as far as torch counts changes. Changes that torch does not count
    (in place through ``p.data``, a NumPy view or a bare pointer) are noticed all the same: by all values before a batch
    of sequences, by a few of each parameter before a single step. So after a change of a part of a tensor in such a
    way, call :meth:`refresh` before :meth:`step`.

    The buffer ``initial_state`` is the state that ``state=None`` stands for, the same for every row: h of every layer,
    for an LSTM c as well, (1 or 2, num_layers, H). It is None, a state of zeros, unless a checkpoint brought one or you
    set it; it is saved and moved with the parameters, and not trained.

    Args:
        input_size: X, features of x_t.
        hidden_size: H, width of the recurrent state. The networks' widths may differ from it: name them all.
        latent_size: Z, width of z_t. 0 leaves z out, and phi_z, encoder and prior with it: an ordinary autoregressive
            network h_t = cell(phi_x(x_t), h_{t-1}), x_t ~ likelihood(decoder(h_{t-1})), whose KL is zero (RNN-Gauss and
            RNN-GMM of the paper).
        cell: ``"gru"``, ``"lstm"`` or ``"rnn"``, as ``torch.nn.GRU``, ``LSTM`` and ``RNN`` compute them.
        nonlinearity: of an ``"rnn"``: ``"tanh"`` or any other activation; with ``"identity"`` the cell is linear.
        num_layers: recurrent layers, 1 to 8, chained as in ``torch.nn.GRU``; the networks read the top one's h.
        bias: whether the recurrent cell has biases. All other layers always have one.
        phi_x, phi_z, encoder, prior, decoder: widths of the hidden layers, each followed by its activation; ``()`` is
            no hidden layer: raw x or z for phi_x and phi_z, else heads that read the input. ``None`` is the original:
            two layers, one, two, one and two, each ``hidden_size`` wide. A ``prior`` may also be ``"standard_normal"``,
            N(0, 1) whatever h is (VRNN-I of the paper): it has no parameters.
        head_layers: widths of hidden layers that each head (mean, std, and every one of the decoder's) has for itself;
            or a mapping of heads to these, ``{"dec_mean": (100,)}``, the others having none.
        packed_heads: whether encoder, prior and decoder give all their parameters, mean first, from one linear layer
            (``enc_params``, ``prior_params``, ``dec_params``) instead of one layer each.
        cond_size: C, features of a conditioning input that every call takes as ``cond``; 0 for none.
        cond_networks: who reads it, of ``"encoder"``, ``"prior"``, ``"decoder"`` and ``"cell"``. Its columns come first
            in prior and decoder, between those of phi_x and h in the encoder, and last in the cell.
        input_order: the order in which the first layer of a network, or the ``"cell"``, reads its sources side by side,
            where it is another one: ``{"encoder": ("h", "phi_x")}``. The sources are phi_x, phi_z, cond and h.
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"tanh"``, ``"elu"`` or ``"identity"``; or a mapping of
            networks to these, ``{"phi_x": "leaky_relu"}``, the others having ``"relu"``. A tuple names one for each
            hidden layer: ``{"phi_x": ("relu", "identity")}`` ends in an affine layer. Hidden layers of a head follow
            its network's where that is one for all, unless the mapping names the head (``"dec_mean"``).
        residual: whether the posterior's mean is the prior's plus what the encoder gives, instead of the latter alone.
        std: how posterior and prior get a standard deviation from its head: ``"softplus"``, ``"log_std"`` (exp(raw)) or
            ``"log_variance"`` (exp(raw / 2)), each plus 1e-6, or a :class:`~vrnn_fast.Std` with constants of its own.
        likelihood: ``"bernoulli"`` (the decoder gives logits), ``"gaussian"``, or an object of
            :mod:`vrnn_fast.likelihoods` or a :class:`~vrnn_fast.likelihoods.Likelihood` of your own.
        batch_first: x, eps and every per-step result are (B, T, ...) instead of (T, B, ...). States never are.
        backend: ``"auto"`` picks the fastest executor that can run a call, and warns once per reason when it passes
            one over; a name insists on that executor. May be reassigned at any time.
        recompute: keep only the states, z and the posterior's parameters for the backward pass, and compute the rest
            again: less memory, the same numbers.
        check_values: look for NaN and infinity in x and cond, and for what is outside of the likelihood's support in x,
            at every call, at real steps, and name the first. Costs one more pass over them, and a wait on a GPU.
            Without it a NaN reaches all results of its row from its step on, the loss and so every gradient; the
            results of other rows stay right.
        device, dtype: of the parameters, those of the likelihood too, as everywhere in torch. They decide the
            precision, under autocast too: what comes in another one there is converted.

    Raises:
        ValueError, TypeError: an argument out of its domain, naming it.
    """

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        latent_size: int,
        *,
        cell: CellKind = "gru",
        num_layers: int = 1,
        bias: bool = True,
        nonlinearity: Activation = "tanh",
        phi_x: Widths = None,
        phi_z: Widths = None,
        encoder: Widths = None,
        prior: Widths | Literal["standard_normal"] = None,
        decoder: Widths = None,
        input_order: Mapping[str, Sequence[str]] | None = None,
        activation: Activation | Mapping[str, Activation | Sequence[Activation]] = "relu",
        head_layers: Sequence[int] | Mapping[str, Sequence[int]] = (),
        packed_heads: bool = False,
        cond_size: int = 0,
        cond_networks: Sequence[Conditioned] = ("encoder", "prior", "decoder"),
        residual: bool = False,
        std: StdKind | Std = "softplus",
        likelihood: str | Likelihood = "bernoulli",
        batch_first: bool = False,
        backend: str = "auto",
        recompute: bool = False,
        check_values: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if backend not in executors.names():
            raise ValueError(f"backend must be one of {', '.join(executors.names())}, got {backend!r}")
        h = hidden_size
        of_z: tuple[int, ...] = (h,) if latent_size else ()
        self.likelihood = as_likelihood(likelihood)
        checks.positive_int("input_size", input_size)
        for name, value in (
            ("bias", bias),
            ("packed_heads", packed_heads),
            ("residual", residual),
            ("batch_first", batch_first),
            ("recompute", recompute),
            ("check_values", check_values),
        ):
            checks.flag(name, value)
        self.spec = CellSpec(
            input_size,
            hidden_size,
            latent_size,
            cell=cell,
            num_layers=num_layers,
            bias=bias,
            nonlinearity=nonlinearity,
            phi_x=_widths("phi_x", phi_x, (h, h)),
            phi_z=_widths("phi_z", phi_z, of_z),
            encoder=_widths("encoder", encoder, of_z * 2),
            prior=None if prior == "standard_normal" else _widths("prior", prior, of_z),
            decoder=_widths("decoder", decoder, (h, h)),
            activation="relu" if isinstance(activation, Mapping) else activation,
            activations=_activations(activation) if isinstance(activation, Mapping) else (),
            input_order=tuple((name, tuple(order)) for name, order in (input_order or {}).items()),
            head_layers=() if isinstance(head_layers, Mapping) else _widths("head_layers", head_layers, ()),
            own_layers=_own_layers(head_layers) if isinstance(head_layers, Mapping) else (),
            packed_heads=packed_heads,
            residual=residual,
            std=std if isinstance(std, Std) else Std(std),
            likelihood=self.likelihood.fused,
            decoder_heads=_heads(self.likelihood, input_size),
            output_std=self.likelihood.output_std,
            cond_size=cond_size,
            cond_networks=cast(
                tuple[Conditioned, ...], tuple(checks.names("cond_networks", cond_networks, get_args(Conditioned)))
            ),
        )
        self.input_size, self.hidden_size, self.latent_size = input_size, hidden_size, latent_size
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.backend = backend
        self.recompute = recompute
        self.check_values = check_values
        objectives: tuple[Objective, ...]
        objectives = ("log_weight",) if self.spec.likelihood == "external" else ("log_weight", "particle_filter")
        self._objectives = {o: replace(self.spec, objective=o) for o in objectives}
        if isinstance(self.likelihood, nn.Module):
            self.likelihood.to(device=device, dtype=dtype or torch.get_default_dtype())
        self.initial_state: Tensor | None
        self.register_buffer("initial_state", None)
        self._reader = parameters.Reader(parameters.install(self, self.spec, device, dtype))

    def forward(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        state: State | None = None,
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        beta: float | Tensor = 1.0,
        free_nats: float | Tensor = 0.0,
        normalizer: float | Tensor | None = None,
        outputs: Sequence[str] = (),
        cond: Tensor | None = None,
        resets: Tensor | None = None,
        mask: Tensor | None = None,
        mask_inputs: bool = False,
    ) -> VRNNOutput:
        """Infer z along a batch of sequences and measure the bound.

        Args:
            x: (T, B, X), of the parameters' dtype and device, any strides. Padding may hold anything, NaN too.
            lengths: (B,) int64 on any device, real steps of each row, 0 to T in any order; None means T for all. A row
                of length 0 adds nothing and passes its state through. Their values are looked at, which for those on a
                GPU costs a wait; while a CUDA graph is captured they are not, and must be on the device of x.
            state: the state to start from, as ``VRNNOutput.state`` gives it; None is that of :meth:`new_state`.
            eps: (T, B, Z) standard normal noise; None draws ``torch.randn(T, B, Z)`` once, in that order also where
                ``batch_first``.
            generator: the source of that draw, on the device of x. Not with ``eps``.
            beta: weight of the KL term, a number >= 0 or a 0-d tensor; annealed as a tensor it recompiles nothing.
            free_nats: floor of the KL of each real (step, row) in the loss, >= 0; below it there is no gradient. A
                number or a 0-d tensor.
            normalizer: what to divide the loss by, > 0; None is the number of real steps of this call. Under data
                parallelism with averaged gradients: real steps of all ranks / number of ranks.
            outputs: further results to return, of ``"prior"`` and ``"prediction"``.
            cond: (T, B, C) conditioning input, where the model was built with a ``cond_size``.
            resets: (T, B) bool, true where the state is zeroed before the step: the row begins a new sequence there.
            mask: (T, B, X) bool, true where x was observed. What was not adds nothing to nll: it is integrated out, and
                the elbo is one of what was observed. Not with a likelihood of your own without ``marginal_log_prob``.
            mask_inputs: whether encoder and cell, too, see a zero in the place of what was not observed. There x may
                then hold anything, NaN too.

        Raises:
            ValueError, TypeError: an argument of the wrong shape, dtype, device, layout or value, naming it; what
                ``check_values`` finds in x. While torch.compile traces or a CUDA graph is captured, the values of
                ``lengths`` and of x are asserted at run time by torch (RuntimeError).
            RuntimeError: the backend asked for by name cannot run this call; a sub-module was replaced or hooked.
        """
        parameters = self._reader(self)
        beta = checks.number("beta", beta, zero=True)
        free_nats = checks.number("free_nats", free_nats, zero=True)
        if normalizer is not None:
            normalizer = checks.number("normalizer", normalizer, zero=False)
        outputs = tuple(checks.names("outputs", outputs, _OUTPUTS))
        if generator is not None and eps is not None:
            raise ValueError("generator has nothing to draw where eps is given: pass one of them")
        batch = self._batch(parameters[0], x, eps, generator, lengths, state, cond, resets, mask, mask_inputs)
        real = batch.real()
        executor = executors.choose(self.backend, self.spec, batch.x, stacklevel=5)  # past torch's __call__
        result, nll = self._run(executor, self.spec, parameters, batch, real, outputs)
        prediction = None
        if "prediction" in outputs:
            predicted = self._prediction(cast(Tensor, result.raw))
            prediction = each(lambda p: self._outer(at_real(real, p)), predicted)
        prior = None
        if result.prior_mean is not None and result.prior_std is not None:
            prior = MeanStd(self._outer(result.prior_mean), self._outer(result.prior_std))
        return VRNNOutput(
            loss=bounds.loss(nll, result.kl, real, batch.lengths, beta, free_nats, normalizer),
            nll=self._outer(nll),
            kl=self._outer(result.kl),
            elbo=bounds.evidence(nll, result.kl),
            latent=self._outer(result.z),
            posterior=MeanStd(self._outer(result.mean), self._outer(result.std)),
            state=self._packed(result.state),
            prior=prior,
            prediction=prediction,
        )

    def bound(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        objective: bounds.Kind = "elbo",
        num_particles: int = 1,
        state: State | None = None,
        eps: Tensor | None = None,
        uniforms: Tensor | None = None,
        generator: torch.Generator | None = None,
        threshold: float = 0.5,
        resampling: filtering.Resampling = "systematic",
        cond: Tensor | None = None,
        resets: Tensor | None = None,
        mask: Tensor | None = None,
        mask_inputs: bool = False,
    ) -> Tensor:
        """A lower bound of log p(x) of each sequence, from N samples of z: see :mod:`vrnn_fast.bounds`.

        Its mean over sequences, maximised, trains the model; at N in the hundreds it measures one. x, cond, resets and
        mask are repeated for every particle, in memory too unless B = 1.

        Args:
            x: (T, B, X), as in :meth:`forward`.
            lengths: (B,) int64, real steps of each row, as in :meth:`forward`. A row of length 0 has a bound of 0.
            objective: ``"elbo"``, the evidence lower bound by sampled log-weights (:meth:`forward` has the exact KL,
                which is less noisy); ``"iwae"``, the importance weighted bound; ``"fivo"``, that of a particle filter.
            num_particles: N, samples of z for each sequence.
            state: the state to start from, (num_layers, B, H), one for all particles of a sequence.
            eps: (T, B, N, Z) standard normal noise; None draws it, in that order also where ``batch_first``.
            uniforms: (T, B, N) in [0, 1], what resampling at the end of a step draws with, for ``"fivo"``; None draws
                them after eps, once. Particle n goes on from the ancestor at that quantile of the weights.
            generator: the source of what is not given, on the device of x.
            threshold: 0 to 1. The filter resamples a sequence's particles where the effective sample size of their
                weights since it last did is below this share of N; never after a row's last step. At 0 it never does,
                and the bound is IWAE's.
            resampling: how uniforms are drawn: ``"systematic"``, ``"stratified"`` or ``"multinomial"``.
            cond, resets, mask, mask_inputs: as in :meth:`forward`. With a mask it is log p of what was observed.

        Returns:
            (B,), in nats.

        Raises:
            ValueError, TypeError, RuntimeError: as :meth:`forward`.
        """
        parameters = self._reader(self)
        like = parameters[0]
        checks.one_of("objective", objective, get_args(bounds.Kind))
        checks.positive_int("num_particles", num_particles)
        checks.one_of("resampling", resampling, get_args(filtering.Resampling))
        threshold = checks.share("threshold", threshold)
        filters = objective == "fivo"
        if uniforms is not None and not filters:
            raise ValueError(f"uniforms are what objective='fivo' resamples with, and objective is {objective!r}")
        if generator is not None and eps is not None and (uniforms is not None or not filters):
            both = "eps and uniforms are" if filters else "eps is"
            raise ValueError(f"generator has nothing to draw where {both} given: leave it out")
        given = (x, eps, generator, lengths, state, cond, resets, mask, mask_inputs)
        batch = self._batch(like, *given, ("num_particles", num_particles))
        steps, sequences = batch.x.shape[:2]
        if uniforms is not None:
            uniforms = self._sequence("uniforms", uniforms, steps, sequences, ("num_particles", num_particles), like)
            checks.within("uniforms", uniforms, 0, 1)
        elif filters:
            uniforms = filtering.uniforms(resampling, steps, sequences, num_particles, batch.x, generator)

        fused = filters and self.spec.likelihood != "external"
        spec = self._objectives["particle_filter" if fused else "log_weight"]
        executor = executors.choose(self.backend, spec, batch.x, stacklevel=3)
        rows = batch.repeated(num_particles)

        def launch(rows: Batch) -> tuple[Tensor, tuple[Tensor, ...], Tensor | None]:
            result, nll = self._run(executor, spec, parameters, rows, rows.real(), ())
            return -(nll + result.kl), result.state, result.ancestors

        ancestors: Tensor | None = None
        if filters and not fused:
            log_weights, ancestors = bounds.filtered(launch, rows, cast(Tensor, uniforms), threshold)
        elif filters:
            log_weights, _, ancestors = launch(rows._replace(uniforms=uniforms, threshold=threshold))
        else:
            log_weights = launch(rows)[0]
        log_weights = log_weights.unflatten(1, (sequences, num_particles))
        if ancestors is not None:
            return bounds.fivo(log_weights, ancestors[..., 0] >= 0)
        return bounds.elbo(log_weights) if objective == "elbo" else bounds.iwae(log_weights)

    def step(self, x_t: Tensor, state: State | None, eps: Tensor | None = None, cond: Tensor | None = None) -> VRNNStep:
        """One time step of a stream: predict x_t, then take it in.

        The prediction is the decoder at the prior's mean of z_t, so it uses nothing of x_t and may be read as a
        forecast; nll and kl are those of the posterior's sample, as :meth:`forward` measures them.

        Args:
            x_t: (B, X).
            state: from the last step, from ``VRNNOutput.state`` or :meth:`new_state`; None is the latter.
            eps: (B, Z) noise of the posterior's sample; None draws it.
            cond: (B, C) conditioning input, where the model was built with a ``cond_size``.

        Raises:
            ValueError, TypeError, RuntimeError: as :meth:`forward`.
        """
        parameters = self._reader(self)
        like = parameters[0]
        x_t = checks.tensor("x_t", x_t, (("B", None), ("input_size", self.input_size)), like)
        batch = x_t.shape[0]
        start = self._start(state, batch, like)
        if eps is None:
            eps = torch.randn(batch, self.latent_size, dtype=x_t.dtype, device=x_t.device)
        else:
            eps = checks.tensor("eps", eps, (("B", batch), ("Z", self.latent_size)), like)
        self._has_condition("cond", cond)
        if cond is not None:
            cond = checks.tensor("cond", cond, (("B", batch), ("cond_size", self.spec.cond_size)), like)
        if self.check_values:
            checks.finite("x_t", x_t, support=self.likelihood.support)
            if cond is not None:
                checks.finite("cond", cond)
        executor = executors.choose(self.backend, self.spec, x_t, stacklevel=3)
        external = self.spec.likelihood == "external"
        frame, want = Batch(x_t, eps, start, cond=cond), Want(raw=external, recompute=self.recompute)
        result = executor.step(self.spec, parameters, frame, want)
        nll = -self._log_prob(cast(Tensor, result.raw), x_t) if external else result.nll
        return VRNNStep(nll, result.kl, self._prediction(result.predicted), _pair(result.state))

    @torch.no_grad()
    def generate(
        self,
        num_steps: int,
        batch_size: int = 1,
        prefix: Tensor | None = None,
        lengths: Tensor | None = None,
        *,
        temperature: float = 1.0,
        sample_output: bool = True,
        generator: torch.Generator | None = None,
        cond: Tensor | None = None,
        prefix_cond: Tensor | None = None,
        num_samples: int | None = None,
        state: State | None = None,
    ) -> tuple[Tensor, State]:
        """Draw sequences from the model, each x_t fed back through phi_x: forecasts, after a prefix or from a state.

        One launch for all steps with a Bernoulli or Gaussian likelihood, whose noise is drawn beforehand, eps of all
        steps and then that of the output; with another one a loop over time.

        Args:
            num_steps: how many new time steps.
            batch_size: B, how many sequences; with a prefix or a state it is theirs.
            prefix: (T, B, X) sequences to continue, each from its own last real step.
            lengths: (B,) real steps of the prefix, as in :meth:`forward`.
            temperature: > 0; multiplies the prior's and the output's standard deviations, divides logits.
            sample_output: draw x_t; otherwise it is the output's mean (z is sampled still).
            generator: the source of all draws.
            cond: (num_steps, B, C) conditioning input of the new steps, where the model was built with a ``cond_size``.
            prefix_cond: (T, B, C) that of the prefix.
            num_samples: K, how many times to go on from the same start, which is inferred once; None is a single time.
            state: the state to start from, as this method, :meth:`forward` and :meth:`step` return it; None is that of
                :meth:`new_state`. A long sequence may so be drawn in pieces. Not with ``prefix``.

        Returns:
            The new steps, (num_steps, B, X) (batch first if the module is), and the state after them. With
            ``num_samples`` the new steps are (K, num_steps, B, X), and row k * B + b of the state is that of sample k
            of sequence b: who goes on from it goes on with K * B sequences.

        Raises:
            ValueError, TypeError: an argument out of its domain, naming it; prefix and state as x and state in
                :meth:`forward`.
        """
        parameters = self._reader(self)
        like = parameters[0]
        checks.positive_int("num_steps", num_steps)
        checks.positive_int("batch_size", batch_size)
        if isinstance(temperature, Tensor) and temperature.dim() == 0:
            temperature = temperature.item()
        temperature = checks.number("temperature", temperature, zero=False)
        checks.flag("sample_output", sample_output)
        checks.generator(generator, like.device)
        if prefix is None:
            if lengths is not None:
                raise ValueError("lengths are those of a prefix: pass prefix too")
            if prefix_cond is not None:
                raise ValueError("prefix_cond is that of a prefix: pass prefix too")
            start = self._start(None, batch_size, like) if state is None else self._given(state, None, like)
        else:
            if state is not None:
                raise ValueError("pass either state or prefix: the prefix determines the state")
            batch = self._sequence("prefix", prefix, None, None, ("input_size", self.input_size), like).shape[1]
            if batch_size not in (1, batch):
                raise ValueError(f"batch_size must be the prefix's, {batch}, or left out, got {batch_size}")
            self._has_condition("prefix_cond", prefix_cond)
            out = self.forward(prefix, lengths=lengths, generator=generator, cond=prefix_cond)
            start = self._given(out.state, batch, like)
        layers = _layers(start)
        batch = layers[0].shape[0]
        if state is not None and batch_size not in (1, batch):
            raise ValueError(f"batch_size must be the state's, {batch}, or left out, got {batch_size}")
        cond = self._condition(cond, num_steps, batch, like)
        if num_samples is not None:
            checks.positive_int("num_samples", num_samples)
            layers = tuple(layer.repeat(num_samples, 1) for layer in layers)
            cond = None if cond is None else cond.repeat(1, num_samples, 1)
        rows = batch * (num_samples or 1)
        eps = temperature * self._noise((num_steps, rows), like, generator)
        with full_precision(like.device):
            x, after = self._play(parameters, eps, layers, cond, temperature, not sample_output, generator)
        drawn = self._outer(x)
        if num_samples is not None:
            drawn = x.unflatten(1, (num_samples, batch)).movedim(1, 0)
            drawn = drawn.transpose(1, 2) if self.batch_first else drawn
        return drawn.detach(), self._packed(after)  # detached: no view, like the state

    def _play(
        self,
        parameters: Sequence[Tensor],
        eps: Tensor,
        state: tuple[Tensor, ...],
        cond: Tensor | None,
        temperature: float,
        mean: bool,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """x (T, B, X) that the cell makes of eps (T, B, Z), and the state after it."""
        if self.spec.likelihood == "external":

            def draw(raw: Tensor, t: int) -> Tensor:
                return self.likelihood.mean(raw) if mean else self.likelihood.sample(raw, temperature, generator)

            played = generate_by(draw, self.spec, parameters, eps, state, cond)
            return played.x, played.state
        noise = filtering.widened(eps.new_zeros((*eps.shape[:2], self.input_size)))  # 16 bits know no rare event
        if not mean and self.spec.likelihood == "bernoulli":
            noise.uniform_(generator=generator).logit_().mul_(temperature)
        elif not mean:
            noise.normal_(generator=generator).mul_(temperature)
        executor = executors.choose(self.backend, self.spec, eps, stacklevel=5)
        return executor.generate(self.spec, parameters, Batch(noise, eps, state, cond=cond), mean=mean)

    def rollout_prior(self, eps: Tensor, state: State | None = None, cond: Tensor | None = None) -> VRNNRollout:
        """Let the prior run on, with gradients: z_t from the prior, and the mean of p(x_t | z_t, h_{t-1}) as x_t.

        For auxiliary losses on what the model imagines. A loop in plain torch whatever the executor, differentiable any
        number of times; :meth:`generate` draws samples and has no gradients.

        Args:
            eps: (T, B, Z) standard normal noise of z.
            state: to start from, as in :meth:`forward`.
            cond: (T, B, C) conditioning input, where the model was built with a ``cond_size``.

        Raises:
            ValueError, TypeError, RuntimeError: as :meth:`forward`.
        """
        parameters = self._reader(self)
        like = parameters[0]
        eps = self._sequence("eps", eps, None, None, ("Z", self.latent_size), like)
        start = _layers(self._start(state, eps.shape[1], like))
        cond = self._condition(cond, eps.shape[0], eps.shape[1], like)
        with full_precision(like.device):
            played = generate_by(lambda raw, _: self.likelihood.mean(raw), self.spec, parameters, eps, start, cond)
        return VRNNRollout(
            latent=self._outer(played.z),
            prior=MeanStd(*map(self._outer, played.prior)),
            prediction=each(self._outer, self._prediction(played.raw)),
            state=self._packed(played.state),
        )

    def new_state(self, batch_size: int) -> State:
        """The state that ``state=None`` stands for, (num_layers, B, H), for an LSTM a pair of them: zeros, or those of
        the buffer ``initial_state`` in every row."""
        checks.positive_int("batch_size", batch_size)
        return _pair(self._start(None, batch_size, self._reader(self)[0]))

    def refresh(self) -> None:
        """Forget the packed weights: needed only before :meth:`step`, after changes of parts of tensors that torch does
        not count."""
        self._reader.forget()

    def explain(self, x: Tensor | None = None, *, source: bool = False) -> str:
        """Which executor would run ``x`` (by default an input that suits the parameters), in how many launches, and
        why not the others; with ``source``, the kernels that it generates.

        Raises:
            RuntimeError: the backend asked for by name cannot run it, or no call at all can, as the call would say.
        """
        if x is None:
            like = self._reader(self)[0]
            x = like.new_empty((1, 1, self.input_size))
        executor, reasons = executors.select(self.backend, self.spec, x)
        lines = [f"{executor.name}: {executor.launches(self.spec)}"]
        for other in executors.executors:
            if other.name in reasons:
                lines.append(f"not {other.name}: {reasons[other.name]}")
            elif other.name != executor.name:
                why = f"{executor.name} is preferred" if self.backend == "auto" else f"backend={self.backend!r}"
                lines.append(f"not {other.name}: {why}")
        if source:
            lines += ["", executor.source(self.spec, x)]
        return "\n".join(lines)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, {self.latent_size}, cell={self.spec.cell!r}, "
            f"activation={dict(self.spec.activations) or self.spec.activation!r}, likelihood={self.likelihood}, "
            f"batch_first={self.batch_first}, "
            f"backend={self.backend!r}"
        )

    def _outer(self, tensor: Tensor) -> Tensor:
        """From (T, B, ...) to the layout of the caller."""
        return tensor.transpose(0, 1) if self.batch_first else tensor

    def _log_prob(self, raw: Tensor, x: Tensor, real: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """The likelihood outside the launch, of what was observed."""
        with full_precision(raw.device):
            if mask is None:
                return self.likelihood.log_prob(raw, x)
            return self.likelihood.marginal_log_prob(raw, x, mask if real is None else mask & real.unsqueeze(-1))

    def _prediction(self, raw: Tensor) -> Any:
        """What the decoder's raw output predicts."""
        if self.spec.likelihood != "external":  # elementwise, and no affair of autocast's
            return self.likelihood.prediction(raw)
        with full_precision(raw.device):
            return self.likelihood.prediction(raw)

    def _sequence(
        self,
        name: str,
        value: Tensor,
        steps: int | None,
        batch: int | None,
        width: tuple[str, int],
        like: Tensor,
        *between: tuple[str, int],
    ) -> Tensor:
        """A checked argument in the layout of the caller, as (T, B, *between, width)."""
        sizes = ("T", steps), ("B", batch)
        value = checks.tensor(name, value, (*(sizes[::-1] if self.batch_first else sizes), *between, width), like)
        return value.transpose(0, 1) if self.batch_first else value

    def _batch(
        self,
        like: Tensor,
        x: Tensor,
        eps: Tensor | None,
        generator: torch.Generator | None,
        lengths: Tensor | None,
        state: State | None,
        cond: Tensor | None,
        resets: Tensor | None,
        mask: Tensor | None,
        mask_inputs: bool,
        *particles: tuple[str, int],
    ) -> Batch:
        """The checked arguments of a call over a batch of sequences; eps, which may be drawn, has those dimensions more
        that ``particles`` names."""
        x = self._sequence("x", x, None, None, ("input_size", self.input_size), like)
        steps, batch = x.shape[:2]
        if lengths is not None:
            lengths = checks.lengths(lengths, steps, batch, x.device)
        start = _layers(self._start(state, batch, like))
        cond = self._condition(cond, steps, batch, like)
        if resets is not None:
            resets = self._flags("resets", resets, steps, batch, None, like)
            if self.initial_state is not None:
                raise ValueError("resets go back to a state of zeros, and this model has another initial_state")
        if mask is not None:
            mask = self._flags("mask", mask, steps, batch, ("input_size", self.input_size), like)
            if not self.likelihood.takes_mask:
                raise ValueError(f"mask needs a likelihood with marginal_log_prob, and {self.likelihood} has none")
        checks.flag("mask_inputs", mask_inputs)
        if mask_inputs:
            if mask is None:
                raise ValueError("mask_inputs needs a mask")
            x = torch.where(mask, x, torch.zeros_like(x))
        checks.generator(generator, x.device)
        if eps is None:
            eps = self._noise((steps, batch, *(size for _, size in particles)), x, generator)
        else:
            eps = self._sequence("eps", eps, steps, batch, ("Z", self.latent_size), like, *particles)
        checked = Batch(x, eps, start, lengths, cond, resets, mask)
        if self.check_values:
            real = checked.real()
            checks.finite("x", x, real, mask, support=self.likelihood.support, swap=self.batch_first)
            if cond is not None:
                checks.finite("cond", cond, real, swap=self.batch_first)
        return checked

    def _noise(self, rows: tuple[int, ...], x: Tensor, generator: torch.Generator | None) -> Tensor:
        """Standard normal noise (*rows, Z): what ``torch.randn`` draws, which compiles for no dynamic shape."""
        return x.new_empty((*rows, self.latent_size)).normal_(generator=generator)

    def _run(
        self,
        executor: executors.Executor,
        spec: CellSpec,
        parameters: Sequence[Tensor],
        batch: Batch,
        real: Tensor | None,
        outputs: Collection[str],
    ) -> tuple[executors.SequenceResult, Tensor]:
        """One launch, and -log p(x_t | z_<=t, x_<t), (T, B), whoever computes it."""
        external = self.spec.likelihood == "external"
        want = Want("prior" in outputs, external or "prediction" in outputs, self.recompute)
        with full_precision(batch.x.device):
            result = executor.run(spec, parameters, batch._replace(mask=None) if external else batch, want)
        if not external:
            return result, result.nll
        x = with_frames(batch.x, real, batch.lengths)
        return result, at_real(real, -self._log_prob(cast(Tensor, result.raw), x, real, batch.mask))

    def _has_condition(self, name: str, cond: Tensor | None) -> None:
        if cond is None and self.spec.cond_size:
            raise ValueError(f"{name} must be given: this model was built with cond_size={self.spec.cond_size}")
        if cond is not None and not self.spec.cond_size:
            raise ValueError(f"{name} has no place in a model that was built without a cond_size")

    def _condition(self, cond: Tensor | None, steps: int, batch: int, like: Tensor) -> Tensor | None:
        """The checked conditioning input, (T, B, C)."""
        self._has_condition("cond", cond)
        width = ("cond_size", self.spec.cond_size)
        return None if cond is None else self._sequence("cond", cond, steps, batch, width, like)

    def _flags(
        self, name: str, value: Tensor, steps: int, batch: int, width: tuple[str, int] | None, like: Tensor
    ) -> Tensor:
        """A checked bool argument in the layout of the caller, as (T, B) or (T, B, width)."""
        sizes = ("T", steps), ("B", batch)
        shape = (*(sizes[::-1] if self.batch_first else sizes), *([width] if width else []))
        value = checks.tensor(name, value, shape, like, dtype=torch.bool)
        return value.transpose(0, 1) if self.batch_first else value

    @property
    def _state_parts(self) -> int:
        return self.spec.state_tensors // self.num_layers

    def _packed(self, state: Sequence[Tensor]) -> State:
        """(B, H) tensors, h of every layer and then c, as the caller sees them."""
        return _pair(stacked(state, self._state_parts))

    def _start(self, state: State | None, batch: int, like: Tensor) -> tuple[Tensor, ...]:
        """The caller's state as a tuple of its (num_layers, B, H) tensors; for None that of :meth:`new_state`."""
        if state is not None:
            return self._given(state, batch, like)
        sizes = self.num_layers, batch, self.hidden_size
        if self.initial_state is None:
            return tuple(like.new_zeros(sizes) for _ in range(self._state_parts))
        parts = ("parts", self._state_parts), ("num_layers", self.num_layers), ("hidden_size", self.hidden_size)
        start = checks.tensor("initial_state", self.initial_state, parts, like)
        return tuple(part.unsqueeze(1).repeat(1, batch, 1) for part in start)  # one row's is a copy too

    def _given(self, state: State, batch: int | None, like: Tensor) -> tuple[Tensor, ...]:
        """The caller's state, checked: of ``batch`` rows, or of as many as it has."""

        def part(name: str, value: Tensor, rows: int | None) -> Tensor:
            shape = ("num_layers", self.num_layers), ("B", rows), ("hidden_size", self.hidden_size)
            return checks.tensor(name, value, shape, like)

        if self.spec.cell != "lstm":
            return (part("state", cast(Tensor, state), batch),)
        if not isinstance(state, (tuple, list)) or len(state) != 2:
            raise TypeError(f"state of an LSTM must be a pair (h, c), got {type(state).__name__}")
        h = part("state[0]", state[0], batch)
        return h, part("state[1]", state[1], h.shape[1])

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._reader.forget()  # parameters are about to move; nothing shall hold their old memory
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "nn.DataParallel cannot run a VRNN: it cuts and joins every tensor along the same dimension, and the batch "
            "is in another one of x, of lengths and of the state. Use DistributedDataParallel, a process for each GPU"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Besides tensors, note what :func:`vrnn_fast.load_checkpoint` needs to make such a module again."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        notes = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if notes is not None:
            notes[MARK] = described(self.spec, self.likelihood, self.batch_first)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As everywhere in torch, and checkpoints of the most copied PyTorch VRNN load as they are.

        ``dec_mean`` and ``dec_mean.0`` are the same key; ``dec_std.*`` is dropped, with one warning, where the
        likelihood has no standard deviation.

        Raises:
            RuntimeError: keys are missing or left over and ``strict``; for the cell's biases it says which argument
                to build the module with.
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            theirs = any(name.startswith("rnn.") and "bias_" in name for name in state_dict)
            if theirs == self.spec.bias or not any(name.startswith("rnn.") for name in state_dict):
                raise
            has = "has rnn.bias_*" if theirs else "has no rnn.bias_ih_l0 and rnn.bias_hh_l0"
            raise RuntimeError(f"{error}\n\tThe checkpoint's cell {has}: build VRNN with bias={theirs}.") from None

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        """Read checkpoints of the same names that were made for another likelihood, and those with a start."""
        start = state_dict.get(f"{prefix}initial_state")
        if isinstance(start, Tensor) and self.initial_state is None:
            self.initial_state = next(self.parameters()).new_zeros(
                (self._state_parts, self.num_layers, self.hidden_size)
            )
        heads = {head.partition(".")[0]: head for head, _ in self.spec.decoder_heads}
        apart = not self.spec.packed_heads
        single = apart and not self.spec.layers_of("dec_mean")
        for key in [k for k in state_dict if single and k.startswith(f"{prefix}dec_mean.")]:
            leaf = key.removeprefix(f"{prefix}dec_mean.").removeprefix("0.")
            state_dict[f"{prefix}{heads.get('dec_mean', 'dec_mean')}.{leaf}"] = state_dict.pop(key)
        unused = [k for k in state_dict if apart and "dec_std" not in heads and k.startswith(f"{prefix}dec_std.")]
        for key in unused:
            del state_dict[key]
        if unused:
            warnings.warn(f"dropped {', '.join(unused)}: {self.likelihood} has no use for them", stacklevel=2)
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )


def _widths(name: str, widths: Widths, default: tuple[int, ...]) -> tuple[int, ...]:
    if widths is None:
        return default
    if isinstance(widths, (str, int)) or not isinstance(widths, Sequence):
        raise ValueError(f"{name} must be a tuple of layer widths, got {widths!r}")
    return tuple(widths)


def _own_layers(given: Mapping[str, Sequence[int]]) -> tuple[tuple[str, tuple[int, ...]], ...]:
    return tuple((head, _widths(f"head_layers of {head}", widths, ())) for head, widths in given.items())


def _activations(given: Mapping[str, Activation | Sequence[Activation]]) -> tuple[tuple[str, Activations], ...]:
    several = {name: tuple(value) for name, value in given.items() if isinstance(value, (tuple, list))}
    return tuple((name, several.get(name, cast(Activation, value))) for name, value in given.items())


def _heads(likelihood: Likelihood, features: int) -> tuple[tuple[str, int], ...]:
    """The likelihood's decoder heads, names and widths, fit to be attributes of the module."""
    if not callable(likelihood.heads):
        raise TypeError(f"likelihood.heads must be a method, heads(features), got {likelihood.heads!r}")
    heads = likelihood.heads(features)
    if not isinstance(heads, Mapping):
        raise TypeError(f"likelihood.heads(features) must return a mapping of names to widths, got {heads!r}")
    owners = [head.partition(".")[0] if isinstance(head, str) else "" for head in heads]
    good = all(
        o.startswith("dec_") and o.isidentifier() and h in (o, f"{o}.0") for o, h in zip(owners, heads, strict=True)
    )
    if not heads or not good or len(set(owners)) != len(owners):
        names = tuple(heads)
        raise ValueError(f"likelihood.heads must be distinct names such as 'dec_mean' or 'dec_std.0', got {names!r}")
    return tuple(heads.items())


def _layers(state: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """(num_layers, B, H) tensors, as the caller sees them, as executors take them: h of every layer, then c, (B, H)."""
    return tuple(layer for part in state for layer in part.unbind(0))


def _pair(state: Sequence[Tensor]) -> State:
    """The one tensor of a state, or the pair of an LSTM's."""
    return state[0] if len(state) == 1 else (state[0], state[1])
