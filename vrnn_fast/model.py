"""The variational recurrent network as an ordinary module. Everything measured is in nats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor, nn

from . import bounds, checks, executors, generation, inference, inputs, parameters, particles, state_dicts
from . import objective as objectives
from . import resampling as filtering
from .answers import Answers
from .answers.proposal import Blinded
from .call import ModelCall
from .cell import arguments
from .cell.arguments import Widths
from .cell.spec import Activation, CellSpec, Conditioned, Std, StdKind
from .cell.spec import Cell as CellKind
from .description import MARK, described
from .likelihoods import Likelihood, as_likelihood, decoder_heads
from .outputs import VRNNOutput, VRNNRollout, VRNNStep
from .state import State, paired, start


class VRNN(Answers, nn.Module):
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

    The buffer ``initial_state`` is the state that ``state=None`` stands for and ``resets`` go to, the same for every
    row: h of every layer, for an LSTM c as well, (1 or 2, num_layers, H). It is None, a state of zeros, unless a
    checkpoint brought one or you set it; it is saved and moved with the parameters, and trained where it is a
    parameter, by ``learn_initial_state`` or set as one.

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
        cond_networks: who reads it, of ``"encoder"``, ``"prior"``, ``"decoder"``, ``"phi_z"`` and ``"cell"``. Its
            columns come first in prior and decoder, between those of phi_x and h in the encoder, last in phi_z and
            cell.
        input_order: the order in which the first layer of a network, or the ``"cell"``, reads its sources side by side,
            where it is another one: ``{"encoder": ("h", "phi_x")}``. The sources are phi_x, phi_z, cond, h and, of
            phi_z, z. The decoder may read z in the place of phi_z, ``("z", "h")``, and the cell may leave phi_x out,
            ``("phi_z",)``: a recurrent state-space model is such a cell (examples/rssm.py).
        activation: ``"relu"``, ``"leaky_relu"`` (slope 0.01), ``"tanh"``, ``"elu"``, ``"identity"``, ``"silu"`` or
            ``"gelu"`` (x times the normal distribution function, not torch's ``approximate="tanh"``); or a mapping of
            networks to these, ``{"phi_x": "leaky_relu"}``, the others having ``"relu"``. A tuple names one for each
            hidden layer: ``{"phi_x": ("relu", "identity")}`` ends in an affine layer. Hidden layers of a head follow
            its network's where that is one for all, unless the mapping names the head (``"dec_mean"``).
        layer_norm: the networks whose hidden layers, those of heads too, are normalised before their activation, as
            ``nn.Sequential(Linear, LayerNorm, ReLU)`` does; True for all five. ``layer_norm_eps`` is torch's ``eps``.
        residual: whether the posterior's mean is the prior's plus what the encoder gives, instead of the latter alone.
        learn_initial_state: whether ``initial_state`` is a parameter, which begins at zeros.
        std: how posterior and prior get a standard deviation from its head: ``"softplus"``, ``"log_std"`` (exp(raw)) or
            ``"log_variance"`` (exp(raw / 2)), each plus 1e-6, or a :class:`~vrnn_fast.Std` with constants of its own.
        likelihood: ``"bernoulli"`` (the decoder gives logits), ``"gaussian"``, or an object of
            :mod:`vrnn_fast.likelihoods` or a :class:`~vrnn_fast.likelihoods.Likelihood` of your own.
        batch_first: x, eps and every per-step result are (B, T, ...) instead of (T, B, ...). States never are.
        backend: ``"auto"`` picks the fastest that can run a call, and warns once per reason when it passes one over; a
            name insists on that one (:func:`vrnn_fast.backends` has them). May be reassigned at any time.
        recompute: keep only the states for the backward pass, and compute the rest again: less memory, and numbers that
            are the same but for rounding. Without it, too, what does not hang on the scan is computed again, on the CPU
            where all would be more than 512 MiB.
        check_values: look for NaN and infinity in x and cond, and for what is outside of the likelihood's support in x,
            at every call, at real steps, and name the first. Costs one more pass over them, and a wait on a GPU.
            Without it a NaN reaches all results of its row from its step on, the loss and so every gradient; the
            results of other rows stay right.
        device, dtype: of the parameters, those of the likelihood too, as everywhere in torch. They decide the
            precision, under autocast too: what comes in another one there is converted.

    Raises:
        ValueError, TypeError: an argument out of its domain, naming it.

    Examples:
        >>> VRNN(28, 100, 16)(torch.rand(10, 4, 28)).kl.shape
        torch.Size([10, 4])
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
        layer_norm: bool | Sequence[str] = False,
        layer_norm_eps: float = 1e-5,
        residual: bool = False,
        learn_initial_state: bool = False,
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
        checks.one_of("backend", backend, executors.names())
        checks.integer("input_size", input_size)
        flags = {"bias": bias, "packed_heads": packed_heads, "residual": residual, "batch_first": batch_first}
        flags["learn_initial_state"] = learn_initial_state
        for name, value in {**flags, "recompute": recompute, "check_values": check_values}.items():
            checks.flag(name, value)
        self.likelihood = as_likelihood(likelihood)
        h, of_z = (hidden_size,), ((hidden_size,) if latent_size else ())
        every_activation, activations = arguments.activations(activation)
        every_head, own_layers = arguments.of_heads(head_layers)
        readers = checks.names("cond_networks", cond_networks, get_args(Conditioned))
        self.spec = CellSpec(
            input_size,
            hidden_size,
            latent_size,
            cell=cell,
            num_layers=num_layers,
            bias=bias,
            nonlinearity=nonlinearity,
            phi_x=arguments.widths("phi_x", phi_x, h * 2),
            phi_z=arguments.widths("phi_z", phi_z, of_z),
            encoder=arguments.widths("encoder", encoder, of_z * 2),
            prior=arguments.prior(prior, of_z),
            decoder=arguments.widths("decoder", decoder, h * 2),
            activation=every_activation,
            activations=activations,
            input_order=arguments.orders(input_order),
            normalized=arguments.normalized(layer_norm),
            norm_eps=layer_norm_eps,
            head_layers=every_head,
            own_layers=own_layers,
            packed_heads=packed_heads,
            residual=residual,
            std=std if isinstance(std, Std) else Std(std),
            likelihood=self.likelihood.fused,
            decoder_heads=decoder_heads(self.likelihood, input_size),
            output_std=self.likelihood.output_std,
            cond_size=cond_size,
            cond_networks=cast(tuple[Conditioned, ...], tuple(readers)),
        )
        self.input_size, self.hidden_size, self.latent_size = input_size, hidden_size, latent_size
        self.num_layers = num_layers
        self.batch_first, self.backend = batch_first, backend
        self.recompute, self.check_values = recompute, check_values
        self._measured, self._blinded = particles.measured(self.spec), Blinded.of(self.spec)
        if isinstance(self.likelihood, nn.Module):
            self.likelihood.to(device=device, dtype=dtype or torch.get_default_dtype())
        self.initial_state: Tensor | None
        self.register_buffer("initial_state", None)
        if learn_initial_state:
            sizes = self.spec.state_parts, num_layers, hidden_size
            self.initial_state = nn.Parameter(torch.zeros(sizes, device=device, dtype=dtype))
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
                of length 0 adds nothing and passes its state through; all may be 0 where a ``normalizer`` is given, for
                other ranks have steps. Their values are looked at, which for those on a
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
            resets: (T, B) bool, true where the state is that of :meth:`new_state` before the step: the row begins a new
                sequence there.
            mask: (T, B, X) bool, true where x was observed. What was not adds nothing to nll: it is integrated out, and
                the elbo is one of what was observed. Not with a likelihood of your own without ``marginal_log_prob``.
            mask_inputs: whether encoder and cell, too, see a zero in the place of what was not observed. There x may
                then hold anything, NaN too.

        Raises:
            ValueError, TypeError: an argument of the wrong shape, dtype, device, layout or value, naming it; what
                ``check_values`` finds in x. While torch.compile traces or a CUDA graph is captured, the values of
                ``lengths`` and of x are asserted at run time by torch (RuntimeError).
            RuntimeError: the backend asked for by name cannot run this call; a sub-module was replaced or hooked.

        Examples:
            >>> model(x, lengths=torch.tensor([5, 3, 1, 0])).elbo.shape
            torch.Size([4])
        """
        call, weights = self._call(), bounds.Weights.checked(beta, free_nats, normalizer)
        asked = tuple(checks.names("outputs", outputs, inference.OUTPUTS))
        if generator is not None and eps is not None:
            raise ValueError("pass either `generator` or `eps`: nothing is left to draw where eps is given")
        given = inputs.Given(x, lengths, state, eps, generator, cond, resets, mask, mask_inputs)
        batch = inputs.batch_of(call, given, none_real=normalizer is not None)
        return inference.infer(call.for_resets(batch.resets), batch, asked, weights)

    def bound(
        self,
        x: Tensor,
        lengths: Tensor | None = None,
        *,
        objective: bounds.BoundKind = "elbo",
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
        """Bound log p(x) of each sequence from below, by N samples of z: see :mod:`vrnn_fast.bounds`.

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

        Examples:
            >>> model.bound(x, objective="iwae", num_particles=8).shape
            torch.Size([4])
        """
        call, wanted = self._call(), objectives.Bound.checked(objective, num_particles, threshold, resampling)
        wanted.check_noise(eps, uniforms, generator)
        given = inputs.Given(x, lengths, state, eps, generator, cond, resets, mask, mask_inputs)
        batch = inputs.batch_of(call, given, (wanted.particles,))
        call = call.for_resets(batch.resets)
        specs = self._measured if call.spec is self.spec else particles.measured(call.spec)
        return objectives.bound(call, specs, batch, wanted, uniforms, generator)

    def step(self, x_t: Tensor, state: State | None, eps: Tensor | None = None, cond: Tensor | None = None) -> VRNNStep:
        """Run one time step of a stream: predict x_t, then take it in.

        The prediction is the decoder at the prior's mean of z_t, so it uses nothing of x_t and may be read as a
        forecast; nll and kl are those of the posterior's sample, as :meth:`forward` measures them.

        Args:
            x_t: (B, X).
            state: from the last step, from ``VRNNOutput.state`` or :meth:`new_state`; None is the latter.
            eps: (B, Z) noise of the posterior's sample; None draws it.
            cond: (B, C) conditioning input, where the model was built with a ``cond_size``.

        Raises:
            ValueError, TypeError, RuntimeError: as :meth:`forward`.

        Examples:
            >>> nll, kl, forecast, state = model.step(x[0], None)
            >>> forecast.shape
            torch.Size([4, 3])
        """
        call = self._call()
        return inference.step(call, inputs.frame_of(call, x_t, state, eps, cond))

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

        Examples:
            >>> samples, state = model.generate(20, prefix=x, num_samples=10)
            >>> samples.shape
            torch.Size([10, 20, 4, 3])
        """
        begin = generation.Beginning(batch_size, prefix, lengths, prefix_cond, state)
        draws = generation.Draws(num_steps, temperature, sample_output, generator, num_samples)
        return generation.generate(self._call(), begin, draws, cond)

    def rollout_prior(self, eps: Tensor, state: State | None = None, cond: Tensor | None = None) -> VRNNRollout:
        """Let the prior run on, with gradients: z_t from the prior, and the mean of p(x_t | z_t, h_{t-1}) as x_t.

        For auxiliary losses on what the model imagines. A loop in plain torch whatever the backend, differentiable any
        number of times; :meth:`generate` draws samples and has no gradients.

        Args:
            eps: (T, B, Z) standard normal noise of z.
            state: to start from, as in :meth:`forward`.
            cond: (T, B, C) conditioning input, where the model was built with a ``cond_size``.

        Raises:
            ValueError, TypeError, RuntimeError: as :meth:`forward`.

        Examples:
            >>> model.rollout_prior(torch.randn(5, 4, 2)).prediction.shape
            torch.Size([5, 4, 3])
        """
        return generation.rollout(self._call(), eps, state, cond)

    def new_state(self, batch_size: int) -> State:
        """Return the state that ``state=None`` stands for, (num_layers, B, H), for an LSTM a pair of them: zeros, or
        ``initial_state`` in every row.

        Examples:
            >>> model.new_state(4).shape
            torch.Size([1, 4, 16])
        """
        checks.integer("batch_size", batch_size)
        return paired(start(self._call(), None, batch_size))

    def refresh(self) -> None:
        """Forget the packed weights: needed only before :meth:`step`, after changes of parts of tensors that torch does
        not count.

        Examples:
            >>> model.phi_x[0].weight.data[0] = 0
            >>> model.refresh()
        """
        self._reader.forget()

    def explain(self, x: Tensor | None = None, *, source: bool = False) -> str:
        """Tell which backend would run ``x`` (by default an input that suits the parameters), in how many launches, and
        why not the others; with ``source``, the kernels that it generates.

        Raises:
            RuntimeError: the backend asked for by name cannot run it, or no call at all can, as the call would say.
            TypeError: x is no tensor.

        Examples:
            >>> backend, *others = model.explain().splitlines()
        """
        if x is None:
            x = self._call().like.new_empty((1, 1, self.input_size))
        checks.any_tensor("x", x)
        return executors.explain(self.backend, self.spec, x, source=source)

    def extra_repr(self) -> str:
        return (
            f"{self.input_size}, {self.hidden_size}, {self.latent_size}, cell={self.spec.cell!r}, "
            f"activation={dict(self.spec.activations) or self.spec.activation!r}, likelihood={self.likelihood}, "
            f"batch_first={self.batch_first}, "
            f"backend={self.backend!r}"
        )

    def _call(self) -> ModelCall:
        """Return a view of this module as it is now."""
        return ModelCall(
            self._reader(self),
            self.spec,
            self.likelihood,
            self._parameters.get("initial_state", self._buffers.get("initial_state")),  # __getattr__ costs a step 2 %
            self.backend,
            self.batch_first,
            self.recompute,
            self.check_values,
        )

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        self._reader.forget()  # parameters are about to move; nothing shall hold their old memory
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def _replicate_for_data_parallel(self) -> Any:
        raise RuntimeError(
            "nn.DataParallel cannot run a VRNN: it cuts and joins every tensor along the same dimension, and the batch "
            "is in another one of x, of lengths and of the state. Use DistributedDataParallel, a process for each GPU"
        )

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Save, besides tensors, what :func:`vrnn_fast.load_checkpoint` needs to make such a module again."""
        super()._save_to_state_dict(destination, prefix, keep_vars)
        notes = getattr(destination, "_metadata", {}).get(prefix[:-1])
        if notes is not None:
            notes[MARK] = described(self)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as everywhere in torch; checkpoints of the most copied PyTorch VRNN load as they are.

        ``dec_mean`` and ``dec_mean.0`` are the same key; ``dec_std.*`` is dropped, with one warning, where the
        likelihood has no standard deviation.

        Raises:
            RuntimeError: keys are missing or left over and ``strict``; for the cell's biases it says which argument
                to build the module with.

        Examples:
            >>> model.load_state_dict(VRNN(3, 16, 2).state_dict())
            <All keys matched successfully>
        """
        try:
            return super().load_state_dict(state_dict, strict, assign)
        except RuntimeError as error:
            if about := state_dicts.about_biases(state_dict, self.spec):
                raise RuntimeError(f"{error}\n\t{about}") from None
            raise

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *rest: Any) -> None:
        """Read checkpoints of the same names that were made for another likelihood, and those with a start."""
        begin = state_dict.get(f"{prefix}initial_state")
        if isinstance(begin, Tensor) and self.initial_state is None:
            sizes = self.spec.state_parts, self.num_layers, self.hidden_size
            self.initial_state = next(self.parameters()).new_zeros(sizes)
        state_dicts.adopt(state_dict, prefix, self.spec, self.likelihood)
        super()._load_from_state_dict(state_dict, prefix, *rest)
