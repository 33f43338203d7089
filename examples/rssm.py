"""A recurrent state-space model, by which Dreamer learns a world: the same cell, whose state is one step ahead.

Learn: ``cond_networks=("phi_z",)`` lets actions go in with z, ``input_order`` shows z to the decoder and no x to the
cell, and ``state=`` begins where the first action leads. Losses and gradients are those of the loop in plain torch.
"""

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence

from vrnn_fast import VRNN, FixedGaussian, Std

OBS, ACTION, STOCH, DETER, HIDDEN = 24, 4, 16, 64, 48


class RSSM(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(nn.Linear(STOCH + ACTION, HIDDEN), nn.ELU())
        self.posterior = nn.Sequential(nn.Linear(DETER + OBS, HIDDEN), nn.ELU(), nn.Linear(HIDDEN, 2 * STOCH))
        self.prior = nn.Sequential(nn.Linear(DETER, HIDDEN), nn.ELU(), nn.Linear(HIDDEN, 2 * STOCH))
        self.decoder = nn.Sequential(nn.Linear(STOCH + DETER, HIDDEN), nn.ELU(), nn.Linear(HIDDEN, OBS))
        self.cell = nn.GRUCell(HIDDEN, DETER)

    def forward(self, x: Tensor, actions: Tensor, eps: Tensor) -> Tensor:  # an action leads to the x beside it
        z, h, losses = torch.zeros_like(eps[0]), x.new_zeros(x.shape[1], DETER), []
        for x_t, action, eps_t in zip(x, actions, eps, strict=True):
            h = self.cell(self.embed(torch.cat([z, action], -1)), h)
            raws = self.posterior(torch.cat([h, x_t], -1)), self.prior(h)
            q, p = (Normal(mean, nn.functional.softplus(std) + 0.1) for mean, std in (raw.chunk(2, -1) for raw in raws))
            z = q.mean + q.stddev * eps_t
            nll = -Normal(self.decoder(torch.cat([z, h], -1)), 1.0).log_prob(x_t)
            losses.append(kl_divergence(q, p).sum(-1) + nll.sum(-1))
        return torch.stack(losses).mean()


def fast_loss(model: VRNN, x: Tensor, actions: Tensor, eps: Tensor) -> Tensor:
    h = model.phi_z(torch.cat([torch.zeros_like(eps[0]), actions[0]], -1))
    h = torch.gru_cell(h, x.new_zeros(x.shape[1], DETER), *model.rnn.parameters())
    later = torch.cat([actions[1:], torch.zeros_like(actions[:1])])  # what was done at x_t goes in with z_t
    return model(x, cond=later, state=h.unsqueeze(0), eps=eps).loss


def as_vrnn(model: RSSM, **options: object) -> VRNN:
    options |= dict.fromkeys(("phi_z", "encoder", "prior", "decoder"), (HIDDEN,)) | {"phi_x": ()}
    options |= {"input_order": {"encoder": ("h", "phi_x"), "decoder": ("z", "h"), "cell": ("phi_z",)}}
    options |= {"activation": "elu", "packed_heads": True, "std": Std(floor=0.1), "likelihood": FixedGaussian(1.0)}
    fast = VRNN(OBS, DETER, STOCH, cond_size=ACTION, cond_networks=("phi_z",), **options)
    fast.load_state_dict(dict(zip(fast.state_dict(), model.state_dict().values(), strict=True)))  # in the same order
    return fast


torch.manual_seed(0)
slow, data = RSSM(), [torch.randn(50, 16, width) for width in (OBS, ACTION, STOCH)]
fast = as_vrnn(slow)
losses = torch.stack([slow(*data), fast_loss(fast, *data)])
losses.sum().backward()
gradients = [torch.cat([p.grad.flatten() for p in model.parameters()]) for model in (slow, fast)]
error = ((gradients[1] - gradients[0]).norm() / gradients[0].norm()).item()
print(f"nats by the loop, in one launch: {losses.tolist()}; gradients differ by {error:.0e} of their norm")
